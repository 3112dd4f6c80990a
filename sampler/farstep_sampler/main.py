"""The replica process: command line and environment in, one frozen configuration, a server out."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from farstep_infra.store.blobs import open_blobs
from farstep_infra.store.checkpoints import open_store
from farstep_infra.store.policies import PolicyShelves
from farstep_model.embedded import MODEL_NAME
from farstep_model.load import BaseModel, load_base_model
from farstep_model.lora import LoraLayers
from farstep_proto.errors import ApiError, InvalidInput
from farstep_sampler.account import Charge
from farstep_sampler.engine_thread import EngineThread
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.base import Engine
from farstep_sampler.engines.kv_shape import cache_budget
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.feed import FeedConfig
from farstep_sampler.openai_api.settings import OpenAiSettings, add_openai_flags, take_openai_flags
from farstep_sampler.replica import Replica
from farstep_sampler.request import ModelLimits
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import DRAIN_S, Submissions
from farstep_sampler.weight_sync import DEFAULT_INTERVAL_S, SyncConfig
from farstep_serving.keys import OPERATOR, KeyRing, Keys
from farstep_serving.process import announce, bind, exit_with_parent, serve, setup_logging, url_of
from farstep_serving.remote_keys import ControlAddress, all_keys
from farstep_serving.usage import UsageCounters, usage_route

log = logging.getLogger(__name__)

_PREFIX_SHARE = 5  # one part in so many of the KV cache keeps what earlier requests left

_MAX_LORA_RANK = 64


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """Everything that a replica is told. `num_threads` and `cache_tokens` are 0 where the machine decides."""

    model: str
    store: str
    engine: str
    host: str
    port: int
    device: str
    feed: str | None
    weight_sync_uri: str | None
    weight_sync_interval: float
    model_path: str | None
    resident_versions: int
    resident_policies: int
    max_rows: int
    max_requests: int
    cache_tokens: int
    max_lora_rank: int | None
    vllm_options: str | None
    num_threads: int
    openai: OpenAiSettings
    drain_s: float
    exit_with_parent: bool
    log_level: str
    api_key: str | None
    control: ControlAddress | None  # who knows of other keys


def parse_config(arguments: Sequence[str] | None, environment: dict[str, str]) -> SamplerConfig:
    """Reads the command line; FARSTEP_API_KEY and OMP_NUM_THREADS come from the environment."""
    parser = argparse.ArgumentParser(prog="farstep_sampler", description="One sampler replica.")
    parser.add_argument("--model", default=MODEL_NAME, help="embedded model, hub id or directory")
    parser.add_argument("--engine", choices=("torch", "vllm"), default="torch", help="vllm: where vLLM is installed")
    parser.add_argument(
        "--store", required=True, metavar="PLACE", help="of checkpoints: directory or s3://bucket/prefix"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--device", default="auto")
    policies = parser.add_mutually_exclusive_group()
    policies.add_argument("--feed", metavar="HOST:PORT", help="policy feed of a dp_worker")
    policies.add_argument(
        "--weight-sync-uri", metavar="URI", help="file:///dir or s3://bucket/prefix to look for policies in"
    )
    parser.add_argument(
        "--weight-sync-interval",
        type=_seconds,
        default=DEFAULT_INTERVAL_S,
        metavar="S",
        help="between two looks (default: %(default)s)",
    )
    parser.add_argument("--model-path", metavar="bt://…", help="a checkpoint to have ready from the start")
    parser.add_argument("--resident-versions", type=_positive, default=4, help="policies kept of one run")
    parser.add_argument("--resident-policies", type=_positive, default=8, help="policies kept of all runs together")
    parser.add_argument("--max-rows", type=_positive, default=256, help="most sequences decoded at a time")
    parser.add_argument("--max-requests", type=_positive, default=4096, help="most requests in flight")
    parser.add_argument("--cache-tokens", type=_positive, default=0, help="most tokens in the KV cache")
    parser.add_argument("--drain-s", type=_seconds, default=DRAIN_S, help="most time for what is in flight at the end")
    vllm = parser.add_argument_group("with --engine vllm")
    vllm.add_argument("--max-lora-rank", type=_positive, help=f"of any adapter; {_MAX_LORA_RANK} unless given")
    vllm.add_argument("--vllm-options", metavar="JSON", help='more settings of vLLM, as in {"tensor_parallel_size": 2}')
    parser.add_argument("--exit-with-parent", action="store_true")
    parser.add_argument("--log-level", default="INFO")
    add_openai_flags(parser)
    namespace = parser.parse_args(arguments)
    openai = take_openai_flags(namespace)
    if namespace.engine != "vllm" and (namespace.max_lora_rank or namespace.vllm_options):
        parser.error("--max-lora-rank and --vllm-options go with --engine vllm")
    return SamplerConfig(
        **vars(namespace),
        openai=openai,
        num_threads=int(environment.get("OMP_NUM_THREADS") or 0),
        api_key=environment.get("FARSTEP_API_KEY"),
        control=ControlAddress.of(environment),
    )


def make_replica(config: SamplerConfig, usage: UsageCounters) -> Replica:
    """Loads the model, or what must be known of it, and puts a replica together; nothing runs yet.

    Raises:
        ApiError: no such model, or one that the engine cannot decode.
    """
    make_engine = _vllm_engine if config.engine == "vllm" else _torch_engine
    base, engine, max_tokens = make_engine(config, usage.add)
    return Replica(
        base,
        engine,
        limits=_limits(base, max_tokens),
        store=open_store(config.store),
        policies=_policies(config),
        versions_per_run=config.resident_versions,
    )


def _torch_engine(config: SamplerConfig, charge: Charge) -> tuple[BaseModel, Engine, int]:
    """The model, its engine, and the most tokens that a sequence may have where memory is short."""
    base = load_base_model(config.model, device=config.device)
    adapters = AdapterTable(LoraLayers.install(base), num_slots=config.resident_policies)
    cached = config.cache_tokens or cache_budget(base, max_rows=config.max_rows)
    budget = max(1, cached - cached // _PREFIX_SHARE)
    engine = TorchEngine(
        base,
        adapters,
        max_rows=config.max_rows,
        budget_tokens=budget,
        prefix_tokens=cached - budget,
        charge=charge,
    )
    return base, EngineThread(engine), budget


def _vllm_engine(config: SamplerConfig, charge: Charge) -> tuple[BaseModel, Engine, int]:
    """As `_torch_engine`; vLLM itself starts with the replica."""
    try:
        from farstep_sampler.engines.vllm.engine import make_vllm_engine
    except ImportError as error:
        raise InvalidInput(
            f"vLLM is not installed here: {error}", field="engine", hint="docs/vllm.md says how to make its environment"
        ) from error
    base, engine = make_vllm_engine(
        config.model,
        device=config.device,
        num_slots=config.resident_policies,
        max_rank=config.max_lora_rank or _MAX_LORA_RANK,
        max_rows=config.max_rows,
        cache_tokens=config.cache_tokens,
        options=config.vllm_options or "{}",
        charge=charge,
    )
    return base, engine, config.cache_tokens or base.max_seq_len


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is told to stop."""
    config = parse_config(arguments, dict(os.environ))
    setup_logging(config.log_level)
    ring = KeyRing.of(config.api_key)
    ring.check_host(config.host)
    # The cores there are, unless whoever shares them out said otherwise.
    torch.set_num_threads(config.num_threads or os.cpu_count() or 1)
    try:
        usage = UsageCounters()
        replica = make_replica(config, usage)
        asyncio.run(_serve(config, replica, ring, usage))
    except ApiError as error:
        raise SystemExit(f"farstep_sampler: {error.message} {error.hint}".rstrip()) from error


