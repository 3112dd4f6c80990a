"""Operators, synthesis and evolution through real servers and the embedded model.

The model is too small to criticize or to rewrite a prompt: where an optimizer has to be clever, one that knows its
candidates stands in for it (as `tests/unit/client/trainers/operators` does). Everything that is sampled, trained,
saved and loaded here is real.
"""

import json

from farstep.rollout import RolloutSession, SamplingParams
from farstep.trainers import SFTTrainer, TrainSequence
from farstep.trainers.chat import SamplerChat
from farstep.trainers.evolution import Evolution, TrainerStrategy
from farstep.trainers.operators import Change, LLMCallOperator, OperatorTrainer
from farstep.trainers.synthesis import LLMSynthesizer, run_chats, synthesize
from farstep.trainers.trajectory import TrajectoryDataset, items_of_rollout
from tests.support.trainees import rows, settings

WORDS = ("acorn", "cherry", "spider", "zebra")  # the model knows its skills on these


class Candidates:
    """Tries one instruction after another: an optimizer of somebody's own, of two methods and no base."""

    def __init__(self, operator, *prompts):
        self.operator = operator
        self.prompts = list(prompts)
        self.seen = []

    async def backward(self, cases):
        self.seen.append([case.score for case in cases])

    async def step(self):
        before = self.operator["user_prompt"]
        if all(self.seen[-1]) or not self.prompts:
            return []
        self.operator.set("user_prompt", self.prompts.pop(0))
        return [Change(self.operator.name, "user_prompt", before, self.operator["user_prompt"])]


def test_a_bad_prompt_of_a_real_model_gets_better(service, tmp_path):
    with service.create_sampling_client(base_model="farstep/tiny") as client:
        operator = LLMCallOperator("skill", client, user_prompt="reverse {word}", temperature=0.0, max_tokens=20)
        optimizer = Candidates(operator, "sort {word}", "upper {word}")
        data = [{"word": word, "answer": word.upper()} for word in WORDS]
        trainer = OperatorTrainer(
            {"name": "tune", "output_dir": str(tmp_path), "epochs": 3}, client=client, agent=operator,
            optimizer=optimizer, train_data=data, test_data=[{"word": "tulip", "answer": "TULIP"}],
            reward_fn=lambda completion, answer: completion.strip() == answer)  # fmt: skip
        result = trainer.fit()
    assert optimizer.seen == [[0.0] * 4, [0.0] * 4, [1.0] * 4]
    assert (result.accuracy, result.extra["best_epoch"]) == (1.0, 2)
    assert operator["user_prompt"] == "upper {word}"


def test_the_instruction_optimizer_asks_a_real_model_and_takes_no_nonsense(service, tmp_path):
    """What the embedded model writes is no prompt: it is refused, and the prompt stays as it was."""
    with service.create_sampling_client(base_model="farstep/tiny") as client:
        operator = LLMCallOperator("skill", client, system_prompt="{tone}", user_prompt="upper {word}", max_tokens=8)
        trainer = OperatorTrainer(
            {"name": "ask", "model": "farstep/tiny", "output_dir": str(tmp_path), "sampling": {"max_tokens": 8}},
            client=service,
            agent=operator,
            train_data=[{"word": "acorn", "tone": "calm"}],
            reward_fn=lambda completion: 0.0,
        )
        trainer.fit()
    assert operator["system_prompt"] == "{tone}"
    assert [change.reason for change in trainer.changes] == [
        "after 3 attempts: there is nothing between <prompt> and </prompt>"
    ]


def test_many_chats_of_a_real_sampler_in_order_and_gone_on_with(service, tmp_path):
    path = tmp_path / "chats.jsonl"
    tasks = [[{"role": "user", "content": f"upper {word}"}] for word in WORDS * 6]
    wanted = [word.upper() for word in WORDS * 6]
    with service.create_sampling_client(base_model="farstep/tiny") as client:
        chat = SamplerChat(client, temperature=0.0, max_tokens=20)
        first = run_chats(chat, tasks[:10], path=path, max_running=4)
        batch = run_chats(chat, tasks, path=path, max_running=8)
    assert [text.strip() for text in first.texts] == wanted[:10]
    assert [text.strip() for text in batch.texts] == wanted
    assert batch.num_resumed == 10
    assert len(path.read_text().splitlines()) == 24


