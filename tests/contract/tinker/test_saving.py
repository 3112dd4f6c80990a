"""Saving, loading and going on with the real `tinker` SDK."""

import time

import pytest
import tinker

import farstep
from tests.contract.tinker.examples import farstep_datum, logprobs_of, step, tinker_datum
from tests.sdk_matrix.programs import SERVED_NAMES

pytestmark = pytest.mark.timeout(240)


def test_going_on_from_a_state_is_as_if_nothing_had_been(tinker_service, model):
    for index in range(3):
        step(model, index)
    path = model.save_state("three", user_metadata={"step": "3"}).result().path
    assert path == f"tinker://{model.model_id}/weights/three"
    copy = tinker_service.create_training_client_from_state_with_optimizer(path).result()
    assert copy.get_info().lora_rank == 4
    for index in range(3, 6):
        undisturbed, resumed = step(model, index), step(copy, index)
        assert logprobs_of(undisturbed[0]) == logprobs_of(resumed[0])
        assert undisturbed[1].metrics == resumed[1].metrics


def test_weights_without_the_optimizer_begin_afresh(tinker_service, model):
    for index in range(3):
        step(model, index)
    path = model.save_state("weights").result().path
    copy = tinker_service.create_training_client_from_state(path).result()
    same = copy.forward([tinker_datum(7)], "cross_entropy").result()
    assert logprobs_of(same) == logprobs_of(model.forward([tinker_datum(7)], "cross_entropy").result())
    undisturbed, afresh = step(model, 3), step(copy, 3)
    assert undisturbed[1].metrics["grad_norm:mean"] == afresh[1].metrics["grad_norm:mean"]
    assert (undisturbed[1].metrics["step:max"], afresh[1].metrics["step:max"]) == (4, 1)
    assert logprobs_of(step(model, 4)[0]) != logprobs_of(step(copy, 4)[0])  # Adam's moments were left out


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_state_is_loaded_in_place(model):
    step(model, 0)
    path = model.save_state("one").result().path
    after = [step(model, index) for index in (1, 2)]
    assert model.load_state_with_optimizer(path).result().path == path
    again = [step(model, index) for index in (1, 2)]
    for first, second in zip(after, again, strict=True):
        assert logprobs_of(first[0]) == logprobs_of(second[0])
        assert first[1].metrics == second[1].metrics


def test_a_name_is_taken_once(model):
    step(model, 0)
    model.save_state("best", ttl_seconds=3600).result()
    with pytest.raises(tinker.RequestFailedError, match="exists") as caught:
        model.save_state("best").result()
    assert caught.value.category.value == "user"
    assert model.save_state("best", overwrite=True).result().path.endswith("/weights/best")
    model.save_weights_for_sampler("best").result()
    with pytest.raises(tinker.RequestFailedError, match="exists"):
        model.save_weights_for_sampler("best").result()
    assert step(model, 1)[1].metrics["step:max"] == 2


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".", "..", "x" * 129, "nul\0", "tab\t", "weiß"])
def test_a_hostile_name_fails_its_future_alone(model, name):
    for save in (model.save_state, model.save_weights_for_sampler, model.save_weights_external):
        with pytest.raises(tinker.RequestFailedError, match="path: ") as caught:
            save(name).result()
        assert caught.value.category.value == "user"
    assert step(model, 0)[1].metrics["step:max"] == 1


@pytest.mark.parametrize("metadata", [{"a": "x" * 5000}, {"a": "x" * 2_000_000}, {str(i): "" for i in range(65)}])
def test_what_is_too_much_to_remark_fails_its_future_alone(model, metadata):
    for save in (model.save_state, model.save_weights_for_sampler):
        with pytest.raises(tinker.RequestFailedError, match="user_metadata"):
            save("kept", user_metadata=metadata).result()
    assert step(model, 0)[1].metrics["step:max"] == 1


@pytest.mark.parametrize("seconds", [0, 60, 3599, 11 * 365 * 24 * 3600])
def test_what_is_kept_for_too_short_or_too_long_is_refused(model, seconds):
    """As a checkpoint's time to live is when it is set later."""
    for save in (model.save_state, model.save_weights_for_sampler, model.save_weights_external):
        with pytest.raises(tinker.RequestFailedError, match="ttl_seconds"):
            save("kept", ttl_seconds=seconds).result()


def test_weights_are_told_by_the_name_their_model_was_asked_for_by(tinker_service, tinker_url, tinker_key):
    """Of several names of one model, here and in every client made of its checkpoints: tokenizers go by it."""
    rest = tinker.RestClient(base_url=tinker_url, api_key=tinker_key)
    for name in ("farstep/tiny", *SERVED_NAMES):
        first = tinker_service.create_lora_training_client(name, rank=2).result()
        path, weights = first.save_state("s").result().path, first.save_weights_for_sampler("w").result().path
        assert rest.get_weights_info_by_tinker_path(path).result().base_model == name
        copy = tinker_service.create_training_client_from_state(path).result()
        assert copy.get_info().model_data.tokenizer_id == name
        sampler = tinker_service.create_sampling_client(model_path=weights).result()
        assert sampler.get_base_model() == name


