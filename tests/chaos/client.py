"""`python -m tests.chaos.client`: a user's program, that a supervisor starts again whenever it dies.

It writes down what it is about to do, what the server took, and what came of it. A new process resumes the run by its
id, asks what became of the operations that the old one never heard of, and goes on with the next call.

It knows nothing of faults. What it takes for granted is the promise: an operation that was taken is done once, and
its result can be had. The one refusal that it expects is a full disk: then it waits for room and submits again.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farstep import AdamParams, SamplingClient, SamplingParams, ServiceClient, TrainingClient
from farstep.errors import FarstepError, ProvisioningError, ServerShutdownError, StorageFullError, TransportError
from tests.chaos import data, diary, programs, resumption
from tests.chaos.diary import Diary, Known
from tests.chaos.programs import Custom, Forward, ForwardBackward, Load, Program, Publish, Reset, Save, Step

ROOM_S = 0.3  # between two attempts while the disk is full
CONNECT_S = 120.0  # to be served at all, at a start


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A future, and what to write down when it is there."""

    index: int
    future: Any
    write: Callable[[Any], None]


class Trainee:
    """One run, from wherever its diary ends to the end of its program."""

    def __init__(self, program: Program, pages: Diary, known: Known, trainer: TrainingClient) -> None:
        self._program = program
        self._pages = pages
        self._known = known
        self._trainer = trainer
        self._samplers: dict[int, SamplingClient] = {}
        self._outstanding: deque[Outstanding] = deque()

    def train(self) -> None:
        begun = self._known.intended
        for index in range(begun + 1):
            self._finish(index)
        for index in range(begun + 1, len(self._program.calls)):
            self._do(index)
        self._settle(0)
        self._pages.write("end", step=self._trainer.step)

    def _finish(self, index: int) -> None:
        """A call that an earlier process began: it was taken, or it is made now."""
        if index not in self._known.seqs or (index == self._known.intended and self._was_starved(index)):
            self._do(index)
        elif isinstance(call := self._program.calls[index], Publish):
            self._sample(index, call)

    def _was_starved(self, index: int) -> bool:
        return "starved" in self._known.results.get(index, {})

    def _do(self, index: int) -> None:
        self._pages.write("intent", index=index)
        while not self._taken(index):
            self._pages.write("refused", index=index)
            time.sleep(ROOM_S)

    def _taken(self, index: int) -> bool:
        """False where the disk is full and it has to be done again."""
        call = self._program.calls[index]
        try:
            match call:
                case Save(name):
                    self._settle(0)
                    return self._note(index, self._accepted(index, self._trainer.save_state(name)))
                case Publish():
                    self._settle(0)
                    return self._publish(index, call)
                case Load(saved, optimizer):
                    path = self._path(saved)
                    load = self._trainer.load_state_with_optimizer if optimizer else self._trainer.load_state
                    self._wait_for(index, self._accepted(index, load(path)))
                case _:
                    self._wait_for(index, self._accepted(index, self._submit(call)))
        except FarstepError as error:
            if not resumption.is_full_disk(error):
                raise
            return False
        self._settle(self._program.ahead)
        return True

    def _submit(self, call: programs.Call) -> Any:
        match call:
            case ForwardBackward(seed, num_data, loss):
                return self._trainer.forward_backward(data.batch(seed, num_data, loss), loss)
            case Custom(seed, num_data):
                batch = data.batch(seed, num_data, "cross_entropy")
                return self._trainer.forward_backward_custom(batch, data.custom_loss)
            case Forward(seed, num_data, cancelled):
                future = self._trainer.forward(data.batch(seed, num_data, "cross_entropy"))
                if cancelled:
                    future.cancel()
                return future
            case Step(learning_rate):
                return self._trainer.optim_step(AdamParams(learning_rate=learning_rate))
            case Reset(rank):
                return self._trainer.reset(rank)
        raise AssertionError(call)

    def _accepted(self, index: int, future: Any) -> Any:
        seq = resumption.seq_of(future.operation_id)
        self._known.seqs.setdefault(index, []).append(seq)
        self._pages.write("accepted", index=index, seq=seq)
        return future

    def _wait_for(self, index: int, future: Any) -> None:
        self._outstanding.append(Outstanding(index, future, lambda result: self._write_result(index, result)))

    def _settle(self, most: int) -> None:
        """Waits until at most so many are outstanding."""
        while len(self._outstanding) > most:
            first = self._outstanding.popleft()
            first.write(resumption.result_of(first.future))

    def _note(self, index: int, future: Any) -> bool:
        """Waits for what a later call needs; False where there was no room on the disk."""
        result = resumption.result_of(future)
        self._write_result(index, result)
        return not resumption.is_full_disk(result)

    def _write_result(self, index: int, result: Any) -> None:
        facts = resumption.facts_of(self._program.calls[index], result)
        self._known.results[index] = facts
        self._pages.write("result", index=index, result=facts)

    def _path(self, index: int) -> str:
        if index not in self._known.results:
            self._settle(0)
        return str(self._known.results[index]["path"])

    def _publish(self, index: int, call: Publish) -> bool:
        if call.name:
            published = self._accepted(index, self._trainer.save_weights_for_sampler(call.name))
            if not self._note(index, published):
                return False
        else:
            sampler = self._trainer.save_weights_and_get_sampling_client(pin=call.pin)
            self._pages.write("sampler", index=index, pickle=pickle.dumps(sampler).hex())
            self._samplers[index] = sampler
            # What it was taken as is not told by this call; the server is asked.
            resumption.settle(self._program, self._pages, self._known, self._trainer, index)
        self._sample(index, call)
        return True

    def _sample(self, index: int, call: Publish) -> None:
        """What of its samples is not written down yet; of a publication without a name only who has the client can."""
        missing = [number for number in range(call.num_samples) if (index, number) not in self._known.samples]
        sampler = self._sampler(index, call) if missing else None
        if sampler is None:
            return
        prompt = programs.tokens(call.seed, 0, length=6)
        for number in missing:
            params = SamplingParams(max_tokens=call.max_tokens, seed=call.seed + number)
            future = sampler.sample(prompt, 1, params)
            self._outstanding.append(
                Outstanding(index, future, lambda result, number=number: self._write_sample(index, number, result))
            )
        if call.pin == "min" and not call.name:
            self._settle(0)  # a newer version would answer as well

    def _write_sample(self, index: int, number: int, result: Any) -> None:
        if isinstance(result, FarstepError):
            raise result
        self._pages.write("sample", index=index, number=number, result=data.sampled(result))

    def _sampler(self, index: int, call: Publish) -> SamplingClient | None:
        if index not in self._samplers:
            if call.name:
                self._samplers[index] = self._trainer.create_sampling_client(self._path(index))
            elif index in self._known.samplers:
                self._samplers[index] = pickle.loads(bytes.fromhex(self._known.samplers[index]))
        return self._samplers.get(index)


