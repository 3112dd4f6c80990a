"""What a run says and how it ends: events, callbacks, trackers, errors, cancellation; and what may be overridden."""

import asyncio
import json

import pytest

from farstep.errors import RemoteOpError
from farstep.trainers import ConfigError, DataError, SFTTrainer, TrainerError
from farstep.trainers.events import read_events
from tests.support.trainees import Recorder, rows, settings


def made(service, tmp_path, data=None, *, trainer=SFTTrainer, **options):
    events = Recorder()
    changes = {name: options.pop(name) for name in list(options) if name not in OPTIONS}
    config = settings(tmp_path, **changes)
    data = rows(8) if data is None else data
    return trainer(config, client=service, train_data=data, event_sinks=[events], **options), events


OPTIONS = {"callbacks", "test_data", "hooks", "reward_fn"}


def test_events_come_in_order_are_json_and_end_once(service, tmp_path):
    trainer, events = made(service, tmp_path, epochs=2, eval_interval=2, test_data=rows(2))
    trainer.fit()
    kinds = [event["type"] for event in events]
    assert kinds == ["started", "log", "log", "eval", "log", "log", "eval", "checkpoint", "completed"]
    assert [event["seq"] for event in events] == list(range(1, 10))
    assert read_events(tmp_path / "run" / "events.jsonl") == list(events)
    assert all(json.loads(json.dumps(event)) == event for event in events)
    assert {event["run"] for event in events} == {trainer.client.run_id}
    assert events[1]["total_steps"] == 4
    assert events.of("log")[-1]["eta_s"] == 0.0


def test_callbacks_are_called_in_order_and_awaited(service, tmp_path):
    said = []

    class Watch:
        def on_started(self, event):
            said.append("started")

        async def on_log(self, event):
            await asyncio.sleep(0)
            said.append(f"log {event['step']}")

        def on_checkpoint(self, event):
            said.append("checkpoint")

        def on_completed(self, event):
            said.append("completed")

    trainer, _ = made(service, tmp_path, callbacks=[Watch(), {"on_completed": lambda event: said.append("mapping")}])
    trainer.fit()
    assert said == ["started", "log 1", "log 2", "checkpoint", "completed", "mapping"]


def test_infer_answers_from_that_very_step(service, tmp_path):
    answers, probes = {}, {}

    def on_checkpoint(event, infer):
        answers[event["step"]] = infer("apple?", max_tokens=4, temperature=0)
        probes[event["step"]] = infer

    data = [{"prompt": "apple?", "response": "zzzz"}]
    trainer, _ = made(
        service,
        tmp_path,
        data,
        callbacks=[{"on_checkpoint": on_checkpoint}],
        epochs=16,
        optimizer={"lr": 2e-2},
        checkpoint=[{"type": "state", "save_every_n_steps": 8}],
    )
    trainer.fit()
    assert sorted(answers) == [8, 16]
    assert answers[16].completion.startswith("zz")
    assert answers[16].policy_version > answers[8].policy_version
    with pytest.raises(RuntimeError, match="the weights have moved on"):
        probes[8]("apple?")


@pytest.mark.parametrize("how", ["raise", "log"])
def test_what_a_callback_raises_ends_the_run_or_is_logged(service, tmp_path, how, caplog):
    def on_log(event):
        raise LookupError("no such thing")

    trainer, events = made(service, tmp_path, callbacks=[{"on_log": on_log}], callback_errors=how)
    if how == "log":
        assert trainer.fit().steps == 2
        assert "no such thing" in caplog.text
        return
    with pytest.raises(TrainerError, match="no such thing") as caught:
        trainer.fit()
    assert isinstance(caught.value.__cause__, LookupError)
    assert trainer.state == "failed"
    assert [event["type"] for event in events][-1] == "failed"
    assert events[-1]["error_class"] == "LookupError"


