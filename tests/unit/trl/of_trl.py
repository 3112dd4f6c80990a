"""TRL's trainers on the embedded model, with the adapter of a run of ours. What they compute is their own code.

Only what would leave this machine, or this test, is taken out: a message about their use, and what making one does to
the process's generators and environment.
"""

import contextlib
import os
import random
from functools import cache

import numpy as np
import peft
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.base_trainer import _BaseTrainer

from farstep_model.embedded import model_dir


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(model_dir())


@contextlib.contextmanager
def _leaving_no_trace():
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    environment, send = dict(os.environ), _BaseTrainer._send_telemetry
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # a rollout function is called experimental
    _BaseTrainer._send_telemetry = lambda self: None
    try:
        yield
    finally:
        _BaseTrainer._send_telemetry = send
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


def _made(kind, config, engine, folder, example, *, settings, **options):
    """A trainer of TRL's, whose model has the run's adapter, and its fresh one as the reference."""
    layers, spec = engine.adapter.layers, engine.adapter.spec
    targets = list(layers.module_names(list(engine.adapter.weights)))
    base = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    lora = peft.LoraConfig(r=spec.rank, lora_alpha=spec.alpha or spec.rank, target_modules=targets)
    args = config(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, **settings)
    with _leaving_no_trace():
        trainer = kind(
            peft.get_peft_model(base, lora),
            args=args,
            train_dataset=Dataset.from_list([example]),
            processing_class=tokenizer(),
            **options,
        )
    peft.set_peft_model_state_dict(trainer.model, engine.adapter.state_dict())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # its loop says so
    return trainer


def preferences(engine, folder, **settings):
    example = {"prompt": "a", "chosen": "b", "rejected": "c"}
    return _made(DPOTrainer, DPOConfig, engine, folder, example, settings={"max_length": None, **settings})


def supervised(engine, folder, **settings):
    example = {"prompt": "a", "completion": "b"}
    return _made(SFTTrainer, SFTConfig, engine, folder, example, settings={"max_length": None, **settings})


def policy(engine, folder, *, rollout, **settings):
    """`rollout` is what its rollout function gives: ids, log-probabilities, and `score`, which is the reward."""
    return _made(
        GRPOTrainer,
        GRPOConfig,
        engine,
        folder,
        {"prompt": "a"},
        settings={"per_device_train_batch_size": len(rollout["score"]), **settings},
        reward_funcs=lambda completions, score, **rest: score,
        rollout_func=lambda prompts, trainer: dict(rollout),
    )


def gradients(trainer, losses):
    """Of the run's parameters by name, after one backward pass for each loss."""
    trainer.model.zero_grad()
    for loss in losses:
        loss.backward()
    named = trainer.model.named_parameters()
    return {name.replace(".default", ""): each.grad for name, each in named if each.grad is not None}
