"""The training loop of the real `tinker` SDK: its numbers, its chunks, its repetitions, and its failures."""

import asyncio

import numpy as np
import pytest
import tinker
from tinker import types

import farstep
from farstep_proto.v1 import tinker_pb2
from tests.contract.tinker.examples import farstep_datum, logprobs_of, step, tinker_adam, tinker_datum

pytestmark = pytest.mark.timeout(240)


def test_a_pipelined_loop_gives_the_numbers_of_farsteps_own_client(model, farstep_service):
    own = farstep_service.create_lora_training_client("farstep/tiny", rank=4, seed=1, train_unembed=True)
    for index in range(4):
        gradients, update = step(model, index, index + 3)
        ours = own.forward_backward([farstep_datum(index), farstep_datum(index + 3)], "cross_entropy").result()
        our_update = own.optim_step(farstep.AdamParams(learning_rate=1e-2)).result()
        theirs = np.array(logprobs_of(gradients), dtype=np.float32)
        assert np.array_equal(theirs, np.concatenate([each["logprobs"].to_numpy() for each in ours.loss_fn_outputs]))
        assert gradients.metrics["loss:sum"] == ours.metrics["loss:sum"]
        assert update.metrics["grad_norm:mean"] == our_update.metrics["grad_norm"]
        assert update.metrics["step:max"] == index + 1


def test_forward_leaves_gradients_alone(model):
    step(model, 0)
    model.forward([tinker_datum(5)], "cross_entropy").result()
    with pytest.raises(tinker.RequestFailedError, match="no gradient") as caught:
        model.optim_step(tinker_adam()).result()
    assert caught.value.category is types.RequestErrorCategory.User


def test_chunks_that_arrive_out_of_order_are_one_call(tinker_service, model):
    """The SDK sends chunks 2 to n at once, and the first one when those were taken."""
    other = tinker_service.create_lora_training_client("farstep/tiny", rank=4, seed=1).result()
    shifts = range(7)
    whole, whole_update = step(model, *shifts)
    small = {"fwdbwd_max_chunk_len": 2}  # as client/config might say it
    tinker_service.holder._client_config = tinker_service.holder._client_config.model_copy(update=small)
    assert tinker_service.holder._client_config.parallel_fwdbwd_chunks
    parts, parts_update = step(other, *shifts)
    assert len(parts.loss_fn_outputs) == 7
    assert logprobs_of(parts) == pytest.approx(logprobs_of(whole), abs=1e-5)  # sums in another order, fp32
    assert parts.metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-6)
    assert parts_update.metrics["grad_norm:mean"] == pytest.approx(whole_update.metrics["grad_norm:mean"], rel=1e-4)
    step(other, *shifts)  # numbers go on behind a call in chunks
    assert step(other, 0)[1].metrics["step:max"] == 3


def test_a_call_that_is_larger_than_the_trainer_takes_at_once(model):
    """Some ten megabytes in one chunk, which travel to the trainer in parts."""
    length, k = 64, 2000
    tokens = [1 + index % 500 for index in range(length)]
    targets = [[(index + each) % 500 for each in range(k)] for index in range(length)]
    inputs = {
        "target_tokens": tinker.TensorData(
            data=[each for row in targets for each in row], dtype="int64", shape=[length, k]
        ),
        "weights": tinker.TensorData(data=[1.0 / k] * (length * k), dtype="float32", shape=[length, k]),
    }
    datum = types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)
    output = model.forward([datum] * 7, "cross_entropy").result()
    assert [each["logprobs"].shape for each in output.loss_fn_outputs] == [[length, k]] * 7
    rows = [each["logprobs"].data for each in output.loss_fn_outputs]
    assert all(np.allclose(row, rows[0], atol=1e-5) for row in rows)


