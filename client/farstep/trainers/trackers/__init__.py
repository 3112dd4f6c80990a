"""Trackers: where metrics go besides the events. `jsonl` always; wandb, TensorBoard and trackio when asked for."""
