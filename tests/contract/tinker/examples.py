"""Data for both SDKs: the same tokens, said in either's words."""

import farstep

PROMPT, ANSWER = [1, 40, 41, 42], [50, 51, 52, 53, 2]


def tinker_datum(shift=0):
    import tinker
    from tinker import types

    tokens = [*PROMPT, *(token + shift for token in ANSWER)]
    weights = [0.0] * (len(PROMPT) - 1) + [1.0] * len(ANSWER)
    num = len(tokens) - 1
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=[num]),
            "weights": tinker.TensorData(data=weights, dtype="float32", shape=[num]),
        },
    )


def farstep_datum(shift=0):
    tokens = [*PROMPT, *(token + shift for token in ANSWER)]
    weights = [0.0] * (len(PROMPT) - 1) + [1.0] * len(ANSWER)
    inputs = {"target_tokens": tokens[1:], "weights": weights}
    return farstep.Datum(model_input=farstep.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def tinker_adam(learning_rate=1e-2):
    from tinker import types

    return types.AdamParams(learning_rate=learning_rate)


def logprobs_of(output):
    """All of a result's, in order; of either SDK."""
    values = []
    for fields in output.loss_fn_outputs:
        tensor = fields["logprobs"]
        values += list(tensor.data) if hasattr(tensor, "data") else list(tensor.to_numpy())
    return values


def step(model, *shifts):
    """One pipelined step of a Tinker model; both results."""
    gradients = model.forward_backward([tinker_datum(shift) for shift in shifts], "cross_entropy")
    update = model.optim_step(tinker_adam())
    return gradients.result(), update.result()
