"""DPO and IPO through real servers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from farstep.trainers import DPOTrainer, IPOTrainer, SFTTrainer
from tests.support.trainees import Recorder, pairs, rows, settings


def fit(service, config, data, *, trainer=DPOTrainer, **options):
    events = Recorder()
    result = trainer(config, client=service, train_data=data, event_sinks=[events], **options).fit()
    return result, events


def test_from_ln_2_to_an_accuracy_of_one(service, tmp_path):
    config = settings(tmp_path, epochs=5, optimizer={"lr": 1e-2}, eval_interval=10)
    result, events = fit(service, config, data := pairs(8), test_data=data)
    assert events.values("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert result.accuracy == events.values("eval/accuracy", "eval")[-1] == 1.0
    assert result.extra["eval/margin"] > 0.5
    assert events.values("margin")[0] == 0.0
    assert result.steps == 10


def test_ipo_begins_at_its_own_number(service, tmp_path):
    config = settings(tmp_path, epochs=4, optimizer={"lr": 2e-3}, preference={"beta": 0.5})
    result, events = fit(service, config, pairs(4), trainer=IPOTrainer)
    assert events.values("loss")[0] == pytest.approx(1.0, abs=1e-6)  # (0 − 1 / (2·0.5))²
    assert events.values("loss")[-1] < 1.0
    assert result.accuracy == 1.0


def test_rows_of_prompt_chosen_rejected(service, tmp_path):
    data = [{"prompt": f"{n}+1?", "chosen": str(n + 1), "rejected": str(n + 2)} for n in range(4)]
    result, events = fit(service, settings(tmp_path, epochs=6, optimizer={"lr": 1e-2}), data)
    assert events.values("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert result.accuracy == 1.0


def reference_logprobs(service, path, data):
    """Of a run that begins with these weights."""
    run = service.create_training_client_from_state(path)
    outputs = run.forward([row.to_datum() for pair in data for row in pair]).result().loss_fn_outputs
    return [output["logprobs"].to_numpy() for output in outputs]


def test_after_sft_the_reference_is_what_sft_made(service, tmp_path):
    config = settings(tmp_path, epochs=4, optimizer={"lr": 1e-2})
    sft = Recorder()
    SFTTrainer(config, client=service, train_data=rows(8), event_sinks=[sft]).fit()
    path = sft.of("checkpoint")[-1]["path"]
    model = {**config["model"], "path": path}
    data = pairs(4)
    seen = []

    class Watching(DPOTrainer):
        def pre_loss(self, batch):
            seen.extend(batch)
            return batch

    more = {**config, "name": "dpo", "model": model, "data": {"shuffle": False}, "epochs": 1}
    _, events = fit(service, more, data, trainer=Watching)
    assert events.values("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    for row, expected in zip(seen, reference_logprobs(service, path, data), strict=True):
        np.testing.assert_allclose(row.ref_logprobs[1:], expected, atol=1e-5)


def test_a_checkpoint_is_the_reference_where_it_is_named(service, tmp_path):
    config = settings(tmp_path, epochs=4, optimizer={"lr": 1e-2})
    sft = Recorder()
    SFTTrainer(config, client=service, train_data=rows(8), event_sinks=[sft]).fit()
    path = sft.of("checkpoint")[-1]["path"]
    data, seen = pairs(4), []

    class Watching(DPOTrainer):
        def pre_loss(self, batch):
            seen.extend(batch)
            return batch

    more = {**config, "name": "dpo", "data": {"shuffle": False}, "epochs": 1, "preference": {"reference": path}}
    _, events = fit(service, more, data, trainer=Watching)
    assert abs(events.values("loss")[0] - math.log(2)) > 1e-3  # a fresh adapter is not what SFT made
    for row, expected in zip(seen, reference_logprobs(service, path, data), strict=True):
        np.testing.assert_allclose(row.ref_logprobs[1:], expected, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_the_formula(service, tmp_path, smoothing):
    beta = 0.3

    def formula(batch, logprobs):
        """Rafailov et al. 2023, eq. 7; label smoothing as in cDPO."""
        ratios = [
            (p - torch.tensor(row.ref_logprobs))[torch.tensor(row.loss_mask) != 0].sum()
            for p, row in zip(logprobs, batch, strict=True)
        ]
        delta = beta * (torch.stack(ratios[::2]) - torch.stack(ratios[1::2]))
        return (-(1 - smoothing) * F.logsigmoid(delta) - smoothing * F.logsigmoid(-delta)).mean()

    class Formula(DPOTrainer):
        loss_fn = staticmethod(formula)

    preference = {"beta": beta, "label_smoothing": smoothing}
    config = settings(tmp_path, epochs=2, preference=preference, mini_bs=4)
    _, named = fit(service, config, pairs(6))
    _, own = fit(service, {**config, "name": "own"}, pairs(6), trainer=Formula)
    assert own.values("loss") == pytest.approx(named.values("loss"), rel=1e-4)
    assert own.values("grad_norm") == pytest.approx(named.values("grad_norm"), rel=1e-3)


def test_pairs_are_never_parted(service, tmp_path):
    config = settings(tmp_path, epochs=2, optimizer={"lr": 5e-3})
    _, whole = fit(service, config, pairs(4))
    _, cut = fit(service, {**config, "name": "cut", "mini_bs": 3}, pairs(4))  # passes of one pair
    assert cut.values("loss") == pytest.approx(whole.values("loss"), rel=1e-4)
    assert cut.values("accuracy") == whole.values("accuracy")


def test_the_reference_is_asked_once_for_each_row(service, tmp_path):
    trainer = DPOTrainer(settings(tmp_path, epochs=3), client=service, train_data=pairs(6))
    asked = []
    with trainer:
        trainer.validate()
        trainer.init()
        forward = trainer.client.forward

        def counting(data, *args, **kwargs):
            asked.append((len(data), kwargs.get("adapter")))
            return forward(data, *args, **kwargs)

        trainer.client.forward = counting
        trainer.train()
    assert sum(number for number, adapter in asked if adapter == "start") == 12
