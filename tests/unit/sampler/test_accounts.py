"""Several projects on one engine: what one has computed is not found by another, and each is charged for its own."""

import time
from collections.abc import Callable

import pytest

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_proto.v1 import control_pb2
from farstep_sampler.account import Account
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleResult

MakeJob = Callable[..., SampleJob]
PROMPT = [7 + token % 200 for token in range(65)]  # four whole blocks, and a token
ANNE, BOB = Account(asker="anne", project="anne", run_id="a"), Account(asker="bob", project="bob", run_id="b")


def run(engine: TorchEngine, job: SampleJob, account: Account, *, slot: int = 0) -> SampleResult:
    engine.submit(1, job, slot=slot, account=account)
    while engine.has_work:
        for finished in engine.step():
            assert isinstance(finished.outcome, SampleResult)
            return finished.outcome
    raise AssertionError("it never finished")


@pytest.mark.parametrize("slot", [0, 1])
def test_a_prefix_is_found_by_those_who_left_it(
    engine: TorchEngine, make_job: MakeJob, make_adapter: Callable[..., Adapter], slot: int
) -> None:
    job = make_job(PROMPT, max_tokens=2)
    assert [run(engine, job, account, slot=slot).num_cached for account in (ANNE, ANNE, BOB, BOB, Account())] == [
        0, 64, 0, 64, 0,
    ]  # fmt: skip
    if slot:
        engine.load(slot, make_adapter(9))
        assert [run(engine, job, account, slot=slot).num_cached for account in (ANNE, BOB, BOB)] == [0, 0, 64]


def test_who_asks_makes_no_difference_to_the_tokens(engine: TorchEngine, make_job: MakeJob) -> None:
    job = make_job(PROMPT, max_tokens=8, seed=3)
    results = [run(engine, job, account).sequences[0] for account in (ANNE, ANNE, BOB, Account())]
    assert len({tuple(each.tokens) for each in results}) == 1
    assert len({tuple(each.logprobs) for each in results}) == 1


def test_each_is_charged_for_its_share(base: BaseModel, table: AdapterTable, make_job: MakeJob) -> None:
    charged: list[control_pb2.Usage] = []
    engine = TorchEngine(base, table, max_rows=8, budget_tokens=1 << 12, charge=charged.append)
    began = time.perf_counter()
    engine.submit(1, make_job([5] * 10, num_samples=3, max_tokens=6), slot=0, account=ANNE)
    engine.submit(2, make_job([6] * 10, max_tokens=6), slot=0, account=BOB)
    engine.submit(3, make_job([8] * 10, max_tokens=1000), slot=0, account=BOB)
    while len(charged) < 2:
        engine.step()
    engine.cancel(3)
    took_s = time.perf_counter() - began
    anne, bob, cancelled = sorted(charged, key=lambda used: (used.project, used.tokens_sampled, used.num_samples == 0))
    assert (anne.project, anne.run_id) == ("anne", "a")
    assert (anne.num_samples, anne.tokens_prompted, anne.tokens_sampled) == (3, 10, 18)
    assert (bob.num_samples, bob.tokens_prompted, bob.tokens_sampled) == (1, 10, 6)
    assert (cancelled.num_samples, cancelled.tokens_prompted, cancelled.tokens_sampled) == (0, 10, 6)
    total_s = sum(used.sampler_seconds for used in charged)
    assert 0 < total_s <= took_s
    assert anne.sampler_seconds > bob.sampler_seconds > 0  # three rows of each batch against one


def test_what_never_began_is_not_charged(base: BaseModel, table: AdapterTable, make_job: MakeJob) -> None:
    charged: list[control_pb2.Usage] = []
    engine = TorchEngine(base, table, max_rows=8, budget_tokens=1 << 12, charge=charged.append)
    engine.submit(1, make_job([5] * 10), slot=0, account=ANNE)
    engine.cancel(1)
    assert charged == []
