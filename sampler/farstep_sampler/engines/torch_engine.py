"""The torch engine: an unmodified transformers model, decoded in one batch that sequences join and leave at any step.

    step:  admit → prefill contexts, place them in rows → decode one token a row → sample → let the finished go

Prefill stops before the last token of a context, so that every sampled token, the first one too, comes out of
the same decode and the same sampling. A request's prompt is computed once for all its samples.

It knows nothing of versions, HTTP or threads: it is given slots with adapters in them and is called by one
thread. A failure costs the requests that were in it; the engine goes on.

Shapes: T positions, R rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from farstep_model.adapter import Adapter
from farstep_model.batching import micro_batches
from farstep_model.load import BaseModel
from farstep_proto.errors import ApiError, InvalidInput, ModelError
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.decode_mask import DecodeMask
from farstep_sampler.engines.kv_rows import KVRows
from farstep_sampler.engines.prefill import PromptPass, prefill, take_prefix
from farstep_sampler.engines.row_state import RowState
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleDelta, SampleResult, SampleSequence, Topk
from farstep_sampler.sampling import sample
from farstep_sampler.scheduler import Group, Join, Move, Scheduler, Sequence
from farstep_sampler.stops import StopStrings

log = logging.getLogger(__name__)

_PREFILL_TOKENS = 4096
_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A job that ended, well or not; `ticket` is the one it was submitted with."""

    ticket: int
    outcome: SampleResult | Exception


@dataclass(frozen=True, slots=True, eq=False)
class News:
    """What a job that is watched has gained in a step."""

    ticket: int
    delta: SampleDelta


