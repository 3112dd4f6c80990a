"""The sampling parameters of a body in the sampler's own terms. Their ranges are the sampler's to check."""

from __future__ import annotations

import json

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.openai_api.bodies import Common

_PLAIN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def sampling_params(body: Common, *, max_tokens: int | None) -> pb.SamplingParams:
    """Raises InvalidInput for what cannot be said in the sampler's terms."""
    params = pb.SamplingParams(
        max_tokens=max_tokens,
        stop_strings=body.stop_strings,
        stop_tokens=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
    )
    for name in _PLAIN:
        if (value := getattr(body, name)) is not None:
            setattr(params, name, _top_k(value) if name == "top_k" else value)
    for token, bias in (body.logit_bias or {}).items():
        params.logit_bias[_token(token)] = bias
    _constrain(params, body)
    return params


def _top_k(value: int) -> int:
    return -1 if value == 0 else value  # vLLM's two words for "all"


def _token(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise InvalidInput(f"{text[:40]!r} is not a token id", field="logit_bias")
    return int(text)


def _constrain(params: pb.SamplingParams, body: Common) -> None:
    wanted, outputs = body.response_format, body.structured_outputs
    if wanted is not None and wanted.type != "text" and outputs is not None:
        raise InvalidInput("give response_format or structured_outputs, not both", field="structured_outputs")
    if wanted is not None and wanted.type == "json_object":
        params.json_schema = '{"type": "object"}'
    elif wanted is not None and wanted.type == "json_schema":
        if wanted.json_schema is None or wanted.json_schema.schema_ is None:
            raise InvalidInput("is missing", field="response_format.json_schema.schema")
        params.json_schema = _json(wanted.json_schema.schema_, "response_format.json_schema.schema")
    if outputs is not None:
        if outputs.json_ is not None:
            schema = outputs.json_
            params.json_schema = schema if isinstance(schema, str) else _json(schema, "structured_outputs.json")
        if outputs.regex is not None:
            params.regex = outputs.regex
        if outputs.grammar is not None:
            params.grammar = outputs.grammar
        params.choice.extend(outputs.choice or [])


def _json(value: object, field: str) -> str:
    try:
        return json.dumps(value)
    except RecursionError as error:
        raise InvalidInput("nests too deep", field=field) from error
