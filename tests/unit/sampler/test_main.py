"""The command line of a replica, and the process that it starts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from farstep_proto import paths
from farstep_sampler.main import parse_config

BODY = {"prompt": {"chunks": [{"encoded_text": {"ids": [5, 6]}}]}, "num_samples": 1, "params": {"max_tokens": 2}}


def test_defaults(tmp_path: Path) -> None:
    config = parse_config(["--store", str(tmp_path)], {})
    assert (config.model, config.host, config.port, config.device) == ("farstep/tiny", "127.0.0.1", 0, "auto")
    assert (config.resident_versions, config.resident_policies) == (4, 8)
    assert (config.num_threads, config.api_key, config.feed, config.weight_sync_uri) == (0, None, None, None)


def test_the_environment_gives_key_and_threads(tmp_path: Path) -> None:
    config = parse_config(["--store", str(tmp_path)], {"FARSTEP_API_KEY": "k", "OMP_NUM_THREADS": "3"})
    assert (config.api_key, config.num_threads) == ("k", 3)


@pytest.mark.parametrize("flags", [[], ["--store", "x", "--max-rows", "0"], ["--store", "x", "--unknown"]])
def test_a_bad_command_line_ends_it(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(flags, {})
    assert "usage" in capsys.readouterr().err


def test_a_replica_and_a_router_as_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "FARSTEP_API_KEY": "k", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments, "--exit-with-parent"],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def url_of(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        assert (facts["event"], facts["pid"]) == ("ready", process.pid)
        return str(facts["url"])

    with start("farstep_sampler", "--store", str(tmp_path), "--device", "cpu") as replica:
        url = url_of(replica)
        with start("farstep_sampler.router", "--replica", url) as router:
            headers = {"Authorization": "Bearer k"}
            for address in (url, url_of(router)):
                with httpx.Client(base_url=address, headers=headers, timeout=20) as http:
                    answer = http.post(paths.SAMPLE, json=BODY)
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["sequences"][0]["stop_reason"] in ("length", "stop")
            router.communicate()  # closes its standard input: it ends with its parent
            assert router.returncode in (0, -signal.SIGTERM)
        replica.terminate()
        replica.communicate()
        assert replica.returncode in (0, -signal.SIGTERM)
