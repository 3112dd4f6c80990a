"""What whoever starts a sampler may say about its OpenAI API, the same for a replica and a router."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from farstep_sampler.openai_api.tools.formats import FORMATS


@dataclass(frozen=True, slots=True)
class OpenAiSettings:
    """`served_names` are further names of the base model; `tool_parser` is a format of calls, None: the template's."""

    served_names: Sequence[str] = ()
    tool_parser: str | None = None


def add_openai_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--served-name",
        "--served-model-name",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of the base model",
    )
    parser.add_argument(
        "--tool-call-parser",
        choices=sorted(FORMATS),
        help="how the model writes tool calls (default: as its chat template has it)",
    )


def take_openai_flags(flags: argparse.Namespace) -> OpenAiSettings:
    """The settings in parsed flags, which have them no more."""
    settings = OpenAiSettings(tuple(flags.served_name), flags.tool_call_parser)
    del flags.served_name, flags.tool_call_parser
    return settings
