"""The torch engine: an unmodified transformers model, decoded in one batch that sequences join and leave at any step.

    step:  admit → compute a chunk of the contexts on their way → one token for each sequence that runs

A context is everything before a sequence's last token, so that every sampled token, the first one too, comes out of
the same decoding and the same sampling. A request's prompt is computed once for all its samples, and not at all as far
as the prefix cache has it.

It knows nothing of versions, HTTP or threads: it is given slots with adapters in them and is called by one
thread. A failure costs the requests that were in it; the engine goes on.

Shapes: T positions, R rows, N tokens of a pass, D hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Seq

import numpy as np
import torch

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_model.prepared import prepare
from farstep_proto.errors import ApiError
from farstep_sampler.account import NOBODY, Account, Charge, free_of_charge, usage_of
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.base import no_tokens, not_finite
from farstep_sampler.engines.context import CHUNK_MULTIPLE, Chunk, Context
from farstep_sampler.engines.decode_batch import DecodeBatch
from farstep_sampler.engines.kv_rows import Cell, KVRows, columns_for
from farstep_sampler.engines.kv_shape import KVShape
from farstep_sampler.engines.model_pass import Decoder, batch_size
from farstep_sampler.engines.prefix_cache import PrefixCache
from farstep_sampler.engines.reports import Finished, News, delta_of, sequence_of
from farstep_sampler.request import SampleJob
from farstep_sampler.result import Topk
from farstep_sampler.sampling import sample
from farstep_sampler.scheduler import Group, Scheduler, Sequence
from farstep_sampler.stops import StopStrings

log = logging.getLogger(__name__)

_CHUNK_S = 0.025  # how long prompts may keep running sequences waiting at a step
_LEAST_CHUNK, _MOST_CHUNK = 64, 2048  # tokens


class TorchEngine:
    """Samples for one replica.

    Args:
        max_rows: most sequences decoded at a time.
        budget_tokens: most tokens that running sequences have room for.
        prefix_tokens: most tokens of earlier requests kept besides; a quarter of the budget unless given.
        charge: is told what each job used, when it has ended in whatever way.

    Raises:
        InvalidInput: the model cannot be decoded with this cache; found by trying, before anything is served.
    """

    def __init__(
        self,
        base: BaseModel,
        adapters: AdapterTable,
        *,
        max_rows: int,
        budget_tokens: int,
        prefix_tokens: int | None = None,
        charge: Charge = free_of_charge,
    ) -> None:
        prepare(adapters.layers)
        shape = KVShape.of(base)
        self._base = base
        self._adapters = adapters
        self._decoder = Decoder.of(base, adapters, shape)
        self._rows = KVRows(shape, budget_tokens=budget_tokens, longest=base.max_seq_len)
        self._prefixes = PrefixCache(
            shape, budget_tokens=budget_tokens // 4 if prefix_tokens is None else prefix_tokens
        )
        # By slot, that is by weights, and by who asks: nobody can tell what others have asked.
        self._roots: list[dict[str, int]] = [{} for _ in range(adapters.num_slots + 1)]
        self._charge = charge
        self._scheduler = Scheduler(max_rows=max_rows, room=self._rows.admits)
        self._groups: dict[int, Group] = {}
        self._contexts: dict[Context, None] = {}  # being computed, in the order in which they came
        self._cells: dict[Sequence, Cell] = {}  # of what runs
        self._batch: DecodeBatch | None = None  # None: who is in which row has changed
        self._news: list[News] = []
        self._chunk = float(_LEAST_CHUNK)

    @property
    def has_work(self) -> bool:
        return bool(self._groups)

    @property
    def held_tokens(self) -> int:
        """Tokens that what runs and what is about to has room for."""
        return self._rows.used

    @property
    def adapters(self) -> AdapterTable:
        return self._adapters

    def load(self, slot: int, adapter: Adapter) -> None:
        """Puts an adapter into a slot that no job uses.

        Raises:
            InvalidInput: it has weights that are not finite.
        """
        self._prefixes.drop(self._roots[slot].values())
        self._roots[slot] = {}
        self._adapters.load(slot, adapter)

    def submit(
        self,
        ticket: int,
        job: SampleJob,
        *,
        slot: int,
        version: int = 0,
        streams: bool = False,
        account: Account = NOBODY,
    ) -> None:
        """Takes a job; a later `step` reports what came of it, under its ticket.

        Args:
            version: of the weights in the slot; its tokens are labelled with it.
            streams: whether `take_news` shall tell its tokens as they come.
            account: who asks; askers take turns, and so do the clients of each.
        """
        group = Group(ticket, job, slot, version, streams, account, self._make_stops)
        self._groups[ticket] = group
        self._scheduler.add(group)

    @torch.inference_mode()
    def cancel(self, ticket: int) -> None:
        """Frees whatever a job holds; nothing is reported for it."""
        if ticket in self._groups:
            self._forget(self._groups[ticket])

    def switch(self, ticket: int, *, slot: int, version: int) -> None:
        """Has a job go on with the weights in another slot: its next tokens, and what has not begun.

        Keys and values that are there stay: those tokens are not read again with the new weights, unless memory is
        short and the sequence has to wait. The old slot is not used for it any more when this returns. A job that is
        gone is no mistake: it may just have finished.
        """
        group = self._groups.get(ticket)
        if group is not None:
            group.is_mixed |= bool(group.num_started)
            group.slot, group.version = slot, version
            self._batch = None

    def take_news(self) -> list[News]:
        """What the watched jobs have gained since the last call."""
        news, self._news = self._news, []
        return news

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Takes in what waits and fits, and computes a chunk of it, then one token for everything that runs."""
        self._admit()
        return self._compute_contexts() + self._decode()

    def _admit(self) -> None:
        while (join := self._scheduler.next_join()) is not None:
            num_context = columns_for(len(join.context) + CHUNK_MULTIPLE) if join.context else 0
            reserved = num_context + len(join.sequences) * self._rows.room_for(join.num_tokens)
            self._rows.reserved += reserved
            context = Context(join, self._root_of(join.group), reserved)
            context.begin(self._rows.shape, self._prefixes)
            self._contexts[context] = None

    def _compute_contexts(self) -> list[Finished]:
        """Computes a chunk; contexts that are whole get rows."""
        chunks = self._chunks()
        try:
            if chunks:
                self._compute(chunks)
        except Exception as error:  # whatever torch raises: these requests are lost, the engine is not
            log.exception("a prefill failed")
            groups = dict.fromkeys(chunk.context.join.group for chunk in chunks)
            return [self._fail(group, error) for group in groups]
        whole = [context for context in self._contexts if not context.num_left]
        return [finished for context in whole for finished in self._start(context)]

    def _chunks(self) -> list[Chunk]:
        """What of the contexts is computed now: much where nobody waits for it, else what takes some 25 ms."""
        left = int(self._chunk) if self._cells else _MOST_CHUNK
        chunks: list[Chunk] = []
        for context in self._contexts:
            if left < CHUNK_MULTIPLE:
                break
            if context.num_left:
                chunks.append(context.chunk(left - left % CHUNK_MULTIPLE))
                left -= chunks[-1].part.num_tokens
        return chunks

    def _compute(self, chunks: list[Chunk]) -> None:
        began = time.perf_counter()
        num_tokens = sum(chunk.part.num_tokens for chunk in chunks)
        padding = [0] * (batch_size(num_tokens) - num_tokens)
        tokens_N = torch.tensor([token for chunk in chunks for token in chunk.tokens] + padding)
        positions_N = torch.tensor([place for chunk in chunks for place in chunk.positions] + padding)
        slots = [chunk.context.join.group.slot for chunk in chunks for _ in chunk.tokens]
        slots_N = torch.tensor(slots + slots[-1:] * len(padding))
        device = self._base.device
        with self._decoder.active(slots_N):
            parts = [chunk.part for chunk in chunks]
            hidden_ND = self._decoder.hidden_states(tokens_N.to(device), positions_N.to(device), parts)
        first = 0
        for chunk in chunks:
            if chunk.is_looked_at:
                with self._decoder.active(torch.tensor([chunk.context.join.group.slot])):
                    chunk.look(hidden_ND[first : first + chunk.num_real], self._base)
            chunk.context.num_done += chunk.num_real
            first += chunk.part.num_tokens
        took_s = time.perf_counter() - began
        for chunk in chunks:
            chunk.context.join.group.computed_s += took_s * chunk.part.num_tokens / num_tokens
        speed = num_tokens / took_s
        self._chunk += 0.3 * (min(max(speed * _CHUNK_S, _LEAST_CHUNK), _MOST_CHUNK) - self._chunk)

    def _start(self, context: Context) -> list[Finished]:
        """Puts sequences into rows behind their context; a job that wants no tokens ends here."""
        join, group = context.join, context.join.group
        if join.context and not group.is_mixed:
            self._prefixes.write(context.root, join.context, context.arrays)
        self._close(context)
        if not join.sequences:
            return [self._finish(group)]
        cells = self._rows.start(join.sequences, join.num_tokens)
        if join.context:
            self._rows.write(cells, context.arrays, len(join.context))
        self._cells |= zip(join.sequences, cells, strict=True)
        self._scheduler.start(join)
        self._batch = None
        return []

    def _close(self, context: Context) -> None:
        self._rows.reserved -= context.reserved
        del self._contexts[context]

    def _decode(self) -> list[Finished]:
        if not self._cells:
            return []
        began = time.perf_counter()
        try:
            batch = self._make_batch()
            with self._decoder.active(batch.state.slots):
                hidden_RD = self._decoder.hidden_states(batch.state.tokens, batch.state.positions, batch.parts())
                logits_RV = self._base.logits(hidden_RD)
            if batch.state.controls is not None:
                batch.state.controls.apply(logits_RV)
            uniforms_R = batch.state.pad([sequence.draws.next() for sequence in batch.sequences])
            sampled = sample(logits_RV, batch.state.settings, uniforms_R, topk=batch.state.num_topk)
            tokens, logprobs = sampled.tokens.tolist(), sampled.logprobs.tolist()
            topk = Topk(sampled.topk_ids.cpu().numpy(), sampled.topk_logprobs.cpu().numpy())
            self._batch = batch.advanced(sampled.tokens)
            share_s = (time.perf_counter() - began) / len(batch.sequences)
            for sequence in batch.sequences:
                sequence.group.computed_s += share_s
            return self._advance(batch.sequences, tokens, logprobs, topk)
        except Exception as error:  # as above: the batch is lost
            log.exception("a decoding step failed")
            return [self._fail(group, error) for group in dict.fromkeys(s.group for s in self._scheduler.running)]

    def _make_batch(self) -> DecodeBatch:
        """Who is in which row; sequences that have filled theirs move to longer ones first."""
        if self._batch is None or self._batch.is_full:
            while full := next(filter(None, map(DecodeBatch.full_cells, self._rows.slabs())), None):
                if self._rows.can_grow(full):
                    self._rows.grow(full)
                else:
                    self._preempt()
            self._batch = DecodeBatch.of(self._rows, device=self._base.device)
        return self._batch

    def _preempt(self) -> None:
        sequence = self._scheduler.preempt()
        log.debug("the cache is full: ticket %d waits", sequence.group.ticket)
        self._remember(sequence)
        self._rows.clear(self._cells[sequence])
        self._free([sequence])

    def _advance(
        self, sequences: Seq[Sequence], tokens: list[int], logprobs: list[float], topk: Topk
    ) -> list[Finished]:
        """Gives every running sequence its token; those that end leave their rows."""
        ended: list[Sequence] = []
        broken: dict[Group, ApiError] = {}
        for row, sequence in enumerate(sequences):
            group = sequence.group
            if np.isnan(logprobs[row]):
                failure = sequence.controls.failure if sequence.controls is not None else None
                broken[group] = failure or not_finite()
                continue
            if num_topk := group.job.num_topk:
                sequence.topk_ids.append(topk.ids[row, :num_topk])
                sequence.topk_logprobs.append(topk.logprobs[row, :num_topk])
            stop_reason = sequence.push(tokens[row], logprobs[row])
            if group.streams:
                self._news.append(News(group.ticket, delta_of(sequence, stop_reason)))
            if stop_reason is not None:
                ended.append(sequence)
                group.finished[sequence.index] = sequence_of(sequence, stop_reason)
        for sequence in ended:
            self._remember(sequence)
            del self._scheduler.running[sequence]
        self._free(ended)
        done = dict.fromkeys(s.group for s in ended if len(s.group.finished) == s.group.job.num_samples)
        return [self._finish(group) for group in done] + [self._fail(group, error) for group, error in broken.items()]

    def _remember(self, sequence: Sequence) -> None:
        """Keeps what a sequence has computed, for a prompt that goes on from it."""
        if not sequence.group.is_mixed:
            cell = self._cells[sequence]
            arrays = [array[cell.row] for array in cell.slab.arrays]
            self._prefixes.write(self._root_of(sequence.group), sequence.context, arrays)

    def _free(self, sequences: Seq[Sequence]) -> None:
        if sequences:
            self._rows.end([self._cells.pop(sequence) for sequence in sequences])
            self._batch = None

    def _finish(self, group: Group) -> Finished:
        self._forget(group)
        sequences = [group.finished.get(i) or no_tokens(group.job) for i in range(group.job.num_samples)]
        return Finished(group.ticket, group.look.result(sequences, num_cached=group.num_cached))

    def _fail(self, group: Group, error: Exception) -> Finished:
        self._forget(group)
        return Finished(group.ticket, error)

    def _forget(self, group: Group) -> None:
        ran = self._scheduler.drop(group)
        for sequence in ran:
            self._rows.clear(self._cells[sequence])
        self._free(ran)
        for context in [context for context in self._contexts if context.join.group is group]:
            self._close(context)
        del self._groups[group.ticket]
        self._charge_for(group)

    def _charge_for(self, group: Group) -> None:
        if not group.num_started and not group.computed_s:
            return  # nothing of it began
        used = usage_of(
            group.account,
            num_samples=len(group.finished),
            tokens_prompted=len(group.job.prompt),
            tokens_sampled=group.num_sampled,
            seconds=group.computed_s,
        )
        self._charge(used)

    def _root_of(self, group: Group) -> int:
        """Where the prefixes begin that a job may find and leave."""
        roots, asker = self._roots[group.slot], group.account.asker
        if asker not in roots:
            roots[asker] = self._prefixes.new_root()
        return roots[asker]

    def _make_stops(self, job: SampleJob) -> StopStrings | None:
        if not job.stop_strings:
            return None
        return StopStrings(job.stop_strings, prompt=job.prompt[-16:].tolist(), decode=self._base.text)
