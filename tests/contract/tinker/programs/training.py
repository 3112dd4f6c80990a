"""Training: passes, steps, losses, checkpoints and going on from them."""

import math

import tinker
import torch
from trying import MODEL, close, datum, feature, logprobs_of, made, main, refused, trainer

STEP = tinker.AdamParams(learning_rate=1e-2)
Q, A = [-1.0, -0.5, -2.0, -0.25, -3.0], [1.0, -1.0, 0.5, 2.0, 0.0]


@feature("create a LoRA model, get_info")
def creation(service):
    client = trainer(service, rank=8)
    info = client.get_info()
    assert info.model_id == client.model_id
    assert info.model_data.model_name == info.model_data.tokenizer_id == MODEL
    assert info.is_lora
    assert info.lora_rank == 8


@feature("forward and forward_backward: cross_entropy")
def cross_entropy(service):
    client = trainer(service)
    data = [datum(), datum(range(1, 30), weights=[0.5] * 14 + [0.0] * 14)]
    seen = client.forward(data, "cross_entropy").result()
    learnt = client.forward_backward(data, "cross_entropy").result()
    assert logprobs_of(seen) == logprobs_of(learnt)
    assert [len(row) for row in logprobs_of(seen)] == [5, 28]
    expected = sum(
        -p * w
        for row, each in zip(logprobs_of(seen), data, strict=True)
        for p, w in zip(row, each.loss_fn_inputs["weights"].data, strict=True)
    )
    assert close(learnt.metrics["loss:sum"], expected), (learnt.metrics, expected)


@feature("optim_step, pipelined pairs")
def pipelined(service):
    client = trainer(service)
    pairs = [(client.forward_backward([datum()], "cross_entropy"), client.optim_step(STEP)) for _ in range(5)]
    losses = [passed.result().metrics["loss:sum"] for passed, _ in pairs]
    assert losses == sorted(losses, reverse=True), losses
    metrics = pairs[-1][1].result().metrics
    assert metrics is not None
    assert all(name.count(":") == 1 and math.isfinite(value) for name, value in metrics.items()), metrics


@feature("gradients accumulate over calls")
def accumulation(service):
    data = [datum(), datum((1, 50, 51, 52, 53))]
    apart, together = trainer(service), trainer(service)
    for each in data:
        apart.forward_backward([each], "cross_entropy")
    together.forward_backward(data, "cross_entropy")
    for client in (apart, together):
        client.optim_step(STEP)
    rows = [logprobs_of(client.forward(data, "cross_entropy").result()) for client in (apart, together)]
    assert all(close(a, b) for left, right in zip(*rows, strict=True) for a, b in zip(left, right, strict=True)), rows


@feature("calls of several chunks, in order")
def chunks(service):
    client = trainer(service)
    data = [datum([1, *([40] * (1 + index % 3)), 41]) for index in range(1030)]
    output = client.forward(data, "cross_entropy").result()
    assert [len(row) for row in logprobs_of(output)] == [each.model_input.length for each in data]


def expected_loss(p, name, config):
    """After the table of losses, with q, A and r = exp(p - q)."""
    r = [math.exp(now - then) for now, then in zip(p, Q, strict=True)]
    clipped = [min(max(x, config.get("clip_low_threshold", 0.0)), config.get("clip_high_threshold", 9e9)) for x in r]
    match name:
        case "importance_sampling":
            return -sum(x * a for x, a in zip(r, A, strict=True))
        case "ppo":
            return -sum(min(x * a, c * a) for x, c, a in zip(r, clipped, A, strict=True))
        case "cispo":
            return -sum(c * now * a for c, now, a in zip(clipped, p, A, strict=True))
        case "dro":
            terms = zip(p, Q, A, strict=True)
            return -sum(now * a - 0.5 * config["beta"] * (now - then) ** 2 for now, then, a in terms)
    raise AssertionError(name)


LOSSES = {
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.7, "clip_high_threshold": 1.3},
    "dro": {"beta": 0.05},
}


def check_loss(name, config):
    def check(service):
        client = trainer(service)
        data = [datum(logprobs=Q, advantages=A)]
        output = client.forward_backward(data, name, config or None).result()
        (p,) = logprobs_of(output)
        assert close(output.metrics["loss:sum"], expected_loss(p, name, config)), output.metrics
        client.optim_step(STEP).result()

    return check


for name, config in LOSSES.items():
    feature(f"loss {name}")(check_loss(name, config))


@feature("loss gspo", since="0.34")
def gspo(service):
    data = [datum(logprobs=Q, advantages=A, sequence_ratio_mask=[1.0] * 5)]
    output = trainer(service).forward_backward(data, "gspo").result()
    assert math.isfinite(output.metrics["loss:sum"])


@feature("loss stable_reinforce", since="0.36")
def stable_reinforce(service):
    client = trainer(service)
    sampler = made(client.save_weights_and_get_sampling_client(record_stability_info=True))
    prompt = [1, 40, 41]
    params = tinker.SamplingParams(max_tokens=4, seed=1)
    (sequence,) = sampler.sample(tinker.ModelInput.from_ints(prompt), 1, params).result().sequences
    sampled, name = list(sequence.tokens), sequence.sequence_id
    inputs = {"logprobs": [0.0, 0.0, *sequence.logprobs], "advantages": [0.0, 0.0, *([1.0] * len(sampled))]}
    spans = tinker.PromptProvenanceSpan, tinker.SampledProvenanceSpan
    traced = datum([*prompt, *sampled], **inputs).with_provenance(
        model_input=[spans[0](sequence_id=name, length=3), spans[1](sequence_id=name, length=len(sampled) - 1)],
        loss_fn_inputs=[
            spans[0](sequence_id=name, offset=1, length=2),
            spans[1](sequence_id=name, length=len(sampled)),
        ],
    )
    output = client.forward_backward([traced], "stable_reinforce").result()
    assert math.isfinite(output.metrics["loss:sum"])
    client.optim_step(STEP).result()