class TorchEngine:
    """Samples for one replica.

    Args:
        max_rows: most sequences decoded at a time.
        budget_tokens: most cached tokens, rows × columns.

    Raises:
        InvalidInput: the model cannot be decoded with this cache; found by trying, before anything is served.
    """

    def __init__(self, base: BaseModel, adapters: AdapterTable, *, max_rows: int, budget_tokens: int) -> None:
        self._base = base
        self._adapters = adapters
        self._mask = DecodeMask.of(base.model.config.get_text_config())
        self._kv = KVRows(budget_tokens=budget_tokens, device=base.device)
        self._scheduler = Scheduler(max_rows=max_rows, fits=self._kv.fits, prefill_tokens=_PREFILL_TOKENS)
        self._groups: dict[int, Group] = {}
        self._prompts: dict[int, PromptPass] = {}  # by ticket, once computed
        self._news: list[News] = []
        self._state: RowState | None = None  # None: who is in which row has changed
        self._check_decoding()

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def load(self, slot: int, adapter: Adapter) -> None:
        """Puts an adapter into a slot that no job uses.

        Raises:
            InvalidInput: it has weights that are not finite.
        """
        self._adapters.load(slot, adapter)

    def submit(self, ticket: int, job: SampleJob, *, slot: int, version: int = 0, streams: bool = False) -> None:
        """Takes a job; a later `step` reports what came of it, under its ticket.

        Args:
            version: of the weights in the slot; its tokens are labelled with it.
            streams: whether `take_news` shall tell its tokens as they come.
        """
        group = Group(ticket, job, slot, version, streams, self._make_stops)
        self._groups[ticket] = group
        self._scheduler.add(group)

    def cancel(self, ticket: int) -> None:
        """Frees whatever a job holds; nothing is reported for it."""
        if ticket in self._groups:
            self._forget(self._groups[ticket])

    def switch(self, ticket: int, *, slot: int, version: int) -> None:
        """Has a job go on with the weights in another slot: its next tokens, and what has not begun.

        Keys and values that are there stay: those tokens are not read again with the new weights. The old slot is
        not used for it any more when this returns. A job that is gone is no mistake: it may just have finished.
        """
        if ticket in self._groups:
            self._groups[ticket].slot, self._groups[ticket].version = slot, version
            self._state = None

    def take_news(self) -> list[News]:
        """What the watched jobs have gained since the last call."""
        news, self._news = self._news, []
        return news

    @torch.no_grad()
    def step(self) -> list[Finished]:
        """Takes in what waits and fits, then computes one token for everything that runs."""
        finished = self._join(self._scheduler.admit())
        if self._scheduler.running:
            try:
                finished += self._decode()
            except Exception as error:  # whatever torch raises: the batch is lost, the engine is not
                log.exception("a decoding step failed")
                finished += [self._fail(group, error) for group in list(self._scheduler.groups())]
        if not self._scheduler.running:
            self._kv.clear()
        return finished

    def _join(self, joins: list[Join]) -> list[Finished]:
        finished: list[Finished] = []
        known = [join for join in joins if not join.is_resumed and join.group.ticket in self._prompts]
        for join in known:
            finished += self._place(join, self._prompts[join.group.ticket])
        new = [join for join in joins if join not in known]
        for batch in micro_batches([max(1, len(join.context)) for join in new], _PREFILL_TOKENS):
            finished += self._join_new([new[index] for index in batch])
        return finished

    def _join_new(self, joins: list[Join]) -> list[Finished]:
        joins = [join for join in joins if join.group.ticket in self._groups]  # it may have failed a moment ago
        if not joins:
            return []
        try:
            passes = prefill(joins, base=self._base, adapters=self._adapters)
        except Exception as error:  # as in `step`
            log.exception("a prefill failed")
            return [self._fail(group, error) for group in dict.fromkeys(join.group for join in joins)]
        finished: list[Finished] = []
        for join, computed in zip(joins, passes, strict=True):
            if not join.is_resumed:
                self._prompts[join.group.ticket] = computed
            finished += self._place(join, computed)
        return finished

    def _place(self, join: Join, computed: PromptPass) -> list[Finished]:
        """Puts a join's sequences into rows; a job that wants no tokens ends here."""
        if not join.sequences:
            return [self._finish(join.group)]
        self._kv.write(self._scheduler.start(join), computed.prefix)
        self._state = None
        return []

    def _decode(self) -> list[Finished]:
        scheduler = self._scheduler
        while not self._kv.fits(len(scheduler.running), scheduler.longest()):
            self._rearrange(scheduler.preempt())
        longest = scheduler.longest()
        if self._state is None:
            num_rows = self._kv.padded_rows(len(scheduler.running), longest)
            self._state = RowState.of(scheduler.running, num_rows=num_rows, device=self._base.device)
        state = self._state
        logits_RV = self._forward(state.tokens, state.positions, state.slots, num_tokens=longest)
        if state.controls is not None:
            state.controls.apply(logits_RV)
        uniforms_R = state.pad([sequence.draws.next() for sequence in scheduler.running])
        sampled = sample(logits_RV, state.settings, uniforms_R, topk=state.num_topk)
        self._state = state.advanced(sampled.tokens)
        topk = Topk(sampled.topk_ids.cpu().numpy(), sampled.topk_logprobs.cpu().numpy()) if state.num_topk else None
        return self._advance(sampled.tokens.tolist(), sampled.logprobs.tolist(), topk)

    def _forward(self, tokens_R: Tensor, positions_R: Tensor, slots_R: Tensor, *, num_tokens: int) -> Tensor:
        """Logits [R, V] after one token a row, whose keys and values are added to the rows."""
        num_columns = self._kv.begin_step(positions_R, num_tokens=num_tokens)
        with self._adapters.active(slots_R):
            hidden_R1D = self._base.hidden_states(
                tokens_R[:, None],
                position_ids=positions_R[:, None],
                attention_mask=self._mask.build(positions_R, num_columns, self._base.dtype),
                past_key_values=self._kv,
                use_cache=True,
            )
            return self._base.logits(hidden_R1D[:, 0])

    def _advance(self, tokens: list[int], logprobs: list[float], topk: Topk | None) -> list[Finished]:
        """Gives every running sequence its token; those that end leave their rows."""
        leaving: list[int] = []
        broken: dict[Group, ApiError] = {}
        for row, sequence in enumerate(self._scheduler.running):
            if np.isnan(logprobs[row]):
                failure = sequence.controls.failure if sequence.controls is not None else None
                broken[sequence.group] = failure or _not_finite()
                self._kv.clear_row(row)
                continue
            if topk is not None and (num_topk := sequence.group.job.num_topk):
                sequence.topk_ids.append(topk.ids[row, :num_topk])
                sequence.topk_logprobs.append(topk.logprobs[row, :num_topk])
            stop_reason = sequence.push(tokens[row], logprobs[row])
            if sequence.group.streams:
                self._news.append(News(sequence.group.ticket, _delta(sequence, stop_reason)))
            if stop_reason is not None:
                leaving.append(row)
                sequence.group.finished[sequence.index] = _sample_sequence(sequence, stop_reason)
        if not leaving and not broken:
            return []
        touched = dict.fromkeys(self._scheduler.running[row].group for row in leaving)
        self._rearrange(self._scheduler.remove(leaving))
        done = [group for group in touched if len(group.finished) == group.job.num_samples]
        return [self._finish(group) for group in done] + [self._fail(group, error) for group, error in broken.items()]

    def _rearrange(self, moves: list[Move]) -> None:
        self._kv.move(moves, num_tokens=self._scheduler.longest())
        self._state = None

    def _finish(self, group: Group) -> Finished:
        prompt = self._prompts[group.ticket]
        self._forget(group)
        sequences = [group.finished.get(i) or _no_tokens(group.job) for i in range(group.job.num_samples)]
        return Finished(group.ticket, SampleResult(sequences, prompt.logprobs, prompt.topk))

    def _fail(self, group: Group, error: Exception) -> Finished:
        self._forget(group)
        return Finished(group.ticket, error)

    def _forget(self, group: Group) -> None:
        self._rearrange(self._scheduler.drop(group))
        del self._groups[group.ticket]
        self._prompts.pop(group.ticket, None)

    def _make_stops(self, job: SampleJob) -> StopStrings | None:
        if not job.stop_strings:
            return None
        return StopStrings(job.stop_strings, prompt=job.prompt[-16:].tolist(), decode=self._text)

    def _text(self, ids: Seq[int]) -> str:
        text = self._base.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    @torch.no_grad()
    def _check_decoding(self) -> None:
        """Compares two rows of unequal length with the model's own forward pass."""
        ids_T = torch.arange(9, device=self._base.device) % self._base.vocab_size
        expected_TV = self._base.logits(self._base.hidden_states(ids_T[None]))[0]
        cache = DynamicCache()
        self._base.hidden_states(ids_T[None], past_key_values=cache, use_cache=True)
        lengths = [8, 3]
        for row, length in enumerate(lengths):
            self._kv.write(range(row, row + 1), take_prefix(cache, 0, length))
        positions_R = torch.tensor(lengths, device=self._base.device)
        slots_R = torch.zeros(len(lengths), dtype=torch.long)
        logits_RV = self._forward(ids_T[positions_R], positions_R, slots_R, num_tokens=max(lengths) + 1)
        self._kv.clear()
        scale = expected_TV.abs().max().clamp_min(1.0)
        difference = ((logits_RV - expected_TV[positions_R]).abs().max() / scale).item()
        if not difference <= _CHECK_TOLERANCE[self._base.dtype]:
            raise InvalidInput(
                f"{type(self._base.model).__name__} decodes differently with a cache ({difference:.2g} of its logits)",
                field="base_model",
                hint="the torch engine serves models whose only state is keys and values",
            )


