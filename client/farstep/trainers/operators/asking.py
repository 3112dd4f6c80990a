"""Whom the optimizers of a configuration ask, and which these are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farstep.trainers.chat import Chat, as_chat
from farstep.trainers.errors import ConfigError
from farstep.trainers.operators.config import NO_MODEL, OperatorConfig
from farstep.trainers.operators.instruction import InstructionOptimizer
from farstep.trainers.operators.optimizer import OperatorOptimizer
from farstep.trainers.operators.tool_descriptions import ToolOptimizer

if TYPE_CHECKING:
    from farstep.sampling import SamplingClient
    from farstep.service import ServiceClient


@dataclass(frozen=True, slots=True)
class Asked:
    """`client` is closed with the trainer, and so is a service that it owns."""

    chat: Chat | None = None
    client: SamplingClient | None = None
    service: ServiceClient | None = None
    owns_service: bool = False


def connect(config: OperatorConfig, given: Any, *, is_needed: bool) -> Asked:
    """
    Args:
        given: a `SamplingClient`, a `ServiceClient`, a function of messages, or None: the configuration's model.
        is_needed: whether somebody has to be there.

    Raises:
        ConfigError: nothing says whom to ask.
        TrainerError: what was given cannot be asked.
    """
    from farstep.service import ServiceClient

    if given is not None and not isinstance(given, ServiceClient):
        return Asked(as_chat(given, **_sampling(config)))
    model = config.model
    if model.base == NO_MODEL and model.path is None:
        if given is None and not is_needed:
            return Asked()
        raise ConfigError(
            "missing: whom shall the optimizer ask?",
            field="model",
            hint="a model, or client=, a SamplingClient or a function of messages",
        )
    service = given if given is not None else ServiceClient()
    try:
        if model.path is not None:
            client = service.create_sampling_client(model_path=model.path)
        else:
            client = service.create_sampling_client(base_model=model.base)
    except BaseException:
        if given is None:
            service.close()
        raise
    return Asked(as_chat(client, **_sampling(config)), client, service, given is None)


def configured_optimizers(config: OperatorConfig) -> list[OperatorOptimizer]:
    wanted = config.operators
    about: dict[str, Any] = {"num_weak": wanted.num_weak, "weak_below": wanted.weak_below}
    made: list[OperatorOptimizer] = []
    for name in wanted.optimizer:
        match name:
            case "instruction":
                made.append(InstructionOptimizer(**about))
            case "tool":
                made.append(ToolOptimizer(beam_width=wanted.beam_width, **about))
    return made


def _sampling(config: OperatorConfig) -> dict[str, Any]:
    wanted = config.sampling
    return {
        "max_tokens": wanted.max_tokens,
        "temperature": 0.0 if wanted.greedy else wanted.temperature,
        "top_p": wanted.top_p,
        "top_k": wanted.top_k,
        "min_p": wanted.min_p,
        "stop": list(wanted.stop) or None,
    }
