"""Supervised fine-tuning through real servers: what is computed, and what of it does not depend on how it is cut."""

import math

import numpy as np
import pytest
import torch

from farstep.trainers import CausalTrainer, SFTTrainer, TrainSequence
from tests.support.trainees import Recorder, rows, settings


def fit(service, config, data, *, trainer=SFTTrainer, **options):
    events = Recorder()
    made = trainer(config, client=service, train_data=data, event_sinks=[events], **options)
    return made.fit(), events


def test_the_loss_falls_and_is_the_mean_over_targets(service, tmp_path):
    data = rows(12)
    result, events = fit(service, settings(tmp_path, epochs=6, optimizer={"lr": 1e-2}), data)
    losses = events.values("loss")
    assert result.steps == len(losses) == 18
    assert losses[-1] < 0.8 * losses[0]
    assert result.loss == losses[-1]
    run = service.create_lora_training_client("farstep/tiny", rank=4, seed=1)
    first = rows(12)
    whole = run.forward([row.to_datum() for row in first]).result()
    assert whole.loss == pytest.approx(whole.metrics["loss:sum"] / sum(row.num_targets for row in first), rel=1e-6)


def test_rows_of_text_become_tokens_and_are_learnt(service, tmp_path):
    data = [{"prompt": f"{word}?", "response": word.upper()} for word in ("apple", "river", "stone", "cloud")]
    config = settings(tmp_path, epochs=8, optimizer={"lr": 2e-2})
    result, events = fit(service, config, data)
    assert events.values("loss")[-1] < 0.7 * events.values("loss")[0]
    assert events[0]["data"]["used"] == 4
    assert result.steps == 8


def test_plain_text_is_trained_whole(service, tmp_path):
    data = [{"text": f"The number {n} is followed by the number {n + 1}."} for n in range(8)]
    result, events = fit(service, settings(tmp_path, epochs=4, optimizer={"lr": 1e-2}), data, trainer=CausalTrainer)
    assert events.values("loss")[-1] < events.values("loss")[0]
    assert result.steps == 8


def logprobs_after(service, config, data, probe, **options):
    trainer = SFTTrainer(config, client=service, train_data=data, **options)
    with trainer:
        trainer.validate()
        trainer.train()
        output = trainer.client.forward([row.to_datum() for row in probe]).result()
        return np.concatenate([each["logprobs"].to_numpy() for each in output.loss_fn_outputs])


def test_cut_into_passes_the_numbers_are_those_of_one_batch(service, tmp_path):
    data = rows(8, answer=(1, 12))  # unequal numbers of targets: a mean of means would differ
    ways = {
        "whole": {},
        "cut": {"mini_bs": 3},
        "accumulated": {"mini_bs": 2, "gradient_accumulation_steps": 4},
    }
    found = {
        name: logprobs_after(service, settings(tmp_path, name=name, batch_size=8, epochs=3, **way), data, data)
        for name, way in ways.items()
    }
    for name in ("cut", "accumulated"):
        # fp32 sums in another order: gradients agree to about 1e-6, Adam's first steps enlarge that
        np.testing.assert_allclose(found[name], found["whole"], rtol=1e-4, atol=1e-4)


def test_accumulation_makes_the_steps_that_it_says(service, tmp_path):
    config = settings(tmp_path, batch_size=8, mini_bs=2, gradient_accumulation_steps=2, epochs=2)
    result, events = fit(service, config, rows(10))  # 8 rows: 4 passes, 2 steps; 2 rows: 1 pass, 1 step
    assert events[0]["total_steps"] == result.steps == 6
    assert events.values("step") == [2, 3, 5, 6]
    assert events.values("optimizer_steps") == [2, 1, 2, 1]


def test_max_steps_wins_over_epochs_and_cuts_a_batch_short(service, tmp_path):
    config = settings(tmp_path, batch_size=8, mini_bs=2, gradient_accumulation_steps=2, epochs=1, max_steps=5)
    result, events = fit(service, config, rows(8))
    assert events[0]["total_steps"] == result.steps == 5
    assert "max_steps" in result.stopped_because
    assert events[-1]["type"] == "completed"