def test_rollouts_of_a_real_policy_are_kept_as_trajectories(trainer, tmp_path):
    with RolloutSession(trainer) as session:
        rollout = session.rollout_batch([[{"role": "user", "content": f"upper {word}"}] for word in WORDS[:2]], 2,
                                        SamplingParams(max_new_tokens=6, seed=1))  # fmt: skip
    items = items_of_rollout(rollout, agent_id="policy", with_tokens=True)
    data = TrajectoryDataset(items)
    data.to_json(tmp_path / "items.json")
    assert list(TrajectoryDataset.from_json(tmp_path / "items.json")) == items
    assert [(item.task_id, item.step) for item in items] == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    for item, sample in zip(items, rollout.samples, strict=True):
        assert (item.input, item.output) == (sample.record.prompt, sample.record.completion)
        row = item.metadata["rows"][0]
        assert TrainSequence(row["tokens"], row["loss_mask"], logprobs=row["logprobs"]).to_datum("logprobs")
        sampled = [version for version in row["policy_versions"] if version is not None]
        assert sampled == [sample.policy_version] * sum(map(bool, row["loss_mask"]))
        assert row["kinds"].count("final") == len(sampled)


def test_a_model_makes_items_that_fit_a_schema(service):
    schema = {
        "type": "object",
        "properties": {"input": {"enum": list(WORDS)}, "output": {"type": "string", "maxLength": 6, "minLength": 1}},
        "required": ["input", "output"],
        "additionalProperties": False,
    }
    given = [{"input": word, "output": word.upper()} for word in WORDS]
    config = {"num_samples": 12, "train_ratio": 0.75, "keep_given": False}
    with service.create_sampling_client(base_model="farstep/tiny") as client:
        maker = LLMSynthesizer(client, json_schema=schema, max_tokens=80, max_running=6, retry_delay_s=0.0)
        result = synthesize(given, config, synthesizer=maker)
        again = synthesize(given, config, synthesizer=maker)
    assert again == result
    assert result.metadata["made"] + result.metadata["failed"] == 12
    assert result.metadata["made"] >= 6
    assert all(set(item) == {"input", "output"} and item["input"] in WORDS for item in result.items)
    assert not {json.dumps(item) for item in result.train} & {json.dumps(item) for item in result.test}


def test_rounds_of_real_training_go_on_from_each_others_weights(service, tmp_path):
    """Each round has a trainer, a run and moments of its own; the weights are carried by their path."""
    data, trainers = rows(8), []

    def make(given):
        config = settings(tmp_path, name=f"round-{given.epoch}", batch_size=4, epochs=3)
        config["model"] |= {"path": given.path}
        trainers.append(SFTTrainer(config, client=service, train_data=list(given.rows)))
        return trainers[-1]

    def accuracy(trainer):
        loss = trainer.evaluate(data).loss
        losses.append(loss)
        return 1 / (1 + loss)

    losses = []
    strategy = TrainerStrategy(make, evaluate=accuracy)
    result = Evolution(strategy, {"max_epochs": 3, "early_stop_threshold": 0.99, "max_dataset_size": 8}).run(data)
    assert losses[0] > losses[1] > losses[2]
    assert result.best_epoch == 3
    assert not result.early_stopped
    assert [trainer.config.model.path for trainer in trainers] == [None, *(each.path for each in result.epochs[:2])]
    assert len({each.path for each in result.epochs}) == 3
    with service.create_training_client_from_state(result.best_path) as run:
        batch = [row.to_datum() for row in data]
        whole = run.forward(batch).result().metrics["loss:sum"] / sum(row.num_targets for row in data)
    assert abs(whole - losses[2]) < 1e-4  # the same weights in fp32; sums in another order
