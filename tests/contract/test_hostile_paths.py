"""Ids and names that are paths, to every route that takes any: nothing outside is read, written or deleted."""

import itertools
import os
import re
from pathlib import Path

import httpx
import pytest

from farstep_proto import paths
from farstep_proto.v1 import training_pb2 as pb
from tests.fuzz.requests import operations_of
from tests.support.processes import KEY

HOSTILE = [
    "..", "../..", "..%2f..", "%2e%2e", "%2e%2e%2fcanary", "%252e%252e%252fcanary", "..%5c..", "..%c0%af..",
    "%ef%bc%8e%ef%bc%8e", "a%00b", "%00", "x" * 300, "x" * 9000, "%2fetc%2fpasswd", "....%2f%2f", "%f0%9f%98%80", "%ff",
    "a%0d%0aSet-Cookie:x", "~", "policies~", "journal~", "evicted~", "%25%32%65", ".%2e", "canary%2f..%2fcanary",
]  # fmt: skip
NAMES = [re.sub(r"%(..)", lambda match: chr(int(match[1], 16)), each) for each in HOSTILE]


@pytest.fixture(scope="module")
def servers(pair, pair_home):
    """The pair, with files beside its store that are nobody's business."""
    (pair_home / "canary").mkdir()
    (pair_home / "canary" / "manifest.json").write_text("secret")
    return pair_home, pair


def everything_in(home: Path) -> set[str]:
    return {os.path.relpath(each, home) for each in home.rglob("*") if not each.is_relative_to(home / "store")}


@pytest.mark.parametrize("which", [0, 1], ids=["trainer", "sampler"])
def test_every_path_parameter(servers, which):
    home, pair = servers
    before = everything_in(home)
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=pair[which].url, headers=headers, timeout=60) as http:
        operations = operations_of(http.get(paths.OPENAPI).json())
        for operation in operations:
            names = re.findall(r"{(\w+)}", operation.path)
            for name, hostile in itertools.product(names, HOSTILE):
                others = {"kind": "weights", "file": "manifest.json"}
                target = operation.path.format(**{each: others.get(each, "a") for each in names} | {name: hostile})
                target += "?seq=1" if operation.method == "POST" else ""
                response = http.request(operation.method, "/", extensions={"target": target.encode()})
                assert 400 <= response.status_code < 500, (operation.path, hostile, response.text)
                assert "secret" not in response.text
    assert everything_in(home) == before
    assert (home / "canary" / "manifest.json").read_text() == "secret"


def test_names_in_messages(servers):
    home, (trainer, sampler) = servers
    before, headers = everything_in(home), {"Authorization": f"Bearer {KEY}", "Content-Type": paths.PROTOBUF}
    with httpx.Client(headers=headers, timeout=60) as http:
        run = pb.CreateRunRequest(run_id="named", base_model="farstep/tiny", lora={"rank": 4})
        assert http.post(trainer.url + paths.RUNS, content=run.SerializeToString()).status_code == 200
        place = trainer.url + paths.VERB
        for name in NAMES:
            path = f"bt://loops:{name}/weights/{name}"
            messages = {
                "save_state": pb.SaveStateRequest(name=name),
                "publish": pb.PublishRequest(name=name),
                "import_adapter": pb.ImportAdapterRequest(name=name, config=b"{}"),
                "load_state": pb.LoadStateRequest(path=path),
            }
            for verb, message in messages.items():
                url = place.format(run_id="named", verb=verb)
                answer = http.post(url, params={"seq": 1}, content=message.SerializeToString())
                assert answer.status_code == 400, (verb, name, answer.text)
            renamed = pb.CreateRunRequest(run_id=name, base_model="farstep/tiny", lora={"rank": 4})
            assert http.post(trainer.url + paths.RUNS, content=renamed.SerializeToString()).status_code == 400, name
            asked = {"run_id": name, "prompt": {"chunks": [{"encoded_text": {"ids": [1]}}]}, "num_samples": 1}
            for body in (asked, {**asked, "run_id": "", "model_path": path}):
                answer = http.post(sampler.url + paths.SAMPLE, json=body, headers={"Content-Type": paths.JSON})
                assert answer.status_code == 400, (name, answer.text)
    assert everything_in(home) == before


@pytest.mark.parametrize("which", [0, 1], ids=["trainer", "sampler"])
def test_bodies_that_are_too_large_or_compressed_are_refused_by_every_route(servers, which):
    url = servers[1][which].url
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
        http.post(paths.RUNS, json={"run_id": "large", "base_model": "farstep/tiny", "lora": {"rank": 4}})
        limit = int(http.get(paths.INFO).json()["max_request_bytes"])
        takes = [each for each in operations_of(http.get(paths.OPENAPI).json()) if "requestBody" in each.schema]
        assert len(takes) > 5
        for operation in takes:
            target = operation.path.format(run_id="large", kind="weights", name="a") + "?seq=1"
            for kind in (paths.JSON, paths.PROTOBUF):
                too_large = http.request(
                    operation.method, target, content=bytes(max(limit, 16 << 20) + 1), headers={"Content-Type": kind}
                )
                assert too_large.status_code == 413, (operation.path, too_large.text)
            for encoding in ("gzip", "zstd"):
                bomb = http.request(operation.method, target, content=b"x", headers={"Content-Encoding": encoding})
                assert bomb.status_code == 415, (operation.path, bomb.text)
                assert encoding in bomb.text
