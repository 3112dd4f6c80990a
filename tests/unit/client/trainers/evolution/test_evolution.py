"""The driver of evolution, with a strategy whose every answer is known: order, ends, limits, errors."""

import asyncio
import threading

import pytest

from farstep.trainers import ConfigError, TrainerError
from farstep.trainers.evolution import Evolution, EvolutionConfig, EvolutionError, Round, Trained, TrainerStrategy
from farstep.trainers.operators import LLMCallOperator, OperatorTrainer
from tests.unit.client.trainers.operators.scripted import ROWS, Improver, exact, model


class Known:
    """Accuracies in their order; notes its calls."""

    def __init__(self, *accuracies, fails_in=None):
        self.accuracies = accuracies
        self.fails_in = fails_in
        self.calls = []
        self.cancelled = ""

    def _note(self, *call):
        self.calls.append(call)
        if call[:2] == self.fails_in:
            raise ZeroDivisionError("oh")

    def synthesize(self, epoch, rows):
        self._note("synthesize", epoch)
        return [*rows, {"n": len(rows)}]

    def train(self, given):
        assert isinstance(given, Round)
        self._note("train", given.epoch, len(given.rows), given.path)
        return Trained(f"checkpoint-{given.epoch}", loss=1 / given.epoch, metrics={"train": 1.0})

    def evaluate(self, epoch):
        self._note("evaluate", epoch)
        return Trained("", accuracy=self.accuracies[epoch - 1])

    def finish(self, epoch):
        self.calls.append(("finish", epoch))

    def reset(self):
        self.calls.append(("reset",))

    def cancel(self, reason):
        self.cancelled = reason


def test_phases_come_in_order_and_weights_go_on_by_path():
    known, seen = Known(0.2, 0.6, 0.4), []
    evolution = Evolution(known, {"max_epochs": 3}, on_epoch=seen.append)
    assert evolution.state == "idle"
    result = evolution.run([{"n": -1}])
    assert known.calls == [
        ("synthesize", 1), ("train", 1, 2, None), ("evaluate", 1), ("finish", 1),
        ("synthesize", 2), ("train", 2, 3, "checkpoint-1"), ("evaluate", 2), ("finish", 2),
        ("synthesize", 3), ("train", 3, 4, "checkpoint-2"), ("evaluate", 3), ("finish", 3),
    ]  # fmt: skip
    assert (result.best_epoch, result.best_path, result.final_accuracy) == (2, "checkpoint-2", 0.4)
    assert not result.early_stopped
    assert evolution.state == "completed"
    assert seen == result.epochs
    assert (seen[0].dataset_size, seen[0].loss, seen[0].metrics) == (2, 1.0, {"train": 1.0})


def test_it_stops_where_it_is_good_enough():
    known = Known(0.2, 0.9, 1.0)
    result = Evolution(known, {"max_epochs": 3, "early_stop_threshold": 0.9}).run()
    assert result.early_stopped
    assert "0.9 is as good as wanted" in result.stopped_because
    assert (len(result.epochs), result.best_epoch) == (2, 2)
    assert not Evolution(Known(1.0, 1.0), {"max_epochs": 2}).run().early_stopped


def test_equally_good_epochs_leave_the_first_the_best_and_without_accuracies_the_loss_decides():
    assert Evolution(Known(0.5, 0.5), {"max_epochs": 2}).run().best_epoch == 1
    assert Evolution(Known(), {"max_epochs": 3, "phases": ["training"]}).run().best_epoch == 3
    assert Evolution(Known(), {"phases": "synthesis"}).run().best_epoch is None


def test_it_runs_once_until_it_is_reset():
    known = Known(0.1)
    evolution = Evolution(known)
    evolution.run()
    with pytest.raises(TrainerError, match=r"idle, and this one is completed.*reset\(\)"):
        evolution.run()
    evolution.reset()
    assert evolution.epochs == []
    assert known.calls[-1] == ("reset",)
    assert evolution.run().final_accuracy == 0.1


def test_it_is_not_run_or_reset_while_it_runs():
    class Within(Known):
        def evaluate(self, epoch):
            with pytest.raises(TrainerError, match="this one is running"):
                evolution.run()
            with pytest.raises(TrainerError, match="it is running"):
                evolution.reset()
            return super().evaluate(epoch)

    evolution = Evolution(Within(0.3))
    assert evolution.run().final_accuracy == 0.3


def test_phases_are_put_in_order_and_only_those_wanted_run():
    known = Known(0.5)
    assert EvolutionConfig(phases=["evaluation", "training"]).phases == ("training", "evaluation")
    Evolution(known, {"phases": ["evaluation", "training"]}).run()
    assert [call[0] for call in known.calls] == ["train", "evaluate", "finish"]


