"""What the control plane's routes say of lists and creations alike."""

from __future__ import annotations

from collections.abc import Sequence

from farstep_infra.control.pages import MAX_LIMIT
from farstep_proto import paths
from farstep_serving.descriptions import PAGE, Parameter, header, query

PROJECT = query("project", "only what is of this project; absent: all that the key may see")
LIMIT = query("limit", "how many a page has at most", type="integer", minimum=1, maximum=MAX_LIMIT)
ONCE = header(
    paths.IDEMPOTENCY_KEY,
    "chosen by the client: the same request under the same key is done once, and answered again",
    type="string",
    pattern="^[!-~]{1,200}$",
)


def pages(*more: Parameter) -> tuple[Parameter, ...]:
    return (PAGE, LIMIT, *more)


def choice(name: str, description: str, choices: Sequence[str]) -> Parameter:
    return query(name, description, type="string", enum=list(choices))
