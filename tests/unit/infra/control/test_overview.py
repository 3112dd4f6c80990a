"""Capabilities and status: learnt from the processes that run."""

import httpx

from farstep_proto import paths
from farstep_proto.v1 import control_pb2
from farstep_proto.validation import MAX_LORA_RANK


def test_capabilities_are_those_of_the_warm_processes(up):
    capabilities = up.call("GET", "/v1/capabilities")
    assert capabilities["supported_models"] == [{"model_name": "fake/one", "max_context_length": 512, "warm": True}]
    assert capabilities["loss_fns"] == ["cross_entropy"]
    assert capabilities["engines"] == ["torch"]
    assert capabilities["accelerator"] == "cpu"
    assert capabilities["max_request_bytes"] == str(1 << 20)
    assert capabilities["max_lora_rank"] == MAX_LORA_RANK
    assert capabilities["any_hub_model"] is True


def test_status_lists_every_process_with_its_log(up):
    processes = {process["role"]: process for process in up.processes()}
    assert set(processes) == {"control", "trainer", "sampler"}
    assert {process["state"] for process in processes.values()} == {"running"}
    assert processes["control"]["url"] == up.url
    assert processes["control"]["pid"] == up.process.pid
    for role in ("trainer", "sampler"):
        assert processes[role]["url"] == up.announcement[f"{role}_url"]
        assert processes[role]["base_model"] == "fake/one"
        with open(processes[role]["log_path"]) as log:
            assert f"{role} says something before it is ready" in log.read()


def test_every_route_speaks_protobuf_too(up):
    response = httpx.get(up.url + paths.STATUS, headers={"Authorization": f"Bearer {up.key}", "Accept": paths.PROTOBUF})
    assert control_pb2.Status.FromString(response.content).base_url == up.url
