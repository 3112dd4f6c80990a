"""Whether and how a chat's answer may call tools: the format to read, or the schema to hold the text to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.openai_api.bodies import ChatBody
from farstep_sampler.openai_api.tools.formats import FORMATS, SPECIAL_MARKS, detect
from farstep_sampler.openai_api.tools.guided import GuidedArguments, GuidedList, schema_of
from farstep_sampler.openai_api.tools.messages import NamedChoice
from farstep_sampler.openai_api.tools.parsing import ToolParser
from farstep_sampler.openai_api.tools.schemas import Schemas


@dataclass(frozen=True, slots=True)
class Calling:
    """`is_on` tells that the model is shown the tools; `schema` is what its text must match, as JSON."""

    is_on: bool = False
    make_parser: Callable[[], ToolParser] | None = None
    needs_special_tokens: bool = False
    schema: str | None = None
    is_named: bool = False

    def constrain(self, params: pb.SamplingParams) -> None:
        """Raises InvalidInput where the text must match something else already."""
        if self.schema is None:
            return
        if params.choice or any(params.HasField(name) for name in ("json_schema", "regex", "grammar")):
            raise InvalidInput("a call that must be made leaves no choice of format", field="tool_choice")
        params.json_schema = self.schema


def calling_of(body: ChatBody, chat_template: str, *, parser: str | None) -> Calling:
    """What a chat's tools and tool_choice mean for a model with this template.

    Args:
        parser: the format that the server was told; None: as the template has it.

    Raises:
        InvalidInput: the model cannot be shown tools, or a tool is chosen that is not there.
    """
    tools = [tool.function for tool in body.tools or []]
    choice = body.tool_choice or ("auto" if tools else "none")
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidInput("two tools have the same name", field="tools")
    if choice != "none" and not tools:
        raise InvalidInput("there are no tools", field="tool_choice")
    if choice == "none":
        return Calling()
    if "tools" not in chat_template and parser is None:
        raise InvalidInput(
            "this model's chat template knows no tools", field="tools", hint="leave tools out, or use another model"
        )
    if choice == "auto":
        schemas = {tool.name: tool.parameters or {} for tool in tools}
        return _auto(schemas, parser or detect(chat_template), body)
    at_most = None if body.parallel_tool_calls else 1
    if choice == "required":
        schema = json.dumps(schema_of(tools, named=None, at_most=at_most))
        return Calling(True, partial(GuidedList, names), schema=schema)
    assert isinstance(choice, NamedChoice)
    name = choice.function.name
    if name not in names:
        raise InvalidInput(f"{name!r} is none of the tools", field="tool_choice.function.name")
    schema = json.dumps(schema_of(tools, named=name, at_most=None))
    return Calling(True, partial(GuidedArguments, name), schema=schema, is_named=True)


def _auto(schemas: Schemas, parser: str | None, body: ChatBody) -> Calling:
    if parser is None:
        raise InvalidInput(
            "how this model writes calls is not known",
            field="tools",
            hint="start the sampler with --tool-call-parser, or choose a tool by tool_choice",
        )
    if not body.parallel_tool_calls:
        raise InvalidInput("false needs tool_choice required or a named tool", field="parallel_tool_calls")
    return Calling(True, partial(FORMATS[parser], schemas), parser in SPECIAL_MARKS)