def _sample_sequence(sequence: Sequence, stop_reason: str) -> SampleSequence:
    topk = None
    if sequence.group.job.num_topk:
        topk = Topk(np.stack(sequence.topk_ids).astype(np.int32), np.stack(sequence.topk_logprobs))
    versions = sequence.versions if len(set(sequence.versions)) > 1 else []
    return SampleSequence(sequence.tokens, sequence.logprobs, stop_reason, topk, versions)


def _delta(sequence: Sequence, stop_reason: str | None) -> SampleDelta:
    """Its last token alone."""
    topk = None
    if sequence.group.job.num_topk:
        topk = Topk(sequence.topk_ids[-1][None].astype(np.int32), sequence.topk_logprobs[-1][None])
    last = slice(-1, None)
    return SampleDelta(
        sequence.index, sequence.tokens[last], sequence.logprobs[last], sequence.versions[last], stop_reason, topk
    )


def _no_tokens(job: SampleJob) -> SampleSequence:
    """The continuation of a job that looks at its prompt only."""
    shape = (0, job.num_topk)
    topk = Topk(np.zeros(shape, np.int32), np.zeros(shape, np.float32)) if job.num_topk else None
    return SampleSequence([], [], "length", topk, [])


def _not_finite() -> ModelError:
    return ModelError(
        "the model's logits are not finite with these weights",
        error_class="FloatingPointError",
        hint="training has probably diverged: sample an earlier policy, or lower the learning rate",
    )
