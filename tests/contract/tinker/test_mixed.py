"""Programs that mix both SDKs: what one has made the other opens, lists, goes on with and samples, on the same run."""

import pytest
import tinker

import farstep
from tests.support.processes import KEY

TOKENS = [1, 40, 41, 60, 61, 2]
PROMPT = [1, 40, 41]


@pytest.fixture
def farstep_service(tinker_url):
    with farstep.ServiceClient(base_url=tinker_url, api_key=KEY) as service:
        yield service


@pytest.fixture
def rest(tinker_url, tinker_key):
    return tinker.RestClient(base_url=tinker_url, api_key=tinker_key)


def tinker_datum():
    targets = tinker.TensorData(data=TOKENS[1:], dtype="int64", shape=[5])
    weights = tinker.TensorData(data=[1.0] * 5, dtype="float32", shape=[5])
    inputs = {"target_tokens": targets, "weights": weights}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=inputs)


def step(client, sdk):
    """One step by either SDK: the loss before it. `farstep` takes a datum of `tinker` as it is."""
    passed = client.forward_backward([tinker_datum()], "cross_entropy")
    client.optim_step(sdk.AdamParams(learning_rate=1e-2)).result()
    return passed.result().metrics["loss:sum"]


def made_by_tinker(service):
    return service.create_lora_training_client("farstep/tiny", rank=4, seed=1).result()


def test_both_train_one_run_in_turn(tinker_service, farstep_service):
    """The numbers are those of a run that one of them trains alone."""
    alone = made_by_tinker(tinker_service)
    expected = [step(alone, tinker) for _ in range(6)]
    theirs = made_by_tinker(tinker_service)
    losses = [step(theirs, tinker), step(theirs, tinker)]
    ours = farstep_service.resume_run(theirs.model_id)
    losses += [step(ours, farstep), step(ours, farstep)]
    losses += [step(theirs, tinker), step(theirs, tinker)]
    assert losses == expected


def test_farstep_lists_samples_and_resumes_what_tinker_made(tinker_service, farstep_service):
    theirs = made_by_tinker(tinker_service)
    step(theirs, tinker)
    state = theirs.save_state("state").result().path
    weights = theirs.save_weights_for_sampler("weights").result().path
    assert theirs.model_id in {run.run_id for run in farstep_service.list_runs()}
    listed = farstep_service.list_checkpoints(theirs.model_id)
    assert {checkpoint.checkpoint_id.split("/", 1)[-1] for checkpoint in listed} >= {"weights/state"}

    ours = farstep_service.create_training_client_from_state_with_optimizer(state)
    assert step(ours, farstep) == step(theirs, tinker)

    reference = tinker_service.create_sampling_client(model_path=weights).result()
    sampler = farstep_service.resume_run(theirs.model_id).create_sampling_client(weights)
    given, params = farstep.ModelInput.from_ints(PROMPT), farstep.SamplingParams(max_tokens=6, seed=3)
    same = tinker.ModelInput.from_ints(PROMPT), tinker.SamplingParams(max_tokens=6, seed=3)
    (mine,) = sampler.sample(given, 1, params).result().sequences
    (its,) = reference.sample(same[0], 1, same[1]).result().sequences
    assert list(mine.tokens) == list(its.tokens)


def test_tinker_lists_samples_and_resumes_what_farstep_made(tinker_service, farstep_service, rest):
    ours = farstep_service.create_lora_training_client("farstep/tiny", rank=4, seed=1)
    step(ours, farstep)
    state = ours.save_state("state").result().path.replace("bt://loops:", "tinker://")
    weights = ours.save_weights_for_sampler("weights").result().path.replace("bt://loops:", "tinker://")

    as_farstep_writes_it = state.replace("tinker://", "bt://loops:")
    infos = [rest.get_weights_info_by_tinker_path(path).result() for path in (state, as_farstep_writes_it)]
    assert infos[0] == infos[1]

    run = rest.get_training_run(ours.run_id).result()
    assert (run.training_run_id, run.base_model, run.lora_rank) == (ours.run_id, "farstep/tiny", 4)
    listed = rest.list_checkpoints(ours.run_id).result().checkpoints
    assert {checkpoint.tinker_path for checkpoint in listed} == {state, weights}

    theirs = tinker_service.create_training_client_from_state_with_optimizer(state).result()
    assert step(theirs, tinker) == step(ours, farstep)

    sampler = tinker_service.create_sampling_client(model_path=weights).result()
    params = tinker.SamplingParams(max_tokens=6, seed=3)
    (its,) = sampler.sample(tinker.ModelInput.from_ints(PROMPT), 1, params).result().sequences
    reference = ours.create_sampling_client(weights)
    given, same = farstep.ModelInput.from_ints(PROMPT), farstep.SamplingParams(max_tokens=6, seed=3)
    (mine,) = reference.sample(given, 1, same).result().sequences
    assert list(its.tokens) == list(mine.tokens)
