"""PEFT's file format: names of tensors, the config, and what of it is understood.

LoRA is read, plain, rank-stabilised or weight-decomposed. A setting that would change what an adapter computes in
another way is refused by name, also one that a newer PEFT added, because leaving it out would silently give other
numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from enum import Enum
from typing import Any

from peft import LoraConfig

from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput
from farstep_proto.validation import MAX_LORA_RANK

TENSORS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

# Settings that say where an adapter comes from or which tensors there are (the tensors themselves tell), not what is
# computed with them.
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "peft_version",
        "r",
        "revision",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)
# Ways to draw the first weights that leave the base as it is.
_HARMLESS_INIT = (True, False, None, "gaussian", "eva", "orthogonal")


_MOST_SHOWN = 200
_HEADER_BYTES, _HEADER_BYTES_A_LAYER = 64 << 10, 2 << 10  # metadata with a config in it; four entries of 512 bytes


def tensor_keys(module: str, *, use_dora: bool = False) -> tuple[str, ...]:
    """Keys of A and B of a module, and with DoRA of its magnitudes."""
    kinds = ("lora_A.weight", "lora_B.weight", *(("lora_magnitude_vector",) if use_dora else ()))
    return tuple(f"base_model.model.{module}.{kind}" for kind in kinds)


def base_weight_key(module: str) -> str:
    """Key of the copy of the base's weight that PEFT keeps beside an adapted embedding."""
    return f"base_model.model.{module}.base_layer.weight"


def config(spec: LoraSpec, *, base_model_name: str, target_modules: Sequence[str]) -> dict[str, object]:
    """What PEFT itself would write for the spec."""
    alpha = float(spec.alpha or spec.rank)
    made = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # readers other than PEFT insist on an integer
        lora_dropout=spec.dropout,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        target_modules=list(target_modules),
        base_model_name_or_path=base_model_name,
        inference_mode=True,
    )
    return {key: _plain(value) for key, value in made.to_dict().items()}


def encode_config(content: dict[str, object]) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True).encode()


def read_config(data: bytes) -> LoraSpec:
    """The settings in an `adapter_config.json`, but for the layers, which the tensors tell.

    Raises:
        InvalidInput: no JSON object, not LoRA, or a setting that is not understood, by name.
    """
    try:
        content = json.loads(data)
        rank, alpha = content["r"], float(content["lora_alpha"])
        dropout = float(content.get("lora_dropout") or 0.0)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"not a LoRA config: {_short(error)}", field=CONFIG_FILE) from error
    if type(rank) is not int or not 1 <= rank <= MAX_LORA_RANK:
        raise InvalidInput(f"{_short(rank)} is not between 1 and {MAX_LORA_RANK}", field=f"{CONFIG_FILE}.r")
    if content.get("peft_type") != "LORA":
        raise InvalidInput(f"{_short(content.get('peft_type'))} is not LORA", field=f"{CONFIG_FILE}.peft_type")
    _check_plain(content)
    use_rslora, use_dora = (bool(content.get(name)) for name in ("use_rslora", "use_dora"))
    return LoraSpec(rank=rank, alpha=alpha, dropout=dropout, use_rslora=use_rslora, use_dora=use_dora)


def metadata(data: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors blob.

    Raises:
        InvalidInput: the header is broken.
    """
    try:
        (size,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + size])
        return dict(header.get("__metadata__", {}))
    except (struct.error, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput("not a safetensors blob", field="adapter") from error


def check_header(data: bytes, *, num_layers: int, field: str = TENSORS_FILE) -> None:
    """Refuses a blob whose header is larger than the names of so many layers' tensors: it takes twenty times its size.

    Raises:
        InvalidInput: as said, or there is no header.
    """
    if len(data) < 8:
        raise InvalidInput("not a safetensors file: it has no header", field=field)
    (size,) = struct.unpack_from("<Q", data)
    most = _HEADER_BYTES + num_layers * _HEADER_BYTES_A_LAYER
    if size > most:
        raise InvalidInput(f"a header of {size} bytes, at most {most} are possible here", field=field)


def _check_plain(content: dict[str, Any]) -> None:
    plain = {key: _plain(value) for key, value in LoraConfig().to_dict().items()}
    for key, value in content.items():
        if key == "init_lora_weights":
            is_plain = value in _HARMLESS_INIT
        else:
            is_plain = key in _HARMLESS or not value or value == plain.get(key)
        if not is_plain:
            raise InvalidInput(
                f"{key[:_MOST_SHOWN]}={_short(value)} changes what is computed in a way that is not understood",
                field=f"{CONFIG_FILE}.{key[:_MOST_SHOWN]}",
            )


def _short(value: object) -> str:
    """For a message: what somebody wrote may be a megabyte."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return sorted(value) if isinstance(value, set) else value