@pytest.mark.parametrize("number", [-1, 10**10, 10**30])
def test_a_sampling_session_that_cannot_be_is_refused_and_the_next_one_made(model, raw, number):
    ask = {"model_id": model.model_id, "kind": "snapshot"}
    for seq_id, wanted in enumerate((number, 7), start=1):
        promised = raw.post(
            "save_weights_for_sampler", json={**ask, "seq_id": seq_id, "sampling_session_seq_id": wanted}
        )
        told = raw.post("retrieve_future", json={"request_id": promised.json()["request_id"]}).json()
        assert "sampling_session_seq_id" in told["error"] if wanted == number else told["sampling_session_id"], told


def test_what_cannot_be_loaded_is_told(tinker_service, model):
    missing = f"tinker://{model.model_id}/weights/none"
    for path in (missing, "tinker://nobody/weights/x", "no path", f"{missing}/../../x"):
        with pytest.raises(tinker.RequestFailedError) as caught:
            tinker_service.create_training_client_from_state(path).result()
        assert caught.value.category.value == "user"
    with pytest.raises(tinker.RequestFailedError, match="not between 1 and 512"):
        tinker_service.create_lora_training_client("farstep/tiny", rank=100_000).result()


def test_named_weights_serve_a_sampler(model, farstep_service):
    step(model, 0)
    path = model.save_weights_for_sampler("served", ttl_seconds=7200).result().path
    assert path == f"tinker://{model.model_id}/sampler_weights/served"
    found = farstep_service.get_checkpoint(path)
    assert found.expires_at.timestamp() == pytest.approx(time.time() + 7200, abs=120)


def test_external_weights_are_kept_and_nothing_is_published(model, raw):
    step(model, 0)
    promised = {"model_id": model.model_id, "path": "mine", "seq_id": 3, "type": "save_weights_external"}
    request_id = raw.post("save_weights_external", json=promised).json()["request_id"]
    told = raw.post("retrieve_future", json={"request_id": request_id}).json()
    assert told["path"] == f"tinker://{model.model_id}/external_weights/mine"
    assert told["size_bytes"] > 1000
    ephemeral = {"model_id": model.model_id, "sampling_session_seq_id": 0, "seq_id": 4, "kind": "snapshot"}
    request_id = raw.post("save_weights_for_sampler", json=ephemeral).json()["request_id"]
    session_id = model.model_id.partition(":")[0]
    assert raw.post("retrieve_future", json={"request_id": request_id}).json() == {
        "sampling_session_id": f"{session_id}:sample:0",
        "type": "save_weights_for_sampler",
    }
    encrypted = {**promised, "path": "other", "seq_id": 5, "age_encryption_recipients": ["age1xyz"]}
    request_id = raw.post("save_weights_external", json=encrypted).json()["request_id"]
    assert "does not encrypt" in raw.post("retrieve_future", json={"request_id": request_id}).json()["error"]


def test_a_program_of_both_sdks_on_one_run(tinker_service, model, farstep_service):
    """`farstep` opens, lists, trains, saves and resumes what `tinker` made, and `tinker` goes on behind it."""
    alone = tinker_service.create_lora_training_client("farstep/tiny", rank=4, seed=1).result()
    expected = [step(alone, index) for index in range(6)]

    assert step(model, 0)[1].metrics == expected[0][1].metrics
    assert model.model_id in {run.run_id for run in farstep_service.list_runs()}
    own = farstep_service.resume_run(model.model_id)
    for index in (1, 2):
        own.forward_backward([farstep_datum(index)], "cross_entropy")
        metrics = own.optim_step(farstep.AdamParams(learning_rate=1e-2)).result().metrics
        assert metrics["grad_norm"] == expected[index][1].metrics["grad_norm:mean"]
    small = {"fwdbwd_max_chunk_len": 1}
    config = tinker_service.holder._client_config
    tinker_service.holder._client_config = config.model_copy(update=small)
    chunked = model.forward([tinker_datum(each) for each in range(4)], "cross_entropy").result()  # the first comes last
    assert len(chunked.loss_fn_outputs) == 4
    gradients, update = step(model, 3)
    assert logprobs_of(gradients) == logprobs_of(expected[3][0])
    assert update.metrics == expected[3][1].metrics
    own = farstep_service.resume_run(model.model_id)
    path = own.save_state("by-farstep").result().path
    copy = tinker_service.create_training_client_from_state_with_optimizer(path).result()
    assert step(model, 4)[1].metrics == step(copy, 4)[1].metrics == expected[4][1].metrics