def test_what_fails_in_the_loop_is_chained_and_leaves_checkpoints_usable(service, tmp_path):
    class Breaks(SFTTrainer):
        def post_step(self, metrics):
            if self.global_step == 2:
                raise ZeroDivisionError("in the third step")
            return metrics

    trainer, events = made(
        service, tmp_path, trainer=Breaks, epochs=3, checkpoint=[{"type": "state", "save_every_n_steps": 1}]
    )
    with pytest.raises(TrainerError, match="after step 2: ZeroDivisionError: in the third step") as caught:
        trainer.fit()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert (trainer.state, caught.value.stage) == ("failed", "train")
    path = events.of("checkpoint")[-1]["path"]
    run = service.create_training_client_from_state_with_optimizer(path)
    assert run.forward([rows(1)[0].to_datum()]).result().loss > 0
    with pytest.raises(TrainerError, match="this one is failed"):
        trainer.train()


def test_memory_that_runs_out_comes_with_the_numbers_to_lower(service, tmp_path):
    class Breaks(SFTTrainer):
        def pre_step(self, batch):
            raise RemoteOpError("out of memory", error_class="OutOfMemoryError")

    trainer, _ = made(service, tmp_path, trainer=Breaks, mini_bs=2)
    with pytest.raises(TrainerError, match=r"lower mini_bs \(now 2\)"):
        trainer.fit()


def test_cancelling_from_a_callback_ends_with_a_checkpoint(service, tmp_path):
    class Cancel:
        def on_log(self, event):
            if event["step"] == 2:
                trainer.cancel("enough")

    trainer, events = made(service, tmp_path, callbacks=[Cancel()], epochs=5)
    result = trainer.fit()
    assert trainer.state == "cancelled"
    assert result.stopped_because == "enough"
    assert result.steps < 10
    assert [event["type"] for event in events][-2:] == ["checkpoint", "cancelled"]


def labels_and_steps(service, events):
    """What a checkpoint is called, and what the server says of it."""
    kept = {each.path: each.step for each in service.list_checkpoints(events[0]["run_id"])}
    return [(event["step"], kept[event["path"]]) for event in events.of("checkpoint")]


def test_a_checkpoint_in_mid_flight_is_of_the_steps_that_it_says(service, tmp_path):
    class Save:
        def on_log(self, event):
            if event["step"] == 1:
                trainer.checkpoint()

    trainer, events = made(service, tmp_path, callbacks=[Save()], epochs=3)
    result = trainer.fit()
    assert result.steps == 6
    assert events.values("step") == [1, 2, 3, 4, 5, 6]
    found = labels_and_steps(service, events)
    assert [label for label, _ in found] == [2, 6]  # the second step was under way
    assert all(label == step for label, step in found)


def test_an_interruption_saves_what_was_under_way_and_is_gone_on_with(service, tmp_path):
    def interrupt(event):
        if event["step"] == 2:
            raise KeyboardInterrupt

    options = {"epochs": 2, "checkpoint": [{"type": "state", "auto_resume": True}]}
    trainer, events = made(service, tmp_path, callbacks=[{"on_log": interrupt}], **options)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.state == "cancelled"
    assert [event["type"] for event in events][-2:] == ["checkpoint", "cancelled"]
    assert events[-1]["reason"] == "interrupted from the keyboard"
    assert all(label == step for label, step in labels_and_steps(service, events))
    again, others = made(service, tmp_path, **options)
    again.fit()
    whole, wanted = made(service, tmp_path / "whole", epochs=2)
    whole.fit()
    assert events.values("loss") + others.values("loss") == wanted.values("loss")


def test_a_dry_run_goes_through_every_stage_in_small(service, tmp_path):
    data = [{"prompt": f"{n}?", "response": str(n)} for n in range(60)]
    trainer, events = made(service, tmp_path, data, epochs=9, batch_size=2, dry_run=True)
    assert trainer.fit().steps == 10
    assert events[0]["dry_run"] is True
    assert events[0]["num_examples"] <= 50
    assert {"log", "checkpoint", "completed"} <= {event["type"] for event in events}


