"""Hooks and overrides: what may be written, what it sees, and what a mistake is called."""

import pytest

from farstep.trainers import SFTTrainer, Trainer, TrainerError
from farstep.trainers.hooks import hooked

CONFIG = {"name": "run", "model": "farstep/tiny"}


class Small:
    """What hooks need of a trainer."""

    def __init__(self, **hooks):
        self.hooks, self._active_hooks, self.calls = hooks, set(), []

    def hooks_of(self, when, method):
        from farstep.trainers.hooks import given_hooks

        return given_hooks(type(self), [(f"{when}-{method}", f) for f in self.hooks.get(f"{when}_{method}", ())])

    @hooked
    def init(self): ...
    @hooked
    def loss(self, batch):
        return sum(batch)

    @hooked
    def step(self, batch, loss_fn=None, *, mini_bs=None):
        self.calls.append((batch, loss_fn, mini_bs))
        return self.loss(batch)


class Deeper(Small):
    @hooked
    def step(self, batch, loss_fn=None, *, mini_bs=None):
        return super().step(batch, loss_fn, mini_bs=mini_bs) + 1


def test_a_pre_hook_changes_what_goes_in_and_a_post_hook_what_comes_out():
    small = Small(pre_step=[lambda batch: batch[:1]], post_loss=[lambda loss: loss * 10])
    assert small.step([1, 2], "ce") == 10
    assert small.calls == [([1], "ce", None)]


def test_a_hook_takes_what_it_asks_for_in_its_own_order():
    small = Small(pre_step=[lambda trainer, mini_bs, batch: (7, [len(trainer.calls)])])
    assert small.step([1, 2]) == 0
    assert small.calls == [([0], None, 7)]


def test_hooks_run_once_through_super():
    seen = []

    def note(batch):
        seen.append(batch)
        return batch

    assert Deeper(pre_step=[note]).step([1]) == 2
    assert seen == [[1]]


def test_after_a_failure_hooks_run_again():
    small = Small(pre_loss=[lambda batch: [*batch, 1]])
    with pytest.raises(TypeError):
        small.loss([None])
    assert small.loss([1]) == 2


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"pre_step": [lambda batch: None]}, "returned nothing .*return batch"),
        ({"pre_step": [lambda batch: (batch, 1)]}, "takes one value and returned 2"),
        ({"pre_step": [lambda batch, loss_fn: batch]}, "takes 2 values and returned 1 .*return batch, loss_fn"),
        ({"pre_step": [lambda batch, loss_fn: (batch, 1, 2)]}, "takes 2 values and returned 3"),
        ({"pre_step": [lambda: 3]}, "takes no argument and returns one"),
        ({"post_loss": [lambda loss: None]}, "returned nothing .*return loss"),
        ({"post_loss": [lambda: 3]}, "returns something and takes nothing"),
        ({"pre_step": [lambda bath: bath]}, "asks for 'bath', and step has no such argument .*batch, loss_fn, mini_bs"),
        ({"post_loss": [lambda a, b: a]}, "takes 2 arguments: only what loss returned is there"),
    ],
)
def test_a_mistake_is_named(hooks, message):
    with pytest.raises(TrainerError, match=message):
        Small(**hooks).step([1])


def test_places_that_are_none_are_refused():
    for pair in [("pre-nothing", print), ("before-step", print), ("pre-step", 3), "pre-step"]:
        with pytest.raises(TrainerError, match=r"there is no place|is no pair"):
            SFTTrainer(CONFIG, hooks=[pair])


def test_a_hook_that_would_never_run_is_refused():
    with pytest.raises(TrainerError, match="did you mean pre_step"):

        class Typo(SFTTrainer):
            def pre_stepp(self, batch):
                return batch

    class Arctic(SFTTrainer):
        def post_loss_callback(self, loss):
            return loss

        def pre_process(self):
            """Nobody's place: a method like any other."""

    assert [hook.method for hook in Arctic._class_hooks] == ["loss"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"loss": lambda self: 0},
            r"loss takes \(self\), and is called with \(self, batch\).*write def loss\(self, batch\)",
        ),
        ({"loss": lambda self, rows: 0}, r"takes \(self, rows\)"),
        ({"step": lambda self, batch, must: 0}, "requires 'must', which nobody gives it"),
        ({"epoch": staticmethod(lambda: 0)}, "must be a plain method"),
        ({"backward": 3}, "must be a plain method"),
    ],
)
def test_a_wrong_signature_is_refused_when_the_class_is_made(methods, message):
    with pytest.raises(TrainerError, match=message):
        type("Wrong", (SFTTrainer,), {"name": "wrong", **methods})
    assert "wrong" not in Trainer.names()


def test_an_async_override_is_refused():
    with pytest.raises(TrainerError, match="is async, and the loop calls it as it is"):

        class Wrong(SFTTrainer):
            async def step(self, batch):
                return {}


def test_options_may_be_left_out_or_added():
    class Fine(SFTTrainer):
        def step(self, batch):
            return {}

        def loss(self, batch, scale=1.0):
            return scale

        def evaluate(self, *args, **kwargs):
            return None

    assert {"step", "loss", "evaluate"} <= Fine._overridden
    assert "epoch" not in Fine._overridden