def test_overfitting_the_first_batch_drives_its_loss_near_zero(service, tmp_path):
    config = settings(tmp_path, overfit_first_batch=True, min_iterations=40, optimizer={"lr": 1e-2}, batch_size=2)
    data = [{"prompt": f"vowels {word}", "response": word[1:3]} for word in ("apple", "river", "stone", "cloud")]
    result, events = fit(service, config, data)
    assert result.steps == 40
    assert result.loss < 0.05 < events.values("loss")[0]


def test_the_rate_of_each_step_is_that_of_the_schedule(service, tmp_path):
    config = settings(
        tmp_path, epochs=4, optimizer={"lr": 1e-2}, scheduler={"name": "linear", "warmup_steps": 2, "min_lr_ratio": 0.1}
    )
    trainer = SFTTrainer(config, client=service, train_data=rows(8), event_sinks=[events := Recorder()])
    trainer.fit()
    assert (trainer.warmup_steps, trainer.training_horizon) == (2, 8)
    linear = [0.1 + 0.9 * (1 - step / 6) for step in range(6)]
    assert events.values("learning_rate") == pytest.approx([1e-2 * each for each in [0, 0.5, *linear]])


def reference_loss(trainer, batch):
    """A loss of one's own that is the named one: the same mean."""
    logprobs = trainer.forward(batch)
    weights = sum(sum(row.loss_mask[1:]) for row in batch)
    return -sum((p * torch.tensor(row.loss_mask)).sum() for p, row in zip(logprobs, batch, strict=True)) / weights


class OwnLoss(SFTTrainer):
    def loss(self, batch):
        return reference_loss(self, batch)


def function_loss(batch, logprobs):
    total = sum(len(row.tokens) - row.loss_mask.count(0) for row in batch)
    return -sum(p.sum() for p in logprobs) / total, {"mine": 3.0}


class FunctionLoss(SFTTrainer):
    loss_fn = staticmethod(function_loss)


class Backward(SFTTrainer):
    def backward(self, loss):
        self.seen = True
        super().backward(loss)


class Hooked(SFTTrainer):
    def post_loss(self, loss):
        return loss * 1.0


@pytest.mark.parametrize("trainer", [OwnLoss, FunctionLoss, Backward, Hooked])
def test_the_open_way_gives_the_named_losss_gradients(service, tmp_path, trainer):
    data = rows(6)
    config = settings(tmp_path, name="named", batch_size=6, mini_bs=4, epochs=3)
    events, own_events = Recorder(), Recorder()
    SFTTrainer(config, client=service, train_data=data, event_sinks=[events]).fit()
    made = trainer({**config, "name": "own"}, client=service, train_data=data, event_sinks=[own_events])
    made.fit()
    # fp32: two passes instead of one, sums in another order
    assert own_events.values("loss") == pytest.approx(events.values("loss"), rel=1e-4)
    assert own_events.values("grad_norm") == pytest.approx(events.values("grad_norm"), rel=1e-3)
    if trainer is Backward:
        assert made.seen
    if trainer is FunctionLoss:
        assert own_events.values("mine") == [3.0] * 3


def test_a_hook_that_scales_the_loss_scales_the_gradient(service, tmp_path):
    class Halved(SFTTrainer):
        def post_loss(self, loss):
            return loss / 2

    class Mixed(SFTTrainer):
        def loss(self, batch):
            return super().loss(batch) + reference_loss(self, batch)

    data, norms = rows(4), {}
    for trainer in (SFTTrainer, Halved, Mixed):
        config = settings(tmp_path, name=trainer.__name__, epochs=1, optimizer={"lr": 1e-3, "grad_clip": 0})
        _, events = fit(service, config, data, trainer=trainer)
        norms[trainer] = events.values("grad_norm")[0]
    assert norms[Halved] == pytest.approx(norms[SFTTrainer] / 2, rel=1e-4)
    assert norms[Mixed] == pytest.approx(norms[SFTTrainer] * 2, rel=1e-4)


def test_a_hook_that_changes_the_batch_changes_the_loss(service, tmp_path):
    class First(SFTTrainer):
        def pre_step(self, batch):
            return batch[:1]

    data = rows(4)
    config = settings(tmp_path, epochs=1, data={"shuffle": False})
    _, events = fit(service, config, data, trainer=First)
    _, alone = fit(service, {**config, "name": "alone", "batch_size": 1}, data)
    assert events.values("num_rows") == [1]
    assert events.values("loss")[0] == pytest.approx(alone.values("loss")[0], rel=1e-5)