async def test_train_async_leaves_the_loop_free_and_is_cancelled_at_a_step(service, tmp_path):
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    class Slow(SFTTrainer):
        def post_step(self, metrics):
            loop.call_soon_threadsafe(begun.set)
            return metrics

    trainer, events = made(service, tmp_path, trainer=Slow, epochs=10_000)
    trainer.validate()
    task = asyncio.create_task(trainer.train_async())
    await begun.wait()  # the loop is free meanwhile
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert trainer.state == "cancelled"
    assert events[-1]["type"] == "cancelled"
    async with trainer:
        pass


async def test_the_awaited_twins_give_the_same(service, tmp_path):
    trainer, _ = made(service, tmp_path, epochs=1)
    async with trainer:
        trainer.validate()
        await trainer.init_async()
        result = await trainer.train_async()
        assert result.steps == 2
        assert (await trainer.evaluate_async(rows(2))).steps == 1


def test_init_is_once_and_what_needs_it_says_so(service, tmp_path):
    trainer, _ = made(service, tmp_path)
    with pytest.raises(TrainerError, match=r"step needs init\(\) first"):
        trainer.step(rows(4))
    with pytest.raises(TrainerError, match="the tokenizer comes with the model"):
        trainer.get_tokenizer()
    with pytest.raises(TrainerError, match=r"checkpoint needs init\(\) first"):
        trainer.checkpoint()
    for name in ("training_horizon", "warmup_steps"):
        with pytest.raises(TrainerError, match=r"the number of steps needs init\(\) first"):
            getattr(trainer, name)
    with trainer:
        trainer.init()
        with pytest.raises(TrainerError, match="init was called before"):
            trainer.init()
        assert trainer.device == "cpu"
        assert trainer.model_unwrapped is trainer.client
        with pytest.raises(TypeError, match=r"batch\[1\]: must be a TrainSequence"):
            trainer.step([rows(1)[0], {"tokens": []}])
        for name in ("mini_bs", "gradient_accumulation_steps"):
            with pytest.raises(DataError, match=f"{name}: 0, and at least 1 is needed"):
                trainer.step(rows(1), **{name: 0})
    with pytest.raises(TrainerError, match="this trainer is closed"):
        trainer.step(rows(4))
    trainer.close()


def test_with_closes_after_an_exception_and_says_failed(service, tmp_path):
    trainer, events = made(service, tmp_path)

    def by_hand():
        with trainer:
            trainer.init()
            trainer.step(rows(4))
            raise LookupError("mine")

    with pytest.raises(LookupError):
        by_hand()
    assert [event["type"] for event in events] == ["started", "log", "failed"]
    client = service.create_lora_training_client("farstep/tiny", rank=4)  # a client that was given stays open
    assert client.health()


def test_a_training_client_of_ones_own_is_trained_on_and_left_open(service, tmp_path):
    client = service.create_lora_training_client("farstep/tiny", rank=4, seed=1)
    events = Recorder()
    SFTTrainer(settings(tmp_path), client=client, train_data=rows(8), event_sinks=[events]).fit()
    assert client.step == 2
    _, other = made(service, tmp_path / "other")
    SFTTrainer(settings(tmp_path / "other"), client=service, train_data=rows(8), event_sinks=[other]).fit()
    assert events.values("loss") == other.values("loss")
    export = settings(tmp_path, name="export", checkpoint=[{"type": "export"}])
    with pytest.raises(TrainerError, match="only a ServiceClient exports"):
        SFTTrainer(export, client=client, train_data=rows(8)).fit()


def test_train_with_arguments_points_to_step(service, tmp_path):
    trainer, _ = made(service, tmp_path)
    with pytest.raises(TypeError, match=r"step\(batch, loss_fn\)"):
        trainer.train(rows(1), lambda batch, logprobs: 0)
    assert trainer.state == "created"


