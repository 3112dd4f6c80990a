"""The configuration of a trainer, whichever way it comes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from farstep.trainers.config import (
    CheckpointConfig,
    ConfigError,
    DataConfig,
    HuggingFaceConfig,
    IgnoredSettingWarning,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    TrainerConfig,
    load_config,
)

SETTINGS: dict[str, Any] = {
    "type": "dpo",
    "name": "pairs",
    "model": {"base": "farstep/tiny", "lora": {"r": "8", "alpha": 16, "max_length": "1Ki"}},
    "data": {"sources": ["org/pairs:train[:10%]", {"path": "more.jsonl", "sample_ratio": "50%"}], "max_length": "2k"},
    "optimizer": {"lr": "1e-5"},
    "batch_size": "2^4",
}
YAML = """
type: dpo
name: pairs
model:
  base: farstep/tiny
  lora: {r: 8, alpha: 16, max_length: 1Ki}
data:
  sources:
    - org/pairs:train[:10%]
    - {path: more.jsonl, sample_ratio: 50%}
  max_length: 2k
optimizer:
  lr: 1e-5
batch_size: 2^4
"""


@dataclasses.dataclass
class Settings:
    type: str = "dpo"
    name: str = "pairs"
    model: Any = dataclasses.field(default_factory=lambda: SETTINGS["model"])
    data: Any = dataclasses.field(default_factory=lambda: SETTINGS["data"])
    learning_rate: str = "1e-5"
    batch_size: int = 16


def minimal(**settings: Any) -> TrainerConfig:
    return TrainerConfig(**{"name": "a", "model": "farstep/tiny", "dataset": "org/x", **settings})


def test_yaml_mapping_keywords_file_and_object_are_equal(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(YAML)
    config = TrainerConfig(**SETTINGS)
    for other in (YAML, path, str(path), SETTINGS, Settings(), config):
        assert load_config(other) == config
    assert config.model.lora.max_length == 1024
    assert config.data.max_length == 2000
    assert config.batch_size == 16
    assert config.optimizer.lr == 1e-5


def test_three_lines_are_enough() -> None:
    config = load_config("name: a\nmodel: farstep/tiny\ndataset: org/x\n")
    assert config.model == ModelConfig(base="farstep/tiny")
    assert config.data.sources == (HuggingFaceConfig(name="org/x"),)
    assert (config.epochs, config.max_steps) == (1, None)


@pytest.mark.parametrize(
    ("type_", "lr", "batch_size"),
    [("sft", 2e-4, 8), ("causal", 2e-4, 8), ("dpo", 1e-5, 8), ("grpo", 4e-5, 16), ("ppo", 1e-5, 16), ("mine", 1e-4, 8)],
)
def test_defaults_are_the_trainers(type_: str, lr: float, batch_size: int) -> None:
    config = minimal(type=type_)
    assert (config.optimizer.lr, config.batch_size) == (lr, batch_size)
    assert minimal(type=type_, optimizer={"weight_decay": 0.1}).optimizer.lr == lr
    assert minimal(type=type_, learning_rate=3).optimizer.lr == 3


def test_ipo_is_dpo_with_another_loss() -> None:
    assert minimal(type="ipo").preference.loss == "ipo"
    assert minimal(type="gspo").rl.clip_low == 3e-4


ARKOR = {
    "maxSteps": 100,
    "numTrainEpochs": 3,
    "learningRate": 1e-3,
    "batchSize": 4,
    "optim": "adamw_torch",
    "lrSchedulerType": "cosine",
    "weightDecay": 0.1,
    "warmupSteps": 5,
    "loggingSteps": 2,
    "saveSteps": 50,
    "trainOnResponsesOnly": False,
    "datasetFormat": {"type": "chatml"},
    "datasetSplit": "validation",
    "dryRun": True,
    "lora": {"r": 16, "alpha": 16, "maxLength": 512, "loadIn4bit": True},
}


def test_arkors_names() -> None:
    config = minimal(**ARKOR)
    assert (config.max_steps, config.epochs, config.batch_size, config.log_interval) == (100, 3, 4, 2)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-3, 0.1)
    assert (config.scheduler.name, config.scheduler.warmup_steps) == ("cosine", 5)
    assert config.checkpoint == (CheckpointConfig(save_every_n_steps=50),)
    assert (config.data.mask_inputs, config.data.format) == (False, "messages")
    assert config.data.sources == (HuggingFaceConfig(name="org/x", split="validation"),)
    assert config.model.lora == LoraConfig(r=16, alpha=16, max_length=512, load_in_4bit=True)
    assert config.dry_run


def test_arctics_names() -> None:
    config = load_config(
        """
        type: sft
        micro_batch_size: 2
        gradient_accumulation_steps: 4
        train_iters: 1k
        exit_iteration: 10
        eval_interval: 5
        model: {name_or_path: farstep/tiny, dtype: bfloat16, peft_config: {peft_type: LORA, lora_alpha: 8, r: 4}}
        data:
          sources: [{type: huggingface_instruct, name_or_path: org/x, role_mapping: {user: q, assistant: a}}]
          train_eval_split: [0.9, 0.1]
          ignore_empty_think: true
          filter_samples: true
        scheduler: {type: huggingface, name: linear, warmup_ratio: 10%}
        optimizer: {type: fused_adam, learning_rate: 5e-4, betas: [0.9, 0.999]}
        checkpoint: {type: deepspeed, output_dir: out, save_every_n_steps: 10, auto_resume: true}
        wandb: {enable: true, project: p, name: n}
        """
    )
    assert (config.batch_size, config.mini_bs, config.max_steps, config.exit_iteration) == (8, 2, 1000, 10)
    assert config.model == ModelConfig(base="farstep/tiny", dtype="bfloat16", lora=LoraConfig(r=4, alpha=8))
    assert config.data.sources[0].role_mapping == {"user": "q", "assistant": "a"}
    assert config.data.train_eval_split == (0.9, 0.1)
    assert config.data.on_too_long == "drop"
    assert config.scheduler.num_warmup_steps(200) == 20
    assert config.optimizer == OptimizerConfig(lr=5e-4, betas=(0.9, 0.999))
    assert (config.checkpoint[0].type, config.checkpoint[0].auto_resume) == ("state", True)
    assert [(one.name, one.project, one.run_name) for one in config.trackers] == [("wandb", "p", "n")]


def test_verls_and_arenos_names() -> None:
    verl = TrainerConfig(
        algorithm="ppo",
        model_name="farstep/tiny",
        tokenizer_name="other",
        rollout_batch_size=4,
        ppo_epochs=4,
        kl_coeff=0.1,
        clip_range=0.3,
        gamma=0.9,
        lam=0.8,
        max_prompt_length=128,
        max_response_length=64,
    )
    rl = verl.rl
    assert (verl.type, verl.model.base, verl.model.tokenizer, verl.batch_size) == ("ppo", "farstep/tiny", "other", 4)
    assert (rl.updates_per_rollout, rl.kl_coef, rl.clip_low, rl.clip_high) == (4, 0.1, 0.3, 0.3)
    assert (rl.gamma, rl.gae_lambda) == (0.9, 0.8)
    assert (verl.data.max_prompt_length, verl.sampling.max_tokens) == (128, 64)
    areno = TrainerConfig(
        type="gspo",
        model_path="farstep/tiny",
        n_samples=4,
        mini_bs=2,
        optimizer_lr=1e-6,
        sampling_params={"max_new_tokens": 99, "stop_token_ids": [3], "temperature": 0.5},
        loss_mask_policy={"tool_results": True},
        critic_lr=1e-3,
        metrics_log_dir="tb",
    )
    assert (areno.rl.group_size, areno.mini_bs, areno.optimizer.lr) == (4, 2, 1e-6)
    assert (areno.sampling.max_tokens, areno.sampling.stop, areno.sampling.temperature) == (99, (3,), 0.5)
    assert areno.rl.loss_mask.tool_results
    assert areno.rl.critic.lr == 1e-3
    assert [(one.name, one.dir) for one in areno.trackers] == [("tensorboard", "tb")]


def test_trls_names() -> None:
    policy = minimal(
        type="grpo", num_generations=4, num_iterations=2, max_completion_length=99, epsilon=0.1, epsilon_high=0.3,
        delta=2.0, use_bias_correction_kl=True, scale_rewards="none", loss_type="dr_grpo",
    )  # fmt: skip
    rl = policy.rl
    assert (rl.group_size, rl.updates_per_rollout, policy.sampling.max_tokens) == (4, 2, 99)
    assert (rl.clip_low, rl.clip_high, rl.dual_clip, rl.kl_corrected) == (0.1, 0.3, 2.0, True)
    assert (rl.normalize_advantages, rl.loss_aggregation) == ("mean", "constant")
    assert minimal(type="grpo", epsilon=0.1).rl.clip_high == 0.1
    assert minimal(type="grpo", scale_rewards=True, loss_type="grpo").rl.loss_aggregation == "sequence"
    preference = minimal(type="dpo", loss_type="ipo", beta=0.3).preference
    assert (preference.loss, preference.length_normalized, preference.beta) == ("ipo", True, 0.3)
    assert not minimal(type="dpo", loss_type="sigmoid").preference.length_normalized
    for wrong in ({"loss_type": "sapo"}, {"loss_type": ["sigmoid"]}, {"scale_rewards": 2}):
        with pytest.raises(ConfigError):
            minimal(type="grpo", **wrong)
    for twice in ({"epsilon_high": 0.3, "rl": {"clip_high": 0.2}}, {"epsilon": 0.3, "rl": {"clip_low": 0.2}}):
        with pytest.raises(ConfigError, match="given twice"):
            minimal(type="grpo", **twice)
    with pytest.raises(ConfigError, match="epsilon"):
        minimal(type="grpo", epsilon="much")


def test_what_has_no_meaning_here_is_left_out_with_a_warning() -> None:
    with pytest.warns(IgnoredSettingWarning, match="deepspeed is left out: how the model is spread"):
        assert minimal(deepspeed={"zero_optimization": {"stage": 3}}) == minimal()
    with pytest.warns(IgnoredSettingWarning, match=r"data\.pack_samples"):
        minimal(data={"pack_samples": True}, dataset="org/x")
    assert minimal(sequence_parallel_size=1) == minimal()


WRONG = [
    ({"optimizer": {"lrr": 1}}, r"optimizer\.lrr: unknown setting \(did you mean 'lr'\?\)"),
    ({"maxStep": 3}, r"maxStep: unknown setting \(did you mean 'max_steps'\?\)"),
    ({"learnin_rate": 3}, r"learnin_rate: unknown setting \(did you mean 'learning_rate'\?\)"),
    ({"model": {"base": "x", "lora": {"rnk": 3}}}, r"model\.lora\.rnk: unknown setting \(known are alpha"),
    ({"rl": {"critic": {"lrate": 1}}, "type": "ppo"}, r"rl\.critic\.lrate: unknown setting"),
    ({"checkpoint": [{}, {"save_every": 1}]}, r"checkpoint\[1\]\.save_every: unknown setting \(did you mean"),
    ({"learningRate": "fast"}, r"learningRate \(= optimizer\.lr\): 'fast' is no number"),
    ({"lr": 1, "learning_rate": 2}, r"optimizer\.lr: is given twice, as lr and as learning_rate"),
    ({"epochs": 0}, r"epochs: .*greater than or equal to 1"),
    ({"epochs": 1.5}, r"epochs: must be a whole number, not 1\.5"),
    ({"batch_size": True}, r"batch_size: must be a whole number"),
    ({"optimizer": {"lr": float("nan")}}, r"optimizer\.lr: must be finite"),
    ({"dry_run": "maybe"}, r"dry_run: .*boolean"),
    ({"scheduler": {"warmup_steps": 1, "warmup_ratio": 0.1}}, r"scheduler: warmup_steps and warmup_ratio exclude"),
    ({"rl": {"gamma": 0.5}}, r"rl: the trainer 'sft' has no such settings"),
    ({"type": "ppo", "clip_range": 2}, r"clip_range \(= rl\.clip_low\): .*less than or equal to 1"),
    ({"maxPromptLength": 9}, r"data\.max_prompt_length: the trainer 'sft' has no limit of its own for prompts"),
    ({"train_eval_split": 0.1}, r"eval_interval: missing"),
    ({"eval_dataset": "org/y"}, r"eval_interval: missing"),
    ({"train_eval_split": [0.5, 0.1], "eval_interval": 1}, r"train_eval_split must add up to 1"),
    (
        {"dataset": ["a", {"name": "b", "sample_ratio": 0.5, "sample_count": 3}]},
        r"\[1\]: sample_ratio and sample_count",
    ),
    ({"dataset": {"type": "huggingface", "name": "a", "splitt": "b"}}, r"\[0\]\.splitt: unknown setting .*'split'"),
    (
        {"dataset": {"type": "hugingface", "name": "a"}},
        r"\[0\]\.type: there is no source 'hugingface' .*did you mean 'huggingface'",
    ),
    ({"dataset": "http://example.com/a.jsonl"}, r"url must begin with https://"),
    ({"dataset": "https://me:secret@example.com/a.jsonl"}, r"must not hold a user name"),
    ({"dataset": "org/x[:120%]"}, r"more than 100%"),
    ({"dataset": 3}, r"no source"),
    ({"checkpoint": [{"auto_resume": True}, {"auto_resume": True}]}, r"checkpoint: only one may have auto_resume"),
    ({"checkpoint": {"type": "export", "auto_resume": True}}, r"checkpoint\[0\]: auto_resume needs"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_a_mistake_is_named_with_its_place(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        minimal(**settings)
    assert "example.com/a.jsonl" not in str(raised.value) or "secret" not in str(raised.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="model: missing"):
        TrainerConfig()


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"foo: unknown setting; and epochs: .*; seed: .*known are batch_size"):
        minimal(epochs=0, seed="x", foo=1)


def test_a_key_that_is_there_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(ConfigError, match="epochs: in line 3 again, first in line 2"):
        load_config("model: x\nepochs: 1\nepochs: 2\n")
    with pytest.raises(ConfigError, match="lr: in line 4 again, first in line 3"):
        load_config("model: x\noptimizer:\n  lr: 1\n  lr: 2\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "no YAML"),
        ("# nothing but words\n", "is empty"),
        ("- a\n- b\n", "must be a mapping of settings, not list"),
        ("model: !!python/object/apply:os.system ['x']\n", "no YAML"),
        ("1: a\nmodel: x\n", "is no text"),
        ("nowhere.yaml", "cannot read nowhere.yaml: No such file"),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(text)


def test_merge_keys_of_yaml_work() -> None:
    text = "base: &b {lr: 1e-3}\n"
    with pytest.raises(ConfigError, match="base: unknown"):
        load_config(text + "model: x\noptimizer: {<<: *b, eps: 1e-8}\n")
    config = load_config("extra:\n  b: &b {lr: 1e-3, eps: 1}\nmodel: x\noptimizer: {<<: *b, eps: 1e-8}\n")
    assert (config.optimizer.lr, config.optimizer.eps) == (1e-3, 1e-8)


def test_users_settings_go_into_extra_or_a_subclass() -> None:
    assert minimal(extra={"any": ["thing"]}).extra == {"any": ["thing"]}

    class Mine(TrainerConfig):
        type: str = "grpo"
        beta: float = 0.5  # an alias in the parent, a setting of its own here

    config = load_config({"model": "x", "beta": 2}, Mine)
    assert (config.beta, config.optimizer.lr, config.preference.beta) == (2.0, 4e-5, 0.1)
    with pytest.raises(ConfigError, match="did you mean 'beta'"):
        Mine(model="x", betta=1)


def settings_of_every_kind() -> TrainerConfig:
    return TrainerConfig(
        **{**ARKOR, "model": "x", "type": "ppo", "dataset": "org/x", "extra": {"x": 1.5e-7, "y": "1e5"}},
        reward=json_dumps,
        early_stopping={"patience": 2},
        eval_dataset=[{"prompt": "1+1", "solutions": ["2"]}],
        eval_interval=1,
        trackers=["wandb", {"name": "tensorboard", "dir": "x"}],
    )


def json_dumps(record: object) -> float:
    return 1.0


def test_resolved_shows_every_setting_and_makes_the_same_object() -> None:
    config = settings_of_every_kind()
    from_yaml = load_config(config.resolved())
    assert from_yaml.rl.reward == f"{__name__}:json_dumps"
    assert load_config(config, reward=None).resolved() == load_config(from_yaml, reward=None).resolved()
    made: dict[str, Any] = {}
    exec(config.resolved("python"), made)
    assert made["config"] == from_yaml
    for shown in ("weight_decay: 0.1", "gae_lambda: 0.95", "max_steps: 100", "epochs: 3", "lr: 0.001"):
        assert shown in config.resolved()
    assert "preference" not in config.resolved()


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    config = minimal(dataset={"url": "https://example.com/a.jsonl", "token": "s3cret"})
    for text in (repr(config), str(config), config.resolved(), config.resolved("python"), config.model_dump_json()):
        assert "s3cret" not in text
    with pytest.raises(ConfigError) as raised:
        minimal(dataset={"url": "ftp://example.com/a.jsonl", "token": "s3cret", "tokken": "s3cret"})
    assert "s3cret" not in str(raised.value)
    assert load_config(config.resolved()).data.sources[0].token is None  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="give it anew"):
        minimal(dataset={"url": "https://example.com/a.jsonl", "token": "**********"})


def test_merged_changes_what_it_names_and_nothing_else() -> None:
    config = settings_of_every_kind()
    merged = config.merged({"optimizer": {"lr": 7}, "maxSteps": "1k", "rl": {"critic": {"coef": 2}}})
    assert (merged.optimizer.lr, merged.max_steps, merged.rl.critic.coef) == (7.0, 1000, 2.0)
    assert merged.merged({"lr": config.optimizer.lr, "max_steps": 100, "rl": {"critic": {"coef": 0.5}}}) == config
    with pytest.raises(ConfigError, match=r"optimizer\.lrr: unknown"):
        config.merged({"optimizer": {"lrr": 1}})
    with pytest.raises(ConfigError, match="type: is 'ppo' and cannot become 'sft'"):
        config.merged({"type": "sft"})


def test_a_dry_run_is_small_and_goes_through_every_stage() -> None:
    config = minimal(
        max_steps="1M",
        epochs=5,
        eval_dataset="org/y",
        eval_interval=500,
        log_interval=100,
        checkpoint={"auto_resume": True, "save_end_of_training": False},
    ).for_dry_run()
    assert config.dry_run
    assert (config.max_steps, config.data.max_rows, config.eval_interval, config.log_interval) == (10, 50, 10, 1)
    assert config.checkpoint[0].save_end_of_training
    assert not config.checkpoint[0].auto_resume
    assert config.for_dry_run() == config
    assert minimal(max_steps=3, checkpoint=[]).for_dry_run().max_steps == 3
    assert minimal(checkpoint=[]).for_dry_run().checkpoint


def test_evaluations_are_asked_for_exactly_where_there_is_something_to_evaluate_on() -> None:
    with pytest.raises(ConfigError, match="eval_interval: there is nothing to evaluate on"):
        minimal(eval_interval=3).check_evaluation()
    minimal(eval_interval=3).check_evaluation(test_data=True)
    with pytest.raises(ConfigError, match="eval_interval: missing"):
        minimal().check_evaluation(test_data=True)
    minimal(eval_interval=3, train_eval_split="10%").check_evaluation()
    minimal().check_evaluation()


def test_code_is_loaded_before_what_it_defines_is_looked_up(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from farstep.trainers.config import SourceConfig\n"
        "from farstep.trainers.data import Source\n"
        "class OwnConfig(SourceConfig):\n    type: str = 'own_for_this_test'\n    num: int\n"
        "class Own(Source):\n    name = 'own_for_this_test'\n    config_class = OwnConfig\n"
    )
    path = tmp_path / "config.yaml"
    path.write_text("model: x\ncode: own.py\ndataset: {type: own_for_this_test, num: 3}\n")
    for _ in range(2):
        assert load_config(path).data.sources[0].num == 3  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="code: Python files may not be loaded here"):
        load_config(path, allow_code=False)
    (tmp_path / "bad.py").write_text("1 / 0\n")
    for name, message in (("bad.py", "cannot be loaded: ZeroDivisionError"), ("none.py", "no Python file")):
        with pytest.raises(ConfigError, match=message):
            load_config(path, code=[name])


def test_it_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        minimal().epochs = 3


def test_sections_may_be_given_as_objects() -> None:
    config = TrainerConfig(name="a", model=ModelConfig(base="farstep/tiny"), data=DataConfig(sources="org/x"))
    assert config == minimal()


def test_validation_needs_no_torch_and_no_network() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'datasets', 'httpx'): sys.modules[name] = None\n"
        "from farstep.trainers.config import load_config\n"
        "print(load_config({'model': 'x', 'dataset': 'org/x'}).data.sources[0].name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "org/x\n", done.stderr


@pytest.mark.parametrize("name", ["pydantic", "yaml"])
def test_what_is_not_installed_is_told(name: str) -> None:
    code = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "import farstep\n"
        "try:\n    import farstep.trainers.config\n"
        "except farstep.MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'farstep[trainers]'" in done.stdout, done.stderr
