"""What this control plane can do and what it runs: capabilities and status, gathered when asked."""

from __future__ import annotations

import os
import time
from importlib.metadata import version

from farstep_infra.control.fleet import Fleet
from farstep_infra.control.runs import Runs
from farstep_infra.control.sessions import Sessions
from farstep_proto.loss_table import LOSS_TABLE
from farstep_proto.v1 import control_pb2
from farstep_proto.validation import MAX_LORA_RANK

_STARTED_AT = time.time()


def capabilities(fleet: Fleet) -> control_pb2.Capabilities:
    """Of the names that models are served by, and of what else is loaded now; any other is loaded on demand."""
    stacks = [stack for stack in fleet.stacks if stack.is_loaded]
    infos = [stack.trainer.info for stack in stacks if stack.trainer is not None and stack.trainer.info.role]
    replicas = [server for stack in stacks for server in stack.replicas]
    lengths = {info.base_model: info.max_seq_len for info in infos}
    served = fleet.served
    names = dict.fromkeys((*served.names, *(model for model in lengths if not served.knows(model))))
    models = [
        control_pb2.SupportedModel(
            model_name=name,
            max_context_length=lengths.get(served.resolve(name), 0),
            warm=served.resolve(name) in lengths,
        )
        for name in names
    ]
    return control_pb2.Capabilities(
        supported_models=models,
        loss_fns=sorted({name for info in infos for name in info.loss_fns} or LOSS_TABLE),
        engines=sorted({server.info.engine for server in replicas if server.info.engine}),
        accelerator=infos[0].device if infos else "",
        max_request_bytes=min((info.max_request_bytes for info in infos), default=0),
        max_lora_rank=MAX_LORA_RANK,
        any_hub_model=True,
        version=version("farstep"),
    )


async def status(fleet: Fleet, sessions: Sessions, runs: Runs, *, base_url: str) -> control_pb2.Status:
    control = control_pb2.ProcessStatus(
        name="control", role="control", url=base_url, pid=os.getpid(), state="running", started_at=_STARTED_AT
    )
    processes = [
        control_pb2.ProcessStatus(
            name=facts.name,
            role=facts.role,
            url=facts.url,
            pid=facts.pid,
            state=facts.state,
            base_model=facts.base_model,
            started_at=facts.started_at,
            num_restarts=facts.num_restarts,
            log_path=facts.log_path,
        )
        for facts in fleet.processes()
    ]
    return control_pb2.Status(
        version=version("farstep"),
        base_url=base_url,
        processes=[control, *processes],
        num_sessions=await sessions.count(),
        num_runs=await runs.count(),
    )
