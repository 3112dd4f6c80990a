"""Data through real servers: from a file to weights, and what packing must not change."""

import json

import numpy as np
import pytest

from farstep.trainers import SFTTrainer
from farstep.trainers.config import load_config
from farstep.trainers.data import load, process_data
from tests.support.trainees import Recorder

CONFIG = """
name: answers
model: {{base: farstep/tiny, lora: {{r: 4, seed: 1}}}}
dataset: {folder}/answers.jsonl[:-2]
train_eval_split: 25%
eval_interval: 4
epochs: 6
batch_size: 4
learning_rate: 2e-2
data: {{max_length: 256, cache_dir: {folder}/cache, fail_on_missing_cache: true}}
output_dir: {folder}/out
"""


@pytest.fixture
def config(tmp_path):
    turns = [("capital?", "big"), ("again?", "big"), ("and big?", "small")]
    with (tmp_path / "answers.jsonl").open("w") as file:
        for number in range(18):
            said = [
                {"role": role, "content": f"{text} {number}"}
                for pair in turns[: 1 + number % 3]
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
            file.write(json.dumps({"messages": said}) + "\n")
    return load_config(CONFIG.format(folder=tmp_path))


def test_from_a_file_by_way_of_the_cache_to_weights(service, config):
    client = service.create_lora_training_client("farstep/tiny", rank=4)
    tokenizer = client.get_tokenizer()
    limits = {"max_length": client.get_info().max_seq_len}
    made = process_data(config, tokenizer, **limits)
    assert (len(made.train), len(made.eval)) == (12, 4)
    assert load(config, tokenizer, **limits).train.from_cache
    events = Recorder()
    result = SFTTrainer(config, client=service, event_sinks=[events]).fit()
    losses = events.values("loss")
    assert result.steps == len(losses) == 18
    assert losses[-1] < 0.5 * losses[0]


def test_rows_give_the_same_numbers_alone_and_packed_together(service, config):
    """Alone a row is a batch of its own; together the server packs them. fp32: sums in another order, near 1e-6."""
    client = service.create_lora_training_client("farstep/tiny", rank=4, seed=1)
    sets = process_data(config, client.get_tokenizer())
    data = [group[0].to_datum() for group in sets.train]
    together = client.forward(data).result().loss_fn_outputs
    for datum, output in zip(data, together, strict=True):
        (alone,) = client.forward([datum]).result().loss_fn_outputs
        np.testing.assert_allclose(output["logprobs"].to_numpy(), alone["logprobs"].to_numpy(), atol=2e-5)
