"""A stream of samples that broke off, heard again from its beginning: what was delivered is compared and left out.

Same seed, same version, same request: same tokens. So the same stream says the same again, though it may be cut into
deltas differently, and its log-probabilities may differ in the last digits on other hardware. Where a token or its
version is another one, the two are not the same stream, and nothing of the second may be delivered.
"""

from __future__ import annotations

from collections import defaultdict

from farstep_proto.v1 import sampling_pb2 as pb


class Differs(Exception):
    """What is heard now is not what was delivered."""


class Delivered:
    """What one reader has been given of a stream."""

    def __init__(self) -> None:
        self.begin: pb.SampleBegin | None = None
        self._tokens: defaultdict[int, bytearray] = defaultdict(bytearray)
        self._versions: defaultdict[int, bytearray] = defaultdict(bytearray)
        self._ended: set[int] = set()
        self._num_heard: defaultdict[int, int] = defaultdict(int)

    @property
    def is_anything(self) -> bool:
        return self.begin is not None

    def start_again(self) -> None:
        """The stream is heard from its beginning."""
        self._num_heard.clear()

    def take(self, event: pb.SampleEvent) -> pb.SampleEvent | None:
        """What of an event is new; None where nothing is.

        Raises:
            Differs: it says something else than before.
        """
        match event.WhichOneof("event"):
            case "begin":
                return self._take_begin(event)
            case "delta":
                return self._take_delta(event)
            case _:
                return event

    def _take_begin(self, event: pb.SampleEvent) -> pb.SampleEvent | None:
        if self.begin is None:
            self.begin = event.begin
            return event
        if event.begin != self.begin:
            raise Differs(f"version {event.begin.policy_version} instead of {self.begin.policy_version}")
        return None

    def _take_delta(self, event: pb.SampleEvent) -> pb.SampleEvent | None:
        delta, index = event.delta, event.delta.index
        assert self.begin is not None
        count = len(delta.tokens) // 4
        own_version = self.begin.policy_version.to_bytes(8, "little", signed=True)
        versions = delta.policy_versions or own_version * count
        start = self._num_heard[index]
        self._num_heard[index] += count
        num_known = max(0, min(count, len(self._tokens[index]) // 4 - start))
        known_tokens = self._tokens[index][4 * start : 4 * (start + num_known)]
        known_versions = self._versions[index][8 * start : 8 * (start + num_known)]
        if delta.tokens[: 4 * num_known] != known_tokens or versions[: 8 * num_known] != known_versions:
            raise Differs(f"other tokens of sample {index}")
        if num_known == count and (not delta.stop_reason or index in self._ended):
            return event if count == 0 and not delta.stop_reason else None
        if index in self._ended:
            raise Differs(f"more tokens of sample {index}")
        if delta.stop_reason:
            self._ended.add(index)
        self._tokens[index] += delta.tokens[4 * num_known :]
        self._versions[index] += versions[8 * num_known :]
        return event if num_known == 0 else pb.SampleEvent(delta=_without(delta, num_known))


def _without(delta: pb.SampleDelta, num: int) -> pb.SampleDelta:
    """The delta without its first tokens."""
    rest = pb.SampleDelta(
        index=delta.index,
        tokens=delta.tokens[4 * num :],
        logprobs=delta.logprobs[4 * num :],
        policy_versions=delta.policy_versions[8 * num :],
        stop_reason=delta.stop_reason,
    )
    if delta.HasField("topk_logprobs"):
        k = delta.topk_logprobs.k
        rest.topk_logprobs.k = k
        rest.topk_logprobs.token_ids = delta.topk_logprobs.token_ids[4 * k * num :]
        rest.topk_logprobs.logprobs = delta.topk_logprobs.logprobs[4 * k * num :]
    return rest
