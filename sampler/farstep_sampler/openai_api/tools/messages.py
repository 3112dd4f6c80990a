"""Messages, tools and tool choices as the API has them, and in the form that chat templates take."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from farstep_proto.errors import InvalidInput

_CONFIG = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class FunctionCall(BaseModel):
    model_config = _CONFIG
    name: str
    arguments: str


class ToolCall(BaseModel):
    model_config = _CONFIG
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class TextPart(BaseModel):
    model_config = _CONFIG
    type: str
    text: str | None = None


class Message(BaseModel):
    model_config = _CONFIG
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def for_template(self, field: str, *, knows_developer: bool) -> dict[str, Any]:
        """As chat templates of transformers take it.

        Raises:
            InvalidInput: content that is no text, or a call's arguments that are no JSON object.
        """
        for name, value in (self.model_extra or {}).items():
            if value and name != "refusal" and name != "annotations":
                raise InvalidInput("is not supported", field=f"{field}.{name}")
        role = "system" if self.role == "developer" and not knows_developer else self.role
        message: dict[str, Any] = {"role": role, "content": self._text(field)}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [
                _call_for_template(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(self.tool_calls)
            ]
        return message

    def _text(self, field: str) -> str:
        match self.content:
            case str() as text:
                return text
            case None:
                if self.role != "assistant" or not self.tool_calls:
                    raise InvalidInput("is missing", field=f"{field}.content")
                return ""
            case parts:
                for index, part in enumerate(parts):
                    if part.type != "text" or part.text is None:
                        raise InvalidInput(
                            f"a part of type {part.type!r} is not supported, text is",
                            field=f"{field}.content[{index}].type",
                        )
                return "".join(part.text or "" for part in parts)


def _call_for_template(call: ToolCall, field: str) -> dict[str, Any]:
    """Templates write a call's arguments themselves, from the object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"is not JSON: {error}", field=f"{field}.function.arguments") from error
    if not isinstance(arguments, dict):
        raise InvalidInput("is not a JSON object", field=f"{field}.function.arguments")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


class Function(BaseModel):
    model_config = _CONFIG
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """Also as the Responses API and some agents write it: the function's fields beside the type, or alone."""

    model_config = _CONFIG
    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "function" in data or "name" not in data:
            return data
        return {
            "type": data.get("type", "function"),
            "function": {key: value for key, value in data.items() if key != "type"},
        }

    def for_template(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class ChosenFunction(BaseModel):
    model_config = _CONFIG
    name: str


class NamedChoice(BaseModel):
    model_config = _CONFIG
    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Literal["none", "auto", "required"] | NamedChoice