def large_datum(k):
    """With `k` candidates for each of a hundred tokens: 12 bytes each."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 500, size=100)
    inputs = {
        "target_tokens": tinker.TensorData.from_numpy(rng.integers(3, 500, size=(100, k))),
        "weights": tinker.TensorData.from_numpy(np.full((100, k), 1 / k, dtype=np.float32)),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens.tolist()), loss_fn_inputs=inputs)


def test_one_datum_may_be_larger_than_a_request_usually_is(model, farstep_service):
    datum = large_datum(8000)
    output = model.forward([tinker_datum(), datum, tinker_datum()], "cross_entropy").result()
    assert [each["logprobs"].shape for each in output.loss_fn_outputs] == [[8], [100, 8000], [8]]
    ours = farstep_service.resume_run(model.model_id).forward([datum]).result()  # our own client's splitting
    theirs = np.array(output.loss_fn_outputs[1]["logprobs"].data).reshape(100, 8000)
    assert np.allclose(ours.loss_fn_outputs[0]["logprobs"].to_numpy(), theirs, atol=1e-5)  # fp32, another micro-batch


def test_a_datum_that_nobody_can_take_is_named_and_leaves_no_gap(model):
    with pytest.raises(tinker.RequestFailedError, match=r"data\[0\]: takes \d+ bytes, .* at most 75497472") as caught:
        model.forward([large_datum(64_000)], "cross_entropy").result()
    assert caught.value.category is types.RequestErrorCategory.User
    wrong = tinker_datum()
    wrong.loss_fn_inputs["weights"] = tinker.TensorData(data=[1.0, 2.0], dtype="float32", shape=[2])
    with pytest.raises(tinker.RequestFailedError, match=r"failed: data\[2\]\.loss_fn_inputs\.weights: "):
        model.forward([tinker_datum(), large_datum(8000), wrong], "cross_entropy").result()  # in its third part
    assert step(model, 0)[1].metrics["step:max"] == 1


def test_what_is_refused_fails_its_future_alone(model):
    wrong = tinker_datum()
    wrong.loss_fn_inputs["weights"] = tinker.TensorData(data=[1.0, 2.0], dtype="float32", shape=[2])
    refused = model.forward_backward([tinker_datum(), wrong], "cross_entropy")
    unknown = model.forward_backward([tinker_datum()], "no_such_loss")
    gradients, update = step(model, 0)
    with pytest.raises(tinker.RequestFailedError, match=r"data\[1\]\.loss_fn_inputs\.weights") as caught:
        refused.result()
    assert caught.value.category is types.RequestErrorCategory.User
    with pytest.raises(tinker.RequestFailedError, match="unknown loss 'no_such_loss'"):
        unknown.result()
    assert update.metrics["step:max"] == 1
    with pytest.raises(tinker.RequestFailedError, match="no gradient"):
        model.optim_step(tinker_adam()).result()
    with pytest.raises(tinker.RequestFailedError, match="beta1"):
        model.optim_step(types.AdamParams(beta1=1.5)).result()
    assert step(model, 0)[1].metrics["step:max"] == 2
    assert len(gradients.loss_fn_outputs) == 1


def request_of(model, seq_id, *, forward_only=False):
    datum = tinker_datum()
    chunk = tinker_pb2.Chunk()
    chunk.encoded_text.tokens = np.array(datum.model_input.to_ints(), dtype="<i4").tobytes()
    message = tinker_pb2.ForwardBackwardRequest(
        model_id=model.model_id, seq_id=seq_id, loss_fn="cross_entropy", forward_only=forward_only
    )
    ours = message.data.add(model_input=[chunk])
    for key, dtype in (("target_tokens", "<i8"), ("weights", "<f4")):
        tensor = ours.loss_fn_inputs[key]
        values = np.array(datum.loss_fn_inputs[key].data, dtype=dtype)
        tensor.dense, tensor.dtype = values.tobytes(), 2 if key == "target_tokens" else 1
        tensor.shape.append(len(values))
    return message.SerializeToString()


PROTOBUF = {"Content-Type": "application/x-protobuf"}


def result_of(raw, promised, **headers):
    """As the SDK waits for it."""
    while True:
        response = raw.post("retrieve_future", json={"request_id": promised["request_id"]}, headers=headers)
        if response.status_code != 408:
            return response
        assert response.json()["type"] == "try_again"


def test_a_repeated_submission_runs_once(model, raw):
    body = request_of(model, 1)
    answers = [raw.post("forward_backward", content=body, headers=PROTOBUF).json() for _ in range(3)]
    optim = {"model_id": model.model_id, "seq_id": 2, "adam_params": {"learning_rate": 0.01}}
    answers += [raw.post("forward_backward", content=body, headers=PROTOBUF).json()]
    steps = [raw.post("optim_step", json=optim).json() for _ in range(2)]
    assert len({each["request_id"] for each in answers}) == len({each["request_id"] for each in steps}) == 1
    norms = [result_of(raw, each).json()["metrics"]["grad_norm:mean"] for each in steps]
    once = [result_of(raw, each, Accept=PROTOBUF["Content-Type"]).content for each in answers]
    assert len(set(norms)) == len(set(once)) == 1
    assert raw.post("optim_step", json=optim).json() == steps[0]  # also when its outcome was fetched
    optim["seq_id"] = 3
    assert "no gradient" in result_of(raw, raw.post("optim_step", json=optim).json()).json()["error"]


def test_a_compressed_body_is_opened_up_to_a_bound(model, raw):
    import zstandard

    headers = {**PROTOBUF, "Content-Encoding": "zstd"}
    packed = zstandard.ZstdCompressor().compress(request_of(model, 1, forward_only=True))
    promised = raw.post("forward_backward", content=packed, headers=headers)
    assert promised.status_code == 200, promised.text
    assert result_of(raw, promised.json(), Accept=PROTOBUF["Content-Type"]).headers["content-type"].endswith("protobuf")
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(200 << 20))
    assert len(bomb) < 1 << 20
    assert raw.post("forward_backward", content=bomb, headers=headers).status_code == 413
    assert raw.post("forward_backward", content=b"no zstd", headers=headers).status_code == 400
    assert raw.post("optim_step", content=packed, headers=headers).status_code == 415


def test_sparse_tensors_count_for_what_they_are_when_dense(model):
    """A few bytes that claim a hundred megabytes, more than the trainer takes of one datum; and what nobody takes."""

    def claiming(num_columns):
        targets = tinker.TensorData(data=[5] * 32, dtype="int64", shape=[2, 16])
        rows = {"sparse_crow_indices": [0, 1, 1], "sparse_col_indices": [5]}
        weights = tinker.TensorData(data=[1.0], dtype="float32", shape=[2, num_columns], **rows)
        inputs = {"target_tokens": targets, "weights": weights}
        return types.Datum(model_input=types.ModelInput.from_ints([3, 4]), loss_fn_inputs=inputs)

    with pytest.raises(tinker.RequestFailedError, match=r"data\[0\]: takes \d+ bytes, which is too much") as caught:
        model.forward([claiming(10 << 20)], "cross_entropy").result()
    assert caught.value.category is types.RequestErrorCategory.User
    with pytest.raises(tinker.RequestFailedError, match="when it is dense are too many for one request"):
        model.forward([claiming(1 << 40)], "cross_entropy").result()
    assert step(model, 0)[1].metrics["step:max"] == 1


def test_a_large_body_of_many_things_is_refused_before_it_is_decoded(model, raw):
    """Empty data would take eighty times their bytes."""
    response = raw.post("forward_backward", content=b"\x1a\x00" * 17_000_000, headers=PROTOBUF)
    assert (response.status_code, response.json()["field"]) == (413, "body")
    assert "not by tensors alone" in response.json()["error"]
    assert step(model, 0)[1].metrics["step:max"] == 1


def test_two_clients_at_once(tinker_service, tinker_url, tinker_key):
    async def train(service, seed):
        client = await service.create_lora_training_client("farstep/tiny", rank=4, seed=seed)
        norms = []
        for index in range(5):
            client.forward_backward([tinker_datum(index)], "cross_entropy")
            norms.append((await client.optim_step(tinker_adam())).metrics["grad_norm:mean"])
        return norms

    async def both(first, second):
        return await asyncio.gather(train(first, 1), train(second, 1), train(first, 2))

    other = tinker.ServiceClient(base_url=tinker_url, api_key=tinker_key)
    mine, theirs, another = asyncio.run(both(tinker_service, other))
    other.close("success")
    assert mine == theirs != another


def test_a_number_that_comes_again_for_something_else_changes_nothing(model, raw):
    first = raw.post("forward_backward", content=request_of(model, 1), headers=PROTOBUF).json()
    optim = {"model_id": model.model_id, "seq_id": 2, "adam_params": {"learning_rate": 0.01}}
    second = raw.post("optim_step", json=optim).json()
    for path, kwargs in (
        ("forward_backward", {"content": request_of(model, 1, forward_only=True), "headers": PROTOBUF}),
        ("optim_step", {"json": {**optim, "seq_id": 1}}),
        ("optim_step", {"json": {**optim, "adam_params": {"learning_rate": 1.0}}}),
    ):
        refused = raw.post(path, **kwargs)
        assert (refused.status_code, refused.json()["field"]) == (400, "seq_id")
    assert result_of(raw, first).headers["content-type"] == PROTOBUF["Content-Type"]
    assert result_of(raw, second).json()["metrics"]["step:max"] == 1


def test_an_operation_whose_place_another_client_took_is_told(model, farstep_service, raw):
    """Its successor is there already, so that there is no place left for it; what was sent in time is done."""
    forward = raw.post("forward_backward", content=request_of(model, 1), headers=PROTOBUF).json()
    assert result_of(raw, forward).status_code == 200
    early = raw.post("optim_step", json={"model_id": model.model_id, "seq_id": 3, "adam_params": {}}).json()
    own = farstep_service.resume_run(model.model_id)
    own.forward([farstep_datum()], "cross_entropy").result()
    late = raw.post("forward_backward", content=request_of(model, 2), headers=PROTOBUF).json()
    told = result_of(raw, late).json()
    assert told["category"] == "user"
    assert "another client" in told["error"]
    assert result_of(raw, early).json()["metrics"]["step:max"] == 1
    again = raw.post("forward_backward", content=request_of(model, 2), headers=PROTOBUF).json()
    assert result_of(raw, again).json() == told
