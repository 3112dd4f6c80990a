"""What other systems call our settings: tables, and nothing that decides.

A name is looked up after `camelCase` has become `snake_case`, and only where it is none of ours. The value is the
place of our setting, or a function that gives several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Alias = str | Callable[[Any], Mapping[str, Any]]

FORMATS = {"chatml": "messages", "sharegpt": "messages", "chat": "messages", "dpo": "preference", "raw": "text"}


def _clip(value: Any) -> Mapping[str, Any]:
    return {"rl.clip_low": value, "rl.clip_high": value}


def _format(value: Any) -> Mapping[str, Any]:
    name = value.get("type") if isinstance(value, Mapping) and set(value) == {"type"} else value
    return {"data.format": FORMATS.get(name, name) if isinstance(name, str) else name}


def _split(value: Any) -> Mapping[str, Any]:
    """The share to evaluate on or [train, eval]; a name is the split of the data set."""
    return {"dataset_split" if isinstance(value, str) else "data.train_eval_split": value}


def _wandb(value: Any) -> Mapping[str, Any]:
    settings = dict(value) if isinstance(value, Mapping) else {"enabled": value}
    renamed = {{"enable": "enabled", "name": "run_name"}.get(key, key): setting for key, setting in settings.items()}
    return {"trackers": [{"enabled": True, **renamed, "name": "wandb"}]}


def _tokenizer(value: Any) -> Mapping[str, Any]:
    name = value.get("name_or_path") if isinstance(value, Mapping) else value
    return {} if name is None else {"model.tokenizer": name}


def _filter(value: Any) -> Mapping[str, Any]:
    return {"data.on_too_long": {True: "drop", False: "truncate"}.get(value, value)}


def _last_turn(value: Any) -> Mapping[str, Any]:
    return {"data.train_on": {True: "last", False: "all"}.get(value, value)}


def _loss_type(value: Any) -> Mapping[str, Any]:
    """TRL's, of policies and of preferences."""
    aggregation = {"dapo": "token", "bnpo": "token", "grpo": "sequence", "dr_grpo": "constant"}
    match value:
        case "sigmoid":
            return {"preference.loss": "sigmoid"}
        case "ipo" | "sigmoid_norm":
            loss = "ipo" if value == "ipo" else "sigmoid"
            return {"preference.loss": loss, "preference.length_normalized": True}
        case _:
            return {"rl.loss_aggregation": aggregation.get(value, value) if isinstance(value, str) else value}


def _scale_rewards(value: Any) -> Mapping[str, Any]:
    names = {"group": "std", True: "std", "none": "mean", False: "mean"}
    return {"rl.normalize_advantages": names.get(value, value) if isinstance(value, str | bool) else value}


TOP: Mapping[str, Alias] = {
    # short forms
    "lora": "model.lora",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "dataset": "data.sources",
    "eval_dataset": "data.eval_sources",
    "train_eval_split": "data.train_eval_split",
    "max_length": "data.max_length",
    "reward": "rl.reward",
    "reward_fn": "rl.reward",
    "agent": "rl.agent",
    "group_size": "rl.group_size",
    "beta": "preference.beta",
    "label_smoothing": "preference.label_smoothing",
    "checkpoints": "checkpoint",
    "tracker": "trackers",
    "trainer": "type",
    # Arkor and Hugging Face
    "num_train_epochs": "epochs",
    "optim": "optimizer.name",
    "lr_scheduler_type": "scheduler.name",
    "weight_decay": "optimizer.weight_decay",
    "warmup_steps": "scheduler.warmup_steps",
    "warmup_ratio": "scheduler.warmup_ratio",
    "logging_steps": "log_interval",
    "save_steps": lambda value: {"checkpoint": [{"save_every_n_steps": value}]},
    "eval_steps": "eval_interval",
    "train_on_responses_only": "data.mask_inputs",
    "dataset_format": _format,
    "dataset_split": _split,
    "per_device_train_batch_size": "batch_size",
    "max_grad_norm": "optimizer.grad_clip",
    # TRL
    "num_generations": "rl.group_size",
    "num_iterations": "rl.updates_per_rollout",
    "max_completion_length": "sampling.max_tokens",
    "epsilon": "rl.epsilon",
    "epsilon_high": "rl.clip_high",
    "delta": "rl.dual_clip",
    "use_bias_correction_kl": "rl.kl_corrected",
    "scale_rewards": _scale_rewards,
    "loss_type": _loss_type,
    # ArcticTraining
    "train_iters": lambda value: {} if value == 0 else {"max_steps": value},
    "micro_batch_size": "mini_bs",
    "loss_log_interval": "log_interval",
    "train_log_iter_interval": "log_interval",
    "train_log_metrics_path": lambda value: {"trackers": [{"name": "jsonl", "path": value}]},
    "wandb": _wandb,
    "tokenizer": _tokenizer,
    # VeRL, by way of Orbiter
    "algorithm": "type",
    "rollout_batch_size": "batch_size",
    "ppo_epochs": "rl.updates_per_rollout",
    "kl_coeff": "rl.kl_coef",
    "clip_range": _clip,
    "gamma": "rl.gamma",
    "lam": "rl.gae_lambda",
    "model_name": "model.base",
    "tokenizer_name": "model.tokenizer",
    "max_prompt_length": "data.max_prompt_length",
    "max_response_length": "sampling.max_tokens",
    # AReno
    "model_path": "model.base",
    "n_samples": "rl.group_size",
    "max_prompt_tokens": "data.max_prompt_length",
    "max_prompt_len": "data.max_prompt_length",
    "max_new_tokens": "sampling.max_tokens",
    "max_context_len": "sampling.max_context_length",
    "sampling_params": "sampling",
    "clip_eps": _clip,
    "kl_loss_coef": "rl.kl_coef",
    "kl_loss_type": "rl.kl_type",
    "cliprange_value": "rl.critic.clip",
    "value_loss_coef": "rl.critic.coef",
    "critic_lr": "rl.critic.lr",
    "critic_warmup_steps": "rl.critic.warmup_steps",
    "optimizer_lr": "optimizer.lr",
    "max_running_prompts": "rl.max_running",
    "loss_mask_policy": "rl.loss_mask",
    "prompt_key": "data.prompt_key",
    "solutions_key": "data.solutions_key",
    "metrics_log_dir": lambda value: {"trackers": [{"name": "tensorboard", "dir": value}]},
    "save_interval": lambda value: {"checkpoint": [{"save_every_n_steps": value}]},
}