def test_an_evaluation_at_exactly_these_steps_changes_no_gradient(service, tmp_path):
    data, held_out = rows(12), rows(5, seed=1)
    config = settings(tmp_path, epochs=2)
    _, plain = fit(service, config, data)
    evaluated = {**config, "name": "evaluated", "eval_interval": 2}
    result, events = fit(service, evaluated, data, test_data=held_out)
    assert events.values("step", "eval") == [2, 4, 6]
    assert events.values("loss") == plain.values("loss")
    assert result.extra["eval/loss"] == events.values("eval/loss", "eval")[-1]
    assert result.accuracy is None


def test_evaluate_in_any_state(service, tmp_path):
    data = rows(8)
    trainer = SFTTrainer(settings(tmp_path, epochs=4, optimizer={"lr": 2e-2}), client=service, train_data=data)
    with trainer:
        before = trainer.evaluate(data)
        assert trainer.state == "created"
        assert (before.steps, before.accuracy) == (2, None)
        empty = trainer.evaluate([])
        assert empty.steps == 0
        assert math.isnan(empty.loss)
        trainer.validate()
        trainer.train()
        assert trainer.evaluate(data).loss < before.loss


def test_accuracy_is_what_the_reward_function_says_of_answers(service, tmp_path):
    asked = []

    def score(prompt, completion, answer):
        asked.append((prompt, completion, answer))
        return 0.5

    config = settings(tmp_path, epochs=1, eval_interval=1, sampling={"max_tokens": 3})
    data = [{"prompt": f"{word}?", "response": word} for word in ("apple", "river")]
    result, events = fit(service, config, data, test_data=data[:1], reward_fn=score)
    assert result.accuracy == 0.5
    prompt, completion, answer = asked[0]
    assert ("apple?" in prompt, "apple" in answer) == (True, True)
    assert events.of("eval")[0]["samples"][0]["completion"] == completion


def test_steps_by_hand(service, tmp_path):
    events = Recorder()
    with SFTTrainer(settings(tmp_path), client=service, train_data=rows(4), event_sinks=[events]) as trainer:
        trainer.init()
        first = trainer.step(rows(4))
        other = trainer.step(rows(4), lambda batch, logprobs: -sum(p.sum() for p in logprobs) / 10)
        assert trainer.global_step == 2
        assert first["loss"] > 0 < other["loss"]
        assert trainer.state == "created"
    assert [event["type"] for event in events] == ["started", "log", "log", "completed"]


def test_a_row_weighted_otherwise_counts_so(service, tmp_path):
    row = rows(1, answer=(3, 3))[0]
    weighted = TrainSequence(row.tokens, [0.5 * weight for weight in row.loss_mask])
    config = settings(tmp_path, batch_size=1, epochs=1)
    _, plain = fit(service, config, [row])
    _, half = fit(service, {**config, "name": "half"}, [weighted])
    # a mean by weight: all weights halved change nothing
    assert half.values("loss") == pytest.approx(plain.values("loss"), rel=1e-6)


def test_an_evaluations_loss_is_the_mean_over_all_targets_however_they_are_cut(service, tmp_path):
    """1e-6 relative: the same fp32 sums in another order."""
    data = rows(11, answer=(1, 9))

    class Own(SFTTrainer):
        def loss(self, batch):
            logprobs = self.forward(batch)
            weights = [torch.tensor(row.loss_mask) for row in batch]
            return -sum((p * w).sum() for p, w in zip(logprobs, weights, strict=True)) / self.normalizer(batch)

    found = []
    for kind, batch_size, mini_bs in ((SFTTrainer, 16, None), (SFTTrainer, 3, 2), (Own, 16, None), (Own, 3, None)):
        name = f"{kind.__name__}-{batch_size}"
        config = settings(tmp_path, name=name, batch_size=batch_size, mini_bs=mini_bs)
        with kind(config, client=service, train_data=data) as trainer:
            trainer.init()
            found.append(trainer.evaluate(data).loss)
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)