def test_the_data_set_is_capped_and_what_is_left_out_is_counted():
    known = Known(0.1, 0.2, 0.3)
    result = Evolution(known, {"max_epochs": 3, "max_dataset_size": 3}).run([{"n": 0}, {"n": 1}])
    assert [(each.dataset_size, each.num_dropped) for each in result.epochs] == [(3, 0), (3, 1), (3, 1)]
    assert known.calls[-3] == ("train", 3, 3, "checkpoint-2")
    many = Evolution(Known(0.1), {"max_dataset_size": 0}).run([{}] * 100_001)
    assert many.epochs[0].dataset_size == 100_002
    assert Evolution(Known(0.1)).run([{}] * 100_001).epochs[0].num_dropped == 2


@pytest.mark.parametrize(("verb", "phase"), [("synthesize", "synthesis"), ("train", "training"),
                                             ("evaluate", "evaluation")])  # fmt: skip
def test_an_error_carries_its_epoch_and_earlier_epochs_stay(verb, phase):
    known = Known(0.1, 0.2, 0.3, fails_in=(verb, 2))
    evolution = Evolution(known, {"max_epochs": 3})
    with pytest.raises(EvolutionError, match=f"epoch 2, {phase}: ZeroDivisionError: oh") as raised:
        evolution.run()
    assert (raised.value.epoch, raised.value.phase) == (2, phase)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert evolution.state == "failed"
    assert [each.epoch for each in evolution.epochs] == [1]
    assert known.calls[-1] == ("finish", 2)
    with pytest.raises(TrainerError, match="failed"):
        evolution.run()


def test_a_threshold_needs_an_accuracy():
    with pytest.raises(EvolutionError, match="gives no accuracy"):
        Evolution(Known(None), {"early_stop_threshold": 0.5}).run()


def test_cancelled_from_another_task_it_ends_after_what_is_under_way():
    began, go_on = threading.Event(), threading.Event()

    class Waits(Known):
        def train(self, given):
            began.set()
            assert go_on.wait(60)
            return super().train(given)

        def cancel(self, reason):
            super().cancel(reason)
            go_on.set()

    known = Waits(0.1, 0.2)
    evolution = Evolution(known, {"max_epochs": 2})

    async def main():
        running = asyncio.create_task(evolution.run_async())
        await asyncio.to_thread(began.wait, 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert evolution.state == "cancelled"
    assert known.cancelled == "the task was cancelled"
    assert len(evolution.epochs) == 1


def test_wrong_settings_are_named():
    for settings, place in [({"max_epochs": 0}, "max_epochs"), ({"early_stop_threshold": 1.5}, "early_stop_threshold"),
                            ({"phases": []}, "phases"), ({"phases": ["training", "training"]}, "phases"),
                            ({"phases": ["judging"]}, "phases"), ({"max_dataset_size": -1}, "max_dataset_size"),
                            ({"epochs": 3}, "epochs: unknown setting")]:  # fmt: skip
        with pytest.raises(ConfigError, match=place):
            EvolutionConfig(**settings)


def test_real_operator_trainers_take_turns(tmp_path):
    """Rounds of a real trainer: each new, each beginning where the last one ended."""
    operator = LLMCallOperator("answer", model, system_prompt="You are {style}.")
    made = []

    def make(given):
        settings = {"name": f"round-{given.epoch}", "output_dir": str(tmp_path), "epochs": 1}
        trainer = OperatorTrainer(settings, client=Improver("UPPER", "STRIP"), agent=operator, train_data=given.rows,
                                  reward_fn=exact)  # fmt: skip
        made.append((trainer, given.path))
        return trainer

    strategy = TrainerStrategy(make, test_data=ROWS[:3], synthesize=lambda epoch, rows: [*rows, ROWS[epoch]])
    result = Evolution(strategy, {"max_epochs": 5, "early_stop_threshold": 1.0}).run(ROWS[:2])
    assert [each.accuracy for each in result.epochs] == [0.5, 1.0]
    assert [each.dataset_size for each in result.epochs] == [3, 4]
    assert result.early_stopped
    assert [path for _, path in made] == [None, result.epochs[0].path]
    assert result.best_path.endswith("round-2/checkpoints/checkpoint_1.json")
    assert all(str(trainer.state) == "completed" for trainer, _ in made)


def test_every_round_needs_a_trainer_of_its_own(tmp_path):
    operator = LLMCallOperator("answer", model)
    trainer = OperatorTrainer({"output_dir": str(tmp_path)}, client=Improver(), agent=operator, train_data=ROWS,
                              reward_fn=exact)  # fmt: skip
    with pytest.raises(EvolutionError, match="epoch 2, training: make_trainer gave a trainer that it gave before"):
        Evolution(TrainerStrategy(lambda given: trainer), {"max_epochs": 2}).run(ROWS)
    with pytest.raises(EvolutionError, match="epoch 1, training: make_trainer gave a dict"):
        Evolution(TrainerStrategy(lambda given: {}), {"max_epochs": 2}).run(ROWS)