SECTIONS: Mapping[str, Mapping[str, Alias]] = {
    "model": {"name_or_path": "model.base", "name": "model.base", "peft_config": "model.lora"},
    "model.lora": {
        "rank": "model.lora.r",
        "lora_alpha": "model.lora.alpha",
        "lora_dropout": "model.lora.dropout",
    },
    "data": {
        "dataset": "data.sources",
        "eval_dataset": "data.eval_sources",
        "max_prompt_tokens": "data.max_prompt_length",
        "prompt_truncation_mode": "data.prompt_truncation",
        "dpo_prompt_truncation_mode": "data.prompt_truncation",
        "filter_samples": _filter,
        "last_turn_only": _last_turn,
    },
    "optimizer": {
        "type": "optimizer.name",
        "learning_rate": "optimizer.lr",
        "epsilon": "optimizer.eps",
        "max_grad_norm": "optimizer.grad_clip",
        "grad_clip_norm": "optimizer.grad_clip",
        "gradient_clipping": "optimizer.grad_clip",
    },
    "scheduler": {"type": lambda value: {} if value == "huggingface" else {"scheduler.name": value}},
    "sampling": {
        "max_new_tokens": "sampling.max_tokens",
        "max_context_len": "sampling.max_context_length",
        "max_prompt_len": "data.max_prompt_length",
        "stop_token_ids": "sampling.stop",
    },
    "rl": {
        "n_samples": "rl.group_size",
        "clip_range": _clip,
        "clip_eps": _clip,
        "kl_coeff": "rl.kl_coef",
        "kl_loss_coef": "rl.kl_coef",
        "lam": "rl.gae_lambda",
        "ppo_epochs": "rl.updates_per_rollout",
        "reward_fn": "rl.reward",
    },
    "rl.critic": {"optimizer_lr": "rl.critic.lr", "learning_rate": "rl.critic.lr"},
    "preference": {},
    "early_stopping": {},
}

SOURCE: Mapping[str, str] = {
    "name_or_path": "name",
    "dataset_name": "name",
    "config_name": "subset",
    "file": "path",
    "seed": "sample_seed",
}
SOURCE_TYPES: Mapping[str, str] = {
    "huggingface_instruct": "huggingface",
    "huggingface_causal": "huggingface",
    "hf": "huggingface",
    "local": "file",
    "inline": "rows",
}

# Settings that other systems have and that have no counterpart here: why. With one of the neutral values they say
# nothing, with another one they are left out with a warning.
NEUTRAL: tuple[Any, ...] = (None, False, 0, 1, "none", "auto", "LORA", "CAUSAL_LM", "huggingface", {}, [])
WITHOUT_MEANING: Mapping[str, str] = {
    "deepspeed": "how the model is spread over GPUs is the trainer server's matter",
    "sequence_parallel_size": "how the model is spread over GPUs is the trainer server's matter",
    "expert_parallel_size": "how the model is spread over GPUs is the trainer server's matter",
    "world_size": "how the model is spread over GPUs is the trainer server's matter",
    "backend_type": "which engine trains is the trainer server's matter",
    "activation_checkpoint_cpu_offload": "memory is the trainer server's matter",
    "tiled_mlp_compute": "memory is the trainer server's matter",
    "eval_log_iter_interval": "every evaluation is logged",
    "mem_profiler": "memory is the trainer server's matter",
    "logger": "logging is set up with Python's own logging",
    "data.pack_samples": "the trainer server packs by itself, without changing a number",
    "data.pad_to": "the trainer server pads by itself, without changing a number",
    "data.div_length": "the trainer server pads by itself, without changing a number",
    "data.dl_num_workers": "batches are made from the cache",
    "data.use_data_cache": "the cache is used where data.cache_dir says where it is",
    "data.process": "rows are always processed",
    "model.attn_implementation": "which attention is used is the trainer server's matter",
    "model.disable_activation_checkpoint": "memory is the trainer server's matter",
    "model.type": "the trainer server loads the model",
    "model.lora.peft_type": "adapters are LoRA",
    "model.lora.task_type": "models are causal language models",
    "model.lora.bias": "biases are not trained",
    "sampling.skip_special_tokens": "records have both the tokens and their text",
}
