"""What the vLLM engine promises beyond the contract of all engines: its processes, its folders, its limits."""

import asyncio
import itertools
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from farstep_model.adapter import Adapter
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_proto.errors import Internal, InvalidInput
from farstep_proto.tensors import ids_to_bytes
from farstep_proto.v1 import control_pb2, sampling_pb2
from farstep_sampler.account import Account
from farstep_sampler.engines.vllm.engine import VllmEngine, make_vllm_engine
from farstep_sampler.engines.vllm.process import vllm_rank
from farstep_sampler.engines.vllm.request import seed_of
from farstep_sampler.prompt_targets import PromptTargets
from farstep_sampler.request import SampleJob
from tests.support.vllm_starting import OPTIONS, vllm_engine

pytestmark = pytest.mark.timeout(300)
in_one_loop = pytest.mark.asyncio(loop_scope="module")
PROMPT = [5, 6, 7, 8, 9]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    made = vllm_engine(num_slots=3)
    made.start()
    yield made
    await made.close()
    assert not folders()


def folders() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"farstep-vllm-{os.getpid()}-*"))


def vllm_processes(pid: int | None = None) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "VLLM" in child.name()]


@in_one_loop
async def test_every_load_has_a_name_and_a_folder_of_its_own(
    engine: VllmEngine, make_adapter: Callable[..., Adapter], make_job: Callable[..., SampleJob]
) -> None:
    seen = []
    for seed, slot in itertools.product((1, 2), (1, 2, 3)):
        await engine.load(slot, make_adapter(seed))
        await engine.sample(make_job(PROMPT), slot=slot)
        (request,) = [each for each in [engine._adapters.get(slot)] if each is not None]
        seen.append((request.lora_name, request.lora_path, request.lora_int_id))
    assert all(len({each[part] for each in seen}) == 6 for part in range(3))
    (root,) = folders()
    assert root.stat().st_mode & 0o77 == 0  # nobody else reads anyone's weights
    assert sorted(str(path) for path in root.iterdir()) == sorted(path for _, path, _ in seen[3:])


@in_one_loop
async def test_an_adapter_that_vllm_cannot_serve_is_refused_and_costs_nothing(
    engine: VllmEngine, layers: LoraLayers, make_adapter: Callable[..., Adapter], make_job: Callable[..., SampleJob]
) -> None:
    await engine.load(1, make_adapter(1))
    (before,) = (await engine.sample(make_job(PROMPT), slot=1)).sequences
    not_finite = make_adapter(2)
    not_finite.parameters()[3].data[0, 0] = float("inf")
    refused = [
        (make_adapter(1, rank=17), "rank 17 is over the 16"),
        (Adapter.init(layers, LoraSpec(rank=4, train_unembed=True), seed=1), "lm_head"),
        (Adapter.init(layers, LoraSpec(rank=4, use_dora=True), seed=1), "DoRA"),
        (not_finite, "not finite"),
    ]
    for adapter, message in refused:
        with pytest.raises(InvalidInput, match=message):
            await engine.load(2, adapter)
    assert (await engine.sample(make_job(PROMPT), slot=1)).sequences[0].tokens == before.tokens


@in_one_loop
async def test_what_one_project_has_computed_is_not_found_by_another(
    engine: VllmEngine, make_job: Callable[..., SampleJob]
) -> None:
    """Each is charged for its own, and the time that both take together is divided."""
    charged: list[control_pb2.Usage] = []
    engine._charge = charged.append
    job = make_job([11 + token % 100 for token in range(100)], max_tokens=2)

    async def num_cached(project: str) -> int:
        async with engine.sampling(job, slot=0, account=Account(asker=project, project=project)) as sampling:
            return (await sampling.result()).num_cached

    assert await num_cached("anne") == 0
    assert await num_cached("anne") > 0
    assert await num_cached("bob") == 0
    assert await num_cached("") == 0
    assert [(used.project, used.num_samples, used.tokens_prompted, used.tokens_sampled) for used in charged] == [
        (project, 1, 100, 2) for project in ("anne", "anne", "bob", "")
    ]
    assert all(used.sampler_seconds > 0 for used in charged)


