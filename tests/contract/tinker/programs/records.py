"""What is kept: runs, checkpoints, sessions; what can be asked, and what is done with it."""

import urllib.request

import tinker
from trying import MODEL, VERSION, datum, feature, made, main, refused, rest_client, trainer


@feature("capabilities list the served names")
def capabilities(service):
    if VERSION < (0, 36):
        supported = service.get_server_capabilities().supported_models
    else:
        supported = rest_client(service).get_server_capabilities().result().supported_models
    models = {model.model_name: model for model in supported}
    assert MODEL in models
    assert models[MODEL].max_context_length == 2048


@feature("get a training run, list them")
def runs(service):
    client, rest = trainer(service), rest_client(service)
    run = rest.get_training_run(client.model_id).result()
    assert (run.training_run_id, run.base_model, run.lora_rank, run.is_lora) == (client.model_id, MODEL, 4, True)
    listed = rest.list_training_runs(limit=100).result()
    assert client.model_id in {each.training_run_id for each in listed.training_runs}
    assert listed.cursor.total_count >= 1


@feature("list checkpoints, weights_info")
def checkpoints(service):
    client, rest = trainer(service), rest_client(service)
    paths = {client.save_state("a").result().path, client.save_weights_for_sampler("b").result().path}
    found = {each.tinker_path: each for each in rest.list_checkpoints(client.model_id).result().checkpoints}
    assert set(found) == paths
    assert {each.checkpoint_type for each in found.values()} == {"training", "sampler"}
    assert all(each.size_bytes for each in found.values())
    mine = rest.list_user_checkpoints(limit=100).result()
    assert paths <= {each.tinker_path for each in mine.checkpoints}
    info = rest.get_weights_info_by_tinker_path(f"tinker://{client.model_id}/weights/a").result()
    assert (info.base_model, info.is_lora, info.lora_rank) == (MODEL, True, 4)
    run = rest.get_training_run_by_tinker_path(f"tinker://{client.model_id}/weights/a").result()
    assert run.last_checkpoint.tinker_path == f"tinker://{client.model_id}/weights/a"


@feature("time to live of checkpoints")
def time_to_live(service):
    client, rest = trainer(service), rest_client(service)
    path = client.save_state("a", ttl_seconds=3600).result().path

    def expires_at():
        (found,) = rest.list_checkpoints(client.model_id).result().checkpoints
        return found.expires_at

    first = expires_at()
    assert first is not None
    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
    assert expires_at() > first
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert expires_at() is None


@feature("publish and unpublish")
def publication(service):
    client, rest = trainer(service), rest_client(service)
    path = client.save_state("a").result().path
    for act, is_public in (
        (rest.publish_checkpoint_from_tinker_path, True),
        (rest.unpublish_checkpoint_from_tinker_path, False),
    ):
        act(path).result()
        (found,) = rest.list_checkpoints(client.model_id).result().checkpoints
        assert found.public is is_public


@feature("delete a checkpoint")
def deletion(service):
    client, rest = trainer(service), rest_client(service)
    path = client.save_state("a").result().path
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(client.model_id).result().checkpoints == []
    with refused():
        made(service.create_training_client_from_state(path))


@feature("save and download external weights")
def external(service):
    client, rest = trainer(service), rest_client(service)
    client.forward_backward([datum()], "cross_entropy")
    client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    path = client.save_weights_external("out").result().path
    assert path == f"tinker://{client.model_id}/external_weights/out"
    urls = rest.get_external_weights_urls(path).result().urls
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(urls)
    for url in urls.values():
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read(1)


@feature("copy a checkpoint")
def copying(service):
    path = trainer(service).save_state("a").result().path
    copy = service.copy_weights(path) if VERSION < (0, 36) else rest_client(service).copy_weights(path, "default")
    copied = made(copy)
    assert copied != path
    assert made(service.create_training_client_from_state_with_optimizer(copied)).get_info().lora_rank == 4


@feature("list and get sessions")
def sessions(service):
    client, rest = trainer(service), rest_client(service)
    session_id = client.model_id.split(":")[0]
    assert session_id in rest.list_sessions(limit=100).result().sessions
    assert client.model_id in rest.get_session(session_id).result().training_run_ids


@feature("search sessions", since="0.36")
def search(service):
    from tinker.types import AccessibleSearchOwner, SessionSearchRequest

    with tinker.ServiceClient(display_name="sought after") as other:
        trainer(other)
    request = SessionSearchRequest(display_name="sought after", owner=AccessibleSearchOwner())
    page = rest_client(service).search_sessions(request).result()
    assert page.sessions
    assert all(each.display_name == "sought after" for each in page.sessions)


@feature("a session ends with its block")
def blocks(service):
    with tinker.ServiceClient() as other:
        client = trainer(other)
        client.forward([datum()], "cross_entropy").result()


@feature("a resumed sampler's record")
def samplers(service):
    client = trainer(service)
    path = client.save_weights_for_sampler("b").result().path
    sampler = made(service.create_sampling_client(model_path=path))
    assert sampler.get_base_model() == MODEL


@feature("tokenizer by the model's name")
def tokenizer(service):
    text = "12+30?"
    for client in (trainer(service), made(service.create_sampling_client(base_model=MODEL))):
        found = client.get_tokenizer()
        assert found.decode(found.encode(text)) == text


if __name__ == "__main__":
    main()