def patiently(what: Callable[[], Any]) -> Any:
    """At a start nothing has been promised yet: whoever finds nobody at home, or no room, comes again."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            return what()
        except (TransportError, ServerShutdownError, ProvisioningError, StorageFullError):
            if time.monotonic() > deadline:
                raise
            time.sleep(ROOM_S)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--diary", type=Path, required=True)
    flags = parser.parse_args()
    program = programs.program(flags.seed, num_steps=flags.steps)
    known = diary.read(flags.diary)
    pages = Diary(flags.diary)
    pages.write("start")
    try:
        service = patiently(ServiceClient)
        trainer = _run_of(service, program, pages, known)
        Trainee(program, pages, known, trainer).train()
    except Exception as error:
        pages.write("error", error=f"{type(error).__name__}: {error}")
        raise
    trainer.close()
    service.close()
    return 0


def _run_of(service: ServiceClient, program: Program, pages: Diary, known: Known) -> TrainingClient:
    if known.run_id:
        trainer: TrainingClient = patiently(lambda: service.resume_run(known.run_id))
        trainer.unfetched()  # gives up what the old process did not submit whole
        resumption.settle(program, pages, known, trainer, known.intended)
        return trainer
    trainer = patiently(
        lambda: service.create_lora_training_client(
            programs.BASE_MODEL, program.rank, seed=program.seed, dropout=program.dropout
        )
    )
    pages.write("run", run_id=trainer.run_id)
    known.run_id = trainer.run_id
    return trainer


if __name__ == "__main__":
    sys.exit(main())