@in_one_loop
@pytest.mark.parametrize("temperature", [0.001, 2.1, 100.0])
async def test_a_temperature_that_vllm_would_change_is_refused(
    engine: VllmEngine, make_job: Callable[..., SampleJob], temperature: float
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await engine.sample(make_job(PROMPT, temperature=temperature), slot=0)
    assert caught.value.field == "params.temperature"


@in_one_loop
async def test_what_vllm_cannot_say_of_a_prompt_is_refused(
    engine: VllmEngine, make_job: Callable[..., SampleJob]
) -> None:
    table = sampling_pb2.PromptTargets(k=1, token_ids=ids_to_bytes([1] * (len(PROMPT) - 1)))
    targets = PromptTargets.of(table, num_prompt=len(PROMPT), vocab_size=384, most_values=9)
    for field, asked in (("target_prompt_logprobs", targets), ("prompt_alt_tokens_k", 2)):
        names = {"target_prompt_logprobs": "prompt_targets", "prompt_alt_tokens_k": "num_prompt_alternatives"}
        with pytest.raises(InvalidInput) as caught:
            await engine.sample(make_job(PROMPT, **{names[field]: asked}), slot=0)
        assert caught.value.field == field


@in_one_loop
async def test_after_a_switch_tokens_are_those_of_the_new_weights(
    engine: VllmEngine, layers: LoraLayers, make_adapter: Callable[..., Adapter], make_job: Callable[..., SampleJob]
) -> None:
    """Their log-probabilities are the new weights' over the whole context: nothing of the old ones is kept."""
    import torch

    for slot in (1, 2):
        await engine.load(slot, make_adapter(slot))
    async with engine.sampling(make_job(PROMPT, max_tokens=200), slot=1, version=1, streams=True) as sampling:
        async for _ in sampling:
            break
        await sampling.switch(slot=2, version=2)
        await engine.load(1, make_adapter(3))  # the old slot is free
        (sequence,) = (await sampling.result()).sequences
    base, first_new = layers.base, sequence.policy_versions.index(2)
    assert 0 < first_new < 100
    for slot, part in ((1, slice(0, first_new)), (2, slice(first_new, 200))):
        with layers.active([make_adapter(slot)]), torch.no_grad():
            hidden_TD = base.hidden_states(torch.tensor([PROMPT + sequence.tokens]))[0]
            logprobs_TV = torch.log_softmax(base.logits(hidden_TD), -1)[len(PROMPT) - 1 : -1]
        expected_N = logprobs_TV.gather(1, torch.tensor(sequence.tokens)[:, None])[:, 0]
        found_N = torch.tensor(sequence.logprobs)
        assert (found_N - expected_N)[part].abs().max() < 1e-4


@in_one_loop
async def test_prompts_share_what_is_cached(engine: VllmEngine, make_job: Callable[..., SampleJob]) -> None:
    prompt = list(range(100, 300))
    first = await engine.sample(make_job(prompt), slot=0)
    again = await engine.sample(make_job([*prompt, 7], num_samples=3), slot=0)
    assert first.num_cached == 0
    assert 128 <= again.num_cached <= 200


def test_seeds_are_apart() -> None:
    seeds = {seed_of(seed, index, 0) for seed in range(-50, 50) for index in range(50)}
    assert len(seeds) == 5000
    assert all(0 <= seed < 1 << 62 for seed in seeds)


def test_ranks() -> None:
    assert [vllm_rank(rank) for rank in (1, 8, 9, 64, 257)] == [8, 8, 16, 64, 320]
    with pytest.raises(InvalidInput):
        vllm_rank(513)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"tensor_paralel_size": 2}', "no setting 'tensor_paralel_size'"),
        ('{"enable_lora": false}', "'enable_lora' is not for setting"),
    ],
)
def test_wrong_options_are_found_before_anything_is_loaded(options: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        make("auto", options)
    assert caught.value.field == "vllm_options"


def test_a_device_that_vllm_is_not_built_for_is_refused() -> None:
    with pytest.raises(InvalidInput, match="built for 'cpu'"):
        make("cuda", OPTIONS)


def make(device: str, options: str) -> None:
    make_vllm_engine(
        "farstep/tiny", device=device, num_slots=1, max_rank=8, max_rows=1, cache_tokens=0, options=options
    )


@in_one_loop
async def test_a_vllm_that_cannot_be_taught_to_report_the_whole_distribution_refuses_to_restrict_it(
    make_job: Callable[..., SampleJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farstep_sampler.engines.vllm.process._WORKER_EXTENSION", "")
    engine = vllm_engine(num_slots=1)
    engine.start()
    try:
        for changes in ({"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}):
            with pytest.raises(InvalidInput, match="not of the whole choice"):
                await engine.sample(make_job(PROMPT, **changes), slot=0)
        assert len((await engine.sample(make_job(PROMPT, temperature=0.5), slot=0)).sequences[0].tokens) == 12
    finally:
        await engine.close()


@in_one_loop
@pytest.mark.parametrize("how", ["engine killed", "worker killed", "nothing answers"])
async def test_a_vllm_that_has_died_fails_what_is_in_flight_and_stays_dead(
    make_job: Callable[..., SampleJob], make_adapter: Callable[..., Adapter], how: str
) -> None:
    engine = vllm_engine(num_slots=1, patience_s=3.0)
    before = set(vllm_processes())
    engine.start()
    mine = [process for process in vllm_processes() if process not in before]
    job = make_job(PROMPT, num_samples=4, max_tokens=1900)
    waiting = asyncio.create_task(engine.sample(job, slot=0))
    async with engine.sampling(job, slot=0, streams=True) as sampling:
        async for _ in sampling:
            break
        for process in mine:
            if how == "nothing answers":
                process.send_signal(signal.SIGSTOP)
            elif how.split()[0] in process.name().lower():
                process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(Internal, match="has stopped") as caught:
            await sampling.result()
        with pytest.raises(Internal, match="has stopped"):
            await waiting
    assert time.monotonic() - began < 25
    assert caught.value.status == 503  # a router takes it elsewhere
    assert not engine.is_alive
    for call in (engine.sample(make_job(PROMPT), slot=0), engine.load(1, make_adapter(1))):
        with pytest.raises(Internal, match="has stopped"):
            await call
    await engine.close()
    gone, left = psutil.wait_procs(mine, timeout=10)
    assert not left
    assert len(gone) >= 2


def test_what_a_killed_process_left_behind_goes_at_the_next_start() -> None:
    nobody = next(pid for pid in itertools.count(4_000_000) if not psutil.pid_exists(pid))
    left = Path(tempfile.mkdtemp(prefix=f"farstep-vllm-{nobody}-"))
    (left / "1").mkdir()
    living = Path(tempfile.mkdtemp(prefix=f"farstep-vllm-{os.getppid()}-"))
    adapters = vllm_engine()._adapters
    adapters.open()
    adapters.close()
    assert not left.exists()
    assert living.exists()
    living.rmdir()


def test_a_skeleton_knows_what_the_model_knows() -> None:
    whole = load_base_model(device="cpu")
    skeleton = vllm_engine().layers.base
    for name in ("name", "path", "max_seq_len", "vocab_size", "eos_token_ids", "dtype"):
        assert getattr(skeleton, name) == getattr(whole, name)
    assert LoraLayers.install(whole).targets == vllm_engine().layers.targets
