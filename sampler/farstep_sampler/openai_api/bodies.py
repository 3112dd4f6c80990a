"""What the OpenAI routes take: bodies with their types checked, and nothing ignored that would change the answer.

Types are strict: "0.5" is no number and 1 is no truth value. A parameter that is not here is refused by its name,
unless it is null; those in `_Harmless` are taken and change nothing. Names beyond OpenAI's own are vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from farstep_proto.errors import InvalidInput
from farstep_sampler.openai_api.tools.messages import Message, Tool, ToolChoice

MAX_PROMPTS = 1024

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
B = TypeVar("B", bound=BaseModel)


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)

    @model_validator(mode="after")
    def _refuse_unknown(self) -> Body:
        for name, value in (self.model_extra or {}).items():
            if value is not None:
                raise PydanticCustomError("unsupported", "{name} is not supported", {"name": name})
        return self


class JsonSchema(Body):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Harmless(Body):
    """Taken, and of no consequence for the answer; users take turns where there is a queue."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_retention: str | None = None


class Common(_Harmless):
    """What both kinds of completion take."""

    model: str
    n: Int32 = 1
    max_tokens: Int32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int32] | None = None
    ignore_eos: bool = False
    min_tokens: Int32 = 0
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    prompt_logprobs: Int32 | None = None
    skip_special_tokens: bool = True
    prompt_cache_key: str | None = None
    gate_wait_s: float | None = None
    in_flight: Literal["finish", "switch"] = "finish"

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        """Null stands for the default, as in OpenAI's own API."""
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else (self.stop or [])


class ChatBody(Common):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Int32 | None = None
    logprobs: bool = False
    top_logprobs: Int32 = 0
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    prefix_token_ids: list[Int32] | None = None
    max_context_len: Annotated[Int32, Field(ge=1)] | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionBody(Common):
    prompt: str | list[str] | list[Int32] | list[list[Int32]]
    echo: bool = False
    logprobs: Int32 | None = None
    best_of: Int32 | None = None
    add_special_tokens: bool = True


def parse(kind: type[B], body: bytes) -> B:
    """A body of the kind.

    Raises:
        InvalidInput: naming the parameter.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = _place(first["loc"])
        if first["type"] == "unsupported":
            where = f"{where}.{first['ctx']['name']}".lstrip(".")
        raise InvalidInput(_printable(first["msg"]), field=_printable(where)) from error


def _place(loc: tuple[int | str, ...]) -> str:
    """messages[0].content; pydantic also names the members of unions, which are no places."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in _TAGS:
            text += f".{part}"
    return text.lstrip(".")


_TAGS = {"str", "int", "float", "bool", "list", "dict", "TextPart", "NamedChoice"}


def _printable(text: str) -> str:
    """Without the halves of characters that a body may hold."""
    return text.encode(errors="replace").decode()