async def _serve(config: SamplerConfig, replica: Replica, ring: KeyRing, usage: UsageCounters) -> None:
    async with all_keys(ring, config.control) as keys:
        await _serve_with(config, replica, keys, usage)


async def _serve_with(config: SamplerConfig, replica: Replica, keys: Keys, usage: UsageCounters) -> None:
    submissions = Submissions(max_pending=config.max_requests)
    told = usage_route(usage, instance_id=submissions.table.instance_id)
    app = make_sampler_app(replica, submissions, keys=keys, more_routes=[told], openai=config.openai)
    sock = bind(config.host, config.port)
    if config.exit_with_parent:
        exit_with_parent()

    async def drain() -> None:
        replica.drain()
        await submissions.settled(config.drain_s)

    async with replica.running(), submissions:
        if config.model_path:
            await replica.load_policy(config.model_path, OPERATOR)
        await serve(
            app,
            sock,
            on_ready=lambda: announce(url=url_of(sock), pid=os.getpid()),
            drain=drain,
            on_stop=submissions.table.drain,
        )


def _policies(config: SamplerConfig) -> FeedConfig | SyncConfig | None:
    """Raises InvalidInput for a weight-sync URI that is none."""
    if config.feed:
        return FeedConfig(config.feed, config.api_key, subscriber=f"{socket.gethostname()}:{os.getpid()}")
    if config.weight_sync_uri:
        blobs = open_blobs(config.weight_sync_uri, field="--weight-sync-uri")
        return SyncConfig(PolicyShelves(blobs, keep=1), config.weight_sync_interval)
    return None


def _limits(base: BaseModel, budget: int) -> ModelLimits:
    if budget < base.max_seq_len:
        log.warning("memory for %d tokens: the context is that long, not %d", budget, base.max_seq_len)
    return ModelLimits(min(base.max_seq_len, budget), base.vocab_size, base.eos_token_ids)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds up to a day")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value
