"""Usage, from servers to the ledger: nothing twice, nothing lost that could be asked for."""

import asyncio

import httpx
import pytest

from farstep_infra.control.pages import PageRequest
from farstep_infra.control.usage import Period, UsageLedger
from farstep_infra.control.usage_collector import UsageCollector
from farstep_proto import paths
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import OPERATOR


class Servers:
    """Servers by address: what each has counted, or how it fails."""

    def __init__(self):
        self.told = {}
        self.asked = []

    def count(self, url, tokens, *, instance="one"):
        usage = control_pb2.Usage(project="lab", run_id="run-1", tokens_trained=tokens, trainer_seconds=tokens / 8)
        self.told[url] = control_pb2.ServerUsage(instance_id=f"{url}-{instance}", usage=[usage]).SerializeToString()

    async def answer(self, request):
        url = f"{request.url.scheme}://{request.url.netloc.decode()}"
        assert request.url.path == paths.USAGE
        self.asked.append(url)
        match self.told.get(url):
            case bytes(body):
                return httpx.Response(200, content=body)
            case int(status):
                return httpx.Response(status)
            case "hangs":
                await asyncio.Event().wait()
        raise httpx.ConnectError("nobody is there")


@pytest.fixture
def servers():
    return Servers()


@pytest.fixture
async def collector(servers, db):
    async with httpx.AsyncClient(transport=httpx.MockTransport(servers.answer)) as client:
        yield UsageCollector(client, UsageLedger(db), lambda: list(servers.told), every_s=0.001, answer_s=2.0)


async def total(db):
    listed = await UsageLedger(db).list(PageRequest(), caller=OPERATOR, within=Period(), by="project")
    sums = {usage.project: (usage.tokens_trained, usage.trainer_seconds) for usage in listed.usage}
    return sums.get("lab", (0, 0.0))


async def until(db, wanted):
    async with asyncio.timeout(30):
        while await total(db) != wanted:  # noqa: ASYNC110 - nobody tells when the ledger grows
            await asyncio.sleep(0.01)


async def test_what_is_asked_again_counts_once(servers, collector, db):
    servers.count("http://a", 100)
    servers.count("http://b", 10)
    for _ in range(3):
        await collector.collect(servers.told)
    assert await total(db) == (110, 13.75)
    servers.count("http://a", 150)
    await collector.collect(["http://a", "http://a"])
    assert await total(db) == (160, 20.0)


async def test_two_questions_at_once_count_once(servers, collector, db):
    """As where a server is stopped while the round is under way."""
    servers.count("http://a", 100)
    await asyncio.gather(*(collector.collect(["http://a"]) for _ in range(4)))
    assert await total(db) == (100, 12.5)


async def test_a_server_that_begins_anew_counts_from_nothing(servers, collector, db):
    servers.count("http://a", 100)
    await collector.collect(servers.told)
    servers.count("http://a", 30, instance="two")
    await collector.collect(servers.told)
    assert await total(db) == (130, 16.25)


@pytest.mark.parametrize("fault", [None, 500, 401, "hangs", b"\xff\xff", b""])
async def test_one_that_does_not_answer_holds_nobody_up_and_is_asked_again(servers, collector, db, caplog, fault):
    collector._answer_s = 0.2
    servers.told["http://bad"] = fault
    servers.count("http://good", 8)
    await collector.collect(servers.told)
    await collector.collect(servers.told)
    assert await total(db) == (8, 1.0)
    assert len([record for record in caplog.records if "http://bad" in record.message]) == 1, "said once"
    servers.count("http://bad", 16)
    await collector.collect(servers.told)
    assert await total(db) == (24, 3.0)


async def test_it_asks_whoever_runs_until_it_is_stopped(servers, collector, db):
    servers.count("http://a", 8)
    running = asyncio.create_task(collector.run())
    await until(db, (8, 1.0))
    servers.count("http://new", 8)
    await until(db, (16, 2.0))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.system
def test_servers_are_asked_before_they_are_stopped(start):
    """A round is 15 s away: what is known after the end was asked for at the end."""
    up = start()
    run = up.run(up.session(project="lab"))
    up.use(run["trainer_url"], project="lab", run_id=run["run_id"], tokens=100)
    session = up.session(project="lab")
    sampler_id = up.call("POST", f"/v1/sessions/{session}/samplers", {"base_model": "fake/one"})["sampler_id"]
    fresh = up.call("GET", f"/v1/samplers/{sampler_id}?wait_s=30")
    up.use(fresh["sampler_url"], project="lab", run_id="", tokens=7)
    up.call("DELETE", f"/v1/samplers/{sampler_id}")
    (used,) = up.call("GET", "/v1/usage?by=project&project=lab")["usage"]
    assert used["tokens_sampled"] == "7", "as soon as it is stopped"
    assert up.stop() == 0
    up = start()
    (used,) = up.call("GET", "/v1/usage?by=project&project=lab")["usage"]
    assert (used["tokens_trained"], used["tokens_sampled"]) == ("100", "7")
