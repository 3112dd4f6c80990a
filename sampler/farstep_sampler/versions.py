"""The words of the version gate: policies, gates, and what may be said to a request. No state, no clock, no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PolicyId:
    """One set of weights: `source` is a run id, the path of a checkpoint, or empty for the base model.

    `history` names the numbering that `version` is of. Another history of the same run has nothing to do with it:
    its trainer lost the store, or never had it.
    """

    source: str
    version: int
    history: str = ""
    project: str = field(default="", compare=False)  # whose it is; empty: the operators'

    def __str__(self) -> str:
        return f"{self.source or 'base'}@v{self.version}"


BASE = PolicyId("", 0)
BASE_SLOT = 0


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The gate `X-Min-Policy-Version`; without any gate, `AtLeast(0)`."""

    version: int


@dataclass(frozen=True, slots=True)
class Exactly:
    """The gate `X-Policy-Version`."""

    version: int


VersionGate = AtLeast | Exactly


@dataclass(frozen=True, slots=True)
class Serve:
    policy: PolicyId
    slot: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet. `recall` is a policy that was retired, or passed over, and must be fetched."""

    newest: int
    recall: PolicyId | None = None


@dataclass(frozen=True, slots=True)
class Impossible:
    """Never: a version that nobody keeps any more. `resident` are those that could be had at once."""

    newest: int
    resident: tuple[int, ...] = ()


Decision = Serve | Wait | Impossible


@dataclass(frozen=True, slots=True)
class Load:
    """An order to put a policy into a slot; `retired` is the one that had to leave it."""

    policy: PolicyId
    slot: int
    retired: PolicyId | None
