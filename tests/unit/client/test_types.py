"""The values: shapes, dtypes, equality, and what they refuse."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import farstep
from farstep import AdamParams, Datum, EncodedTextChunk, ImageChunk, ModelInput, SamplingParams, TensorData
from tests.unit.client.fake_trainer import Trainer


def test_model_inputs() -> None:
    text = ModelInput.from_ints([1, 2, 3])
    assert text.to_ints() == [1, 2, 3]
    assert text.length == 3
    assert text == ModelInput.from_ints(np.array([1, 2, 3]))
    assert text != ModelInput.from_ints([1, 2])
    assert hash(text) == hash(ModelInput.from_ints([1, 2, 3]))
    longer = text.append(EncodedTextChunk([4]))
    assert (longer.to_ints(), text.length) == ([1, 2, 3, 4], 3)
    assert repr(text) == "ModelInput(chunks=(EncodedTextChunk([1, 2, 3]),))"
    assert "100 in all" in repr(ModelInput.from_ints(range(100)))
    image = text.append(ImageChunk(b"png", "png", expected_tokens=5))
    assert image.length == 8
    with pytest.raises(ValueError, match="image"):
        image.to_ints()
    with pytest.raises(ValueError, match="expected_tokens"):
        _ = ImageChunk(b"", "jpeg").length
    with pytest.raises(ValueError, match="gif"):
        ImageChunk(b"", "gif")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="chunks"):
        ModelInput(([1, 2],))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one row"):
        ModelInput.from_ints(np.ones((2, 2), dtype=int))
    with pytest.raises(ValueError, match="read-only"):
        text.chunks[0].tokens[0] = 9  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ([1, 2, 3], "int64"),
        ([1.0, 2, 3], "float32"),
        (np.arange(3, dtype=np.int8), "int64"),
        (np.arange(3, dtype=np.float64), "float32"),
        ([True, False, True], "int64"),
    ],
)
def test_tensor_data_chooses_its_dtype(data: object, dtype: str) -> None:
    tensor = TensorData(data)  # type: ignore[arg-type]
    assert (tensor.dtype, tensor.shape, str(tensor.to_numpy().dtype)) == (dtype, (3,), dtype)
    assert tensor == TensorData(data)  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(tensor)) == tensor


def test_tensor_data_and_its_shapes() -> None:
    flat = TensorData([1, 2, 3, 4, 5, 6], dtype="float32", shape=[2, 3])
    assert flat.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert len(flat) == 2
    assert flat == TensorData([[1.0, 2, 3], [4, 5, 6]])
    assert flat != TensorData([1.0, 2, 3, 4, 5, 6])
    assert np.asarray(flat).shape == (2, 3)
    assert repr(TensorData([1, 2])) == "TensorData([1, 2], dtype='int64', shape=[2])"
    with pytest.raises(ValueError, match="do not fill"):
        TensorData([1, 2], shape=[3])
    with pytest.raises(ValueError, match="dtype"):
        TensorData([1], dtype="float64")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whole numbers"):
        TensorData([1.5], dtype="int64")
    with pytest.raises(TypeError, match="numbers"):
        TensorData(["a"])
    with pytest.raises(ValueError, match="rows"):
        TensorData([[1], [2, 3]])


def test_tensor_data_and_torch() -> None:
    for tensor in (torch.arange(4), torch.ones(2, 2, dtype=torch.bfloat16), torch.tensor([1.5], requires_grad=True)):
        data = TensorData.from_torch(tensor)
        assert data.shape == tuple(tensor.shape)
        assert torch.equal(data.to_torch(), tensor.detach().to(data.to_torch().dtype))
    assert TensorData.from_numpy(np.array([1, 2])).to_torch().dtype == torch.int64


def test_data_takes_what_people_have() -> None:
    tokens = ModelInput.from_ints([1, 2])
    given: list[object] = [[1, 1], np.array([1, 1]), torch.tensor([1, 1]), TensorData([1, 1])]
    data = [Datum(tokens, {"target_tokens": value}) for value in given]  # type: ignore[dict-item]
    assert all(one == data[0] for one in data)
    assert Datum(tokens, {"weights": [1, 1]}).loss_fn_inputs["weights"].dtype == "float32"
    assert pickle.loads(pickle.dumps(data[0])) == data[0]
    with pytest.raises(TypeError, match=r"loss_fn_inputs\.target_tokens"):
        Datum(tokens, {"target_tokens": [1.5, 2]})
    with pytest.raises(ValueError, match=r"loss_fn_inputs\.weights"):
        Datum(tokens, {"weights": [[1.0], [1.0, 2.0]]})
    with pytest.raises(TypeError):
        data[0].loss_fn_inputs["x"] = 1  # type: ignore[index]


def test_a_prompt_and_its_completion() -> None:
    datum = Datum.from_prompt_completion([10, 11, 12], [20, 21])
    assert datum.model_input.to_ints() == [10, 11, 12, 20]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [-100, -100, 20, 21]
    with pytest.raises(farstep.InvalidInputError, match="prompt"):
        Datum.from_prompt_completion([], [1])
    with pytest.raises(farstep.InvalidInputError, match="completion"):
        Datum.from_prompt_completion([1], [])


def test_a_datum_of_another_library_is_taken_as_it_is(client: farstep.TrainingClient, trainer: Trainer) -> None:
    chunk = SimpleNamespace(tokens=[1, 2], type="encoded_text")
    targets = SimpleNamespace(data=[2, 3], dtype="int64", shape=None)
    weights = SimpleNamespace(data=[0.5, 1.0], dtype="float32", shape=[2])
    foreign = SimpleNamespace(
        model_input=SimpleNamespace(chunks=[chunk]), loss_fn_inputs={"target_tokens": targets, "weights": weights}
    )
    client.forward_backward([foreign]).result()  # type: ignore[list-item]
    ours = Datum(ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3], "weights": [0.5, 1.0]})
    client.forward_backward([ours]).result()
    assert trainer.executed[0][3] == trainer.executed[1][3]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (AdamParams, {"learning_rate": -1.0}),
        (AdamParams, {"learning_rate": float("nan")}),
        (AdamParams, {"beta1": 1.0}),
        (AdamParams, {"beta2": -0.1}),
        (AdamParams, {"eps": 0.0}),
        (AdamParams, {"weight_decay": -1.0}),
        (AdamParams, {"grad_clip_norm": float("inf")}),
        (AdamParams, {"learning_rate": "fast"}),
        (SamplingParams, {"max_tokens": 0}),
        (SamplingParams, {"max_tokens": 1.5}),
        (SamplingParams, {"temperature": -1}),
        (SamplingParams, {"top_p": 0.0}),
        (SamplingParams, {"top_k": 0}),
        (SamplingParams, {"min_p": 2.0}),
        (SamplingParams, {"seed": 2**63}),
        (SamplingParams, {"stop": ["a", 1.5]}),
        (SamplingParams, {"temperature": 1e7}),
        (SamplingParams, {"presence_penalty": 2.5}),
        (SamplingParams, {"frequency_penalty": float("nan")}),
        (SamplingParams, {"repetition_penalty": 0.0}),
        (SamplingParams, {"logit_bias": {-1: 1.0}}),
        (SamplingParams, {"logit_bias": {"7": 1.0}}),
        (SamplingParams, {"logit_bias": {7: 101}}),
        (SamplingParams, {"logit_bias": [7]}),
        (SamplingParams, {"min_tokens": -1}),
        (SamplingParams, {"min_tokens": 5, "max_tokens": 4}),
        (SamplingParams, {"json_schema": 7}),
        (SamplingParams, {"json_schema": {"a": {1}}}),
        (SamplingParams, {"regex": 7}),
        (SamplingParams, {"grammar": b"start"}),
        (SamplingParams, {"choice": "yes"}),
        (SamplingParams, {"choice": []}),
        (SamplingParams, {"choice": ["a", 1]}),
        (SamplingParams, {"stop": ""}),
        (SamplingParams, {"stop": -1}),
    ],
)
def test_settings_name_what_is_wrong(kind: type, arguments: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
        kind(**arguments)


def test_defaults() -> None:
    adam = AdamParams()
    assert (adam.learning_rate, adam.beta1, adam.beta2, adam.eps) == (1e-4, 0.9, 0.95, 1e-12)
    assert (adam.weight_decay, adam.grad_clip_norm) == (0.0, 0.0)
    params = SamplingParams()
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (None, 1.0, 1.0, -1)


def test_at_most_one_thing_to_match() -> None:
    with pytest.raises(ValueError, match="choice: give regex or choice"):
        SamplingParams(regex="a", choice=["b"])


def test_schemas_from_what_people_have() -> None:
    class Model:
        @classmethod
        def model_json_schema(cls) -> dict[str, object]:
            return {"type": "integer"}

    for given in ({"type": "integer"}, '{"type": "integer"}', Model):
        assert SamplingParams(json_schema=given).constraint() == {"json_schema": '{"type": "integer"}'}
    assert SamplingParams().constraint() == {}


def test_sampling_params_can_be_keys_and_be_pickled() -> None:
    params = SamplingParams(logit_bias={3: 1.0}, json_schema={"type": "integer"})
    assert {params: 1}[SamplingParams(logit_bias={3: 1.0}, json_schema={"type": "integer"})] == 1
    assert pickle.loads(pickle.dumps(params)) == params
