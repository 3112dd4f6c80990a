"""The ControlClient: what there is, asked without a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import farstep
from farstep_proto import errors, paths
from farstep_proto.v1 import control_pb2
from tests.unit.client.fake_control import ControlPlane
from tests.unit.client.fake_server import KEY, Fault


@pytest.fixture
def client(control: ControlPlane) -> Iterator[farstep.ControlClient]:
    with farstep.ControlClient(base_url=control.url, api_key=KEY, timeout=1) as client:
        yield client


def test_it_opens_no_session(control: ControlPlane, client: farstep.ControlClient) -> None:
    control.runs["run_1"] = control_pb2.ProvisionedRun(run_id="run_1", state="ready", project="p")
    (run,) = client.list_runs()
    assert (run, run.project) == (client.get_run("run_1"), "p")
    client.delete_run("run_1")
    assert (client.list_runs(), control.sessions) == ([], [])
    assert KEY not in repr(client)


def test_logs_are_read(control: ControlPlane, client: farstep.ControlClient) -> None:
    control.logs["trainer-1"] = [b"one\ntwo \xc3\xa4\nhalf"]
    assert client.read_log("trainer-1") == "one\ntwo ä\nhalf"
    assert client.read_log("trainer-1", tail=1) == "half"
    with pytest.raises(farstep.NotFoundError, match="no process"):
        client.read_log("trainer-2")
    wrong = farstep.ControlClient(base_url=control.url, api_key="wrong")
    with wrong, pytest.raises(farstep.AuthenticationError):
        wrong.read_log("trainer-1")


def test_a_server_that_is_gone_is_given_up_within_the_timeout() -> None:
    with farstep.ControlClient(base_url="http://127.0.0.1:9", timeout=0.2) as client:
        for call in (client.list_runs, lambda: client.read_log("trainer-1"), lambda: client.list_checkpoints("run_1")):
            with pytest.raises(farstep.TransportError, match="does not answer"):
                call()


def test_pages_that_go_round_end(control: ControlPlane, client: farstep.ControlClient) -> None:
    page = control_pb2.ListProvisionedRunsResponse(next_page="again").SerializeToString()

    async def same_page(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        headers = [(b"content-type", paths.PROTOBUF.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": page})

    control.app = same_page
    with pytest.raises(farstep.ServerError, match="same page"):
        client.list_runs()


def test_a_key_is_not_made_twice(control: ControlPlane, client: farstep.ControlClient) -> None:
    control.faults.append(Fault(paths.KEYS, drop=True))
    with pytest.raises(farstep.FarstepError):
        client.create_key("laptop")
    assert control.count(paths.KEYS) == 1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda client: client.get_usage(by="day"), "by"),
        (lambda client: client.get_usage(run_id="../x"), "run_id"),
        (lambda client: client.get_run(""), "run_id"),
        (lambda client: client.stop_sampler(".."), "sampler_id"),
        (lambda client: client.get_project(""), "project"),
        (lambda client: client.revoke_key("a\nb"), "key_id"),
        (lambda client: client.create_key(project="p", operator=True), "project"),
        (lambda client: client.create_key(ttl_seconds=0), "ttl_seconds"),
        (lambda client: client.create_project("p", farstep.Quotas(max_runs=-1)), "max_runs"),
        (lambda client: client.read_log("trainer-1", tail=0), "tail"),
        (lambda client: client.read_log(7), "name"),
    ],
)
def test_bad_arguments_ask_for_nothing(control: ControlPlane, client: farstep.ControlClient, call, named: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ValueError, TypeError), match=named):
        call(client)
    assert control.seen == []


def test_a_closed_one_says_so(client: farstep.ControlClient) -> None:
    client.close()
    with pytest.raises(farstep.ClientClosedError):
        client.list_runs()


def test_faults_are_tried_again(control: ControlPlane, client: farstep.ControlClient) -> None:
    control.faults.append(Fault(paths.RUNS, times=2, error=errors.TooManyRequests("busy")))
    assert client.list_runs() == []
