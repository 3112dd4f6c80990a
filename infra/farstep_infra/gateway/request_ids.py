"""Request ids: what a promise is of can be read from them, so that nothing of a promise is kept here.

`{model_id}:{seq}` is an operation of a training run, `{sampling_session_id}:{seq}` a sample, `{session_id}:loss:{n}` a
custom loss. Where the result is a sampling session, its number follows: `…+snapshot:{n}` or `…+inflight:{n}`. After the
number of a loss comes the loss itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from farstep_proto.errors import InvalidInput, NotFound

MAX_SEQ = 2**31 - 1
MAX_NUMBER = 2**63 - 1  # of samples and losses: the SDK's numbers of a copied client's samples begin at 10**18
MAX_SAMPLING_SESSIONS = 10**10  # of a session
Kind = Literal["train", "sample", "loss"]

_ID = re.compile(
    r"(?P<owner>[A-Za-z0-9_.-]{1,128}:(?P<kind>train|sample):[0-9]{1,10}|[A-Za-z0-9_.-]{1,128}:(?P<loss>loss))"
    r":(?P<seq>[0-9]{1,19})(?:\+(?P<sampling>snapshot|inflight):(?P<number>[0-9]{1,10})|\+(?P<text>graph-[A-Za-z0-9_=-]+))?"
)


@dataclass(frozen=True, slots=True)
class RequestId:
    """
    Args:
        owner: a model's id, a sampling session's, or of a loss `{session_id}:loss`.
        text: of a custom loss, its id.
        sampling: "snapshot" or "inflight", of an operation whose result is the sampling session of that `number`.
    """

    kind: Kind
    owner: str
    seq: int
    sampling: str = ""
    number: int = 0
    text: str = ""

    def __str__(self) -> str:
        suffix = f"+{self.sampling}:{self.number}" if self.sampling else ""
        return f"{self.owner}:{self.seq}{suffix}" + (f"+{self.text}" if self.text else "")

    @property
    def session_id(self) -> str:
        return self.owner.partition(":")[0]

    @classmethod
    def parse(cls, text: str) -> RequestId:
        """Raises:
        NotFound: there never was such a request.
        """
        match = _ID.fullmatch(text)
        if match is None or int(match["seq"]) > MAX_NUMBER:
            raise NotFound(f"no request {text[:300]!r}", field="request_id")
        kind: Kind = "loss" if match["loss"] else "train" if match["kind"] == "train" else "sample"
        return cls(
            kind,
            match["owner"],
            int(match["seq"]),
            match["sampling"] or "",
            int(match["number"] or 0),
            match["text"] or "",
        )

    @classmethod
    def of_model(cls, model_id: str, seq: int) -> RequestId:
        """Raises:
        NotFound: there never was such a model.
        InvalidInput: it is no number of an operation.
        """
        if not 1 <= seq <= MAX_SEQ:
            raise InvalidInput(f"{seq} is not between 1 and {MAX_SEQ}", field="seq_id")
        match = _ID.fullmatch(f"{model_id}:{seq}")
        if match is None or match["kind"] != "train" or match["owner"] != model_id:
            raise NotFound(f"no model {model_id[:300]!r}", field="model_id")
        return cls("train", model_id, seq)


def model_id_of(session_id: str, model_seq_id: int) -> str:
    """As the SDK builds it by itself for a model that is made from a checkpoint."""
    return f"{session_id}:train:{model_seq_id}"
