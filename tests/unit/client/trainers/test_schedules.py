"""Schedules against transformers', step by step."""

import pytest
import torch
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from farstep.trainers import RegistryError, Schedule
from farstep.trainers.schedules import share_of

TOTAL, WARMUP = 20, 4


def table(make, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer, num_warmup_steps=WARMUP, **settings)
    rates = []
    for _ in range(TOTAL + 3):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("name", "settings", "make", "theirs"),
    [
        ("constant", {}, get_constant_schedule_with_warmup, {}),
        ("linear", {}, get_linear_schedule_with_warmup, {"num_training_steps": TOTAL}),
        (
            "cosine",
            {"min_lr_ratio": 0.2},
            get_cosine_with_min_lr_schedule_with_warmup,
            {"num_training_steps": TOTAL, "min_lr_rate": 0.2},
        ),
        (
            "wsd",
            {"decay_steps": 6, "decay": "linear"},
            get_wsd_schedule,
            {"num_stable_steps": 10, "num_decay_steps": 6, "decay_type": "linear"},
        ),
        (
            "wsd",
            {"decay_steps": 6, "decay": "cosine"},
            get_wsd_schedule,
            {"num_stable_steps": 10, "num_decay_steps": 6, "decay_type": "cosine"},
        ),
        (
            "wsd",
            {"decay_steps": 6, "decay": "sqrt"},
            get_wsd_schedule,
            {"num_stable_steps": 10, "num_decay_steps": 6, "decay_type": "1-sqrt"},
        ),
    ],
)
def test_the_rates_are_those_of_transformers(name, settings, make, theirs):
    schedule = Schedule.get(name)(total_steps=TOTAL, warmup_steps=WARMUP, **settings)
    ours = [schedule(step) for step in range(TOTAL)]
    assert ours == pytest.approx(table(make, **theirs)[:TOTAL], abs=1e-12)


def test_the_floor_holds_and_stays_after_the_end():
    schedule = Schedule.get("linear")(total_steps=10, min_lr_ratio=0.1)
    assert [schedule(step) for step in (0, 5, 10, 99)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    wsd = Schedule.get("wsd")(total_steps=100, min_lr_ratio=0.5)
    assert [wsd(step) for step in (89, 90, 95, 100, 101)] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])


def test_steps_or_a_share_of_them():
    assert share_of(None, 0.1, 25) == 3  # rounded up, as transformers does
    assert share_of(7, None, 5) == 5
    assert share_of(None, None, 5) is None


def test_one_of_ones_own_is_found_by_name():
    class Halving(Schedule):
        name = "halving"

        def after_warmup(self, step):
            return 0.5**step

    assert Schedule.get("halving")(total_steps=3, warmup_steps=1)(2) == 0.25
    Schedule._classes.pop("halving")
    with pytest.raises(RegistryError, match="did you mean 'cosine'"):
        Schedule.get("cosinus")