@feature("cross_entropy over several targets a position")
def several_targets(service):
    client, tokens = trainer(service), [1, 40, 41, 60]
    candidates = torch.tensor([[40, 50], [41, 51], [60, 52]])
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    inputs = {
        "target_tokens": tinker.TensorData.from_torch(candidates),
        "weights": tinker.TensorData.from_torch(weights),
    }
    wide = tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
    output = client.forward_backward([wide], "cross_entropy").result()
    p = output.loss_fn_outputs[0]["logprobs"].to_torch().reshape(3, 2)
    assert close(output.metrics["loss:sum"], float(-(p * weights).sum()))
    narrow = client.forward([datum(tokens)], "cross_entropy").result()
    assert all(close(a, b) for a, b in zip(p[:, 0].tolist(), logprobs_of(narrow)[0], strict=True))


@feature("cross_entropy with sparse weights")
def sparse_weights(service):
    client = trainer(service)
    tokens = list(range(1, 34))
    weights = torch.zeros(32, 8)
    weights[30:, 0] = 1.0
    targets = torch.zeros(32, 8, dtype=torch.int64)
    targets[:, 0] = torch.tensor(tokens[1:])
    sparse = tinker.TensorData.from_torch_sparse(weights)
    assert sparse.sparse_crow_indices is not None, "the SDK sent it dense"

    def loss(given):
        inputs = {"target_tokens": tinker.TensorData.from_torch(targets), "weights": given}
        each = tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
        return client.forward([each], "cross_entropy").result().metrics["loss:sum"]

    assert close(loss(sparse), loss(tinker.TensorData.from_torch(weights)))


@feature("forward_backward_custom, on the client")
def custom(service):
    plain, client = trainer(service), trainer(service)

    def nll(data, logprobs):
        loss = -logprobs[0].sum()
        return loss, {"mine": float(loss)}

    given = client.forward_backward_custom([datum()], nll).result()
    known = plain.forward_backward([datum()], "cross_entropy").result()
    assert close(given.metrics["mine"], known.metrics["loss:sum"]), given.metrics
    for each in (plain, client):
        each.optim_step(STEP)
    rows = [logprobs_of(each.forward([datum()], "cross_entropy").result())[0] for each in (plain, client)]
    assert all(close(a, b) for a, b in zip(*rows, strict=True)), rows


def trained(service):
    client = trainer(service)
    for _ in range(2):
        client.forward_backward([datum()], "cross_entropy")
        client.optim_step(STEP).result()
    return client


def next_losses(client):
    losses = []
    for _ in range(2):
        passed, stepped = client.forward_backward([datum()], "cross_entropy"), client.optim_step(STEP)
        losses.append(passed.result().metrics["loss:sum"])
        stepped.result()
    return losses


@feature("save_state and exact resumption")
def resumption(service):
    client = trained(service)
    path = client.save_state("middle").result().path
    assert path == f"tinker://{client.model_id}/weights/middle"
    resumed = made(service.create_training_client_from_state_with_optimizer(path))
    assert resumed.model_id != client.model_id
    assert next_losses(resumed) == next_losses(client)
    fresh = made(service.create_training_client_from_state(path))
    assert fresh.get_info().lora_rank == 4
    assert fresh.get_info().model_data.model_name == MODEL


@feature("load_state in place")
def load_in_place(service):
    client = trained(service)
    path = client.save_state("here").result().path
    losses = next_losses(client)
    client.load_state_with_optimizer(path).result()
    assert next_losses(client) == losses


@feature("a name that is taken; overwrite")
def taken_name(service):
    client = trained(service)
    client.save_state("kept").result()
    with refused("kept"):
        client.save_state("kept").result()
    assert next_losses(client), "the client goes on"


@feature("overwrite a checkpoint", since="0.34")
def overwrite(service):
    client = trained(service)
    path = client.save_state("kept").result().path
    assert client.save_state("kept", overwrite=True).result().path == path


@feature("users' mistakes are told at once")
def mistakes(service):
    client = trainer(service)
    with refused("advantages"):
        client.forward_backward([datum(logprobs=Q)], "ppo").result()
    with refused("target_tokens"):
        client.forward_backward([datum((1, 40, 10**6))], "cross_entropy").result()
    with refused("weights"):
        client.forward_backward([datum(weights=[math.nan] * 5)], "cross_entropy").result()
    with refused("bogus"):
        client.forward_backward([datum()], "bogus").result()
    with refused("nowhere"):
        made(service.create_training_client_from_state(f"tinker://{client.model_id}/weights/nowhere"))
    assert next_losses(client), "the client goes on"


@feature("an unknown base model lists what is served")
def unknown_model(service):
    with refused("nobody/serves-this", MODEL):
        made(service.create_lora_training_client("nobody/serves-this", rank=4))


@feature("another optimizer than AdamW is refused, saying so")
def dimuon(service):
    with refused("dimuon", "adamw"):
        made(service.create_lora_training_client(MODEL, rank=4, optimizer=tinker.DimuonOptimizerConfig()))


if __name__ == "__main__":
    main()