def test_each_part_can_be_replaced_and_the_others_work(service, tmp_path):
    said = []

    class Step(SFTTrainer):
        def step(self, batch):
            said.append("step")
            loss = self.loss(batch)
            self.backward(loss)
            return {**self.optim_step(), "loss": loss.item()}

    class Epoch(SFTTrainer):
        def epoch(self):
            said.append("epoch")
            for batch in self.train_batches:
                self.step(batch)

    class Train(SFTTrainer):
        def train(self):
            said.append("train")
            for _ in self.epochs:
                self.epoch()

    class Checkpoint(SFTTrainer):
        def checkpoint(self):
            said.append(f"checkpoint {self.global_step}")
            super().checkpoint()

    class Evaluate(SFTTrainer):
        def evaluate(self, test_data=None):
            said.append("evaluate")
            return super().evaluate(test_data)

    expected = {
        Step: ["step"] * 4,
        Epoch: ["epoch"] * 2,
        Train: ["train"],
        Checkpoint: ["checkpoint 4"],
        Evaluate: ["evaluate"] * 2,
    }
    losses = {}
    for kind, calls in expected.items():
        said.clear()
        trainer, events = made(
            service, tmp_path, trainer=kind, name=kind.__name__, epochs=2, eval_interval=2, test_data=rows(2)
        )
        result = trainer.fit()
        assert said == calls
        assert result.steps == trainer.global_step == 4
        assert events.values("step") == [1, 2, 3, 4]
        assert events.values("step", "eval") == [2, 4]
        assert events.values("step", "checkpoint") == [4]
        losses[kind] = events.values("loss")
    for kind in expected:
        assert losses[kind] == pytest.approx(losses[Train], rel=1e-4)  # Step goes the open way: fp32, other sums


def test_steps_submitted_ahead_are_the_steps_one_by_one(service, tmp_path):
    class OneByOne(SFTTrainer):
        lookahead = 0

    ahead, events = made(service, tmp_path, epochs=3, name="ahead")
    ahead.fit()
    alone, others = made(service, tmp_path, trainer=OneByOne, epochs=3, name="alone")
    alone.fit()
    assert events.values("loss") == others.values("loss")


def test_several_passes_over_a_batch(service, tmp_path):
    class Twice(SFTTrainer):
        passes = 2

    trainer, events = made(service, tmp_path, trainer=Twice, checkpoint=[{"type": "state", "save_every_n_steps": 1}])
    result = trainer.fit()
    assert events[0]["total_steps"] == result.steps == 4
    assert events.values("step", "checkpoint") == [2, 4]  # never inside a batch: the cursor cannot say that
    first, second, *_ = events.values("loss")
    assert second < first


def test_hooks_fire_at_their_places_in_their_order(service, tmp_path):
    said = []

    class Parent(SFTTrainer):
        def pre_step(self, batch):
            said.append("parent")
            return batch

    class Child(Parent):
        hooks = (("post-train", lambda result: said.append("trained") or result),)

        def pre_step(self, batch):
            said.append("child")
            return batch

        def pre_init(self):
            said.append("init")

    def note(where):
        def hook(batch):
            said.append(where)
            return batch

        return hook

    trainer, _ = made(service, tmp_path, rows(4), trainer=Child, hooks=[("pre-step", note("given"))])
    trainer.check_config({"hooks": (("pre-step", note("config")),)})
    trainer.fit()
    assert said == ["init", "parent", "child", "config", "given", "trained"]


def test_completions_are_shown_with_an_evaluation(service, tmp_path):
    data = [{"prompt": f"{word}?", "response": word} for word in ("apple", "river", "stone")]
    trainer, events = made(
        service, tmp_path, data, test_data=data, eval_interval=1, sample_log_count=2, sampling={"max_tokens": 2}
    )
    trainer.fit()
    samples = events.of("eval")[0]["samples"]
    assert len(samples) == 2
    assert "apple?" in samples[0]["prompt"]
    assert samples[0]["completion"]


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_paid(service, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match=r"output_dir: .* cannot be written"):
        SFTTrainer(settings(tmp_path / "file"), client=service, train_data=rows(4)).fit()


def test_four_bits_are_refused(service, tmp_path):
    config = settings(tmp_path, model={"base": "farstep/tiny", "lora": {"r": 4, "load_in_4bit": True}})
    trainer = SFTTrainer(config, client=service, train_data=rows(4))
    with pytest.raises(ConfigError, match=r"model\.lora\.load_in_4bit"):
        trainer.fit()
    assert trainer.state == "created"
