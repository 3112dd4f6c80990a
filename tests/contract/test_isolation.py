"""Two projects on one trainer, one sampler and one router: to each, the other is not there.

What a server says of another project's ids is compared, route by route, with what it says of ids that nobody has. The
routes come from the apps' own tables, so that a new one has to be told of here.
"""

import json
import time
from dataclasses import dataclass
from types import SimpleNamespace

import grpc
import httpx
import pytest
from starlette.routing import Route

from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto import paths
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import feed_pb2
from farstep_proto.v1.feed_pb2_grpc import PolicyFeedStub
from farstep_sampler.router.admin import replica_routes
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import Submissions
from farstep_serving.keys import KeyRing
from farstep_serving.operations import OperationTable
from farstep_serving.usage import UsageCounters, usage_route
from farstep_worker.server import TrainerApi
from farstep_worker.submission import REQUEST_TYPES
from tests.support.processes import KEY, running

pytestmark = pytest.mark.timeout(240)

PROMPT = [1, 40, 41, 42, 43]
LONG_PROMPT = [1, *range(40, 104)]
SECRET = "maple"  # in every id of the first project, and in none of anybody else's
SERVERS = ("trainer", "sampler", "router")


@dataclass(frozen=True)
class Ids:
    """What a project has: `name` is in all of it."""

    name: str

    @property
    def run_id(self):
        return f"{self.name}-run"

    @property
    def path(self):
        return f"bt://loops:{self.run_id}/sampler_weights/{self.name}-policy"

    def of_route(self, server):
        return {
            "run_id": self.run_id,
            "kind": "sampler_weights",
            "name": f"{self.name}-policy",
            "file": "adapter_config.json",
            "operation_id": f"{self.run_id}:1" if server == "trainer" else f"{self.name}-key-{server}",
            "model": self.run_id,
        }


MAPLE, BIRCH, NOBODY = Ids("maple"), Ids("birch"), Ids("cedar")


def prompt(tokens=PROMPT):
    return {"chunks": [{"encoded_text": {"ids": tokens}}]}


def sample(**fields):
    params = {"max_tokens": 1, "seed": "7", **fields.pop("params", {})}
    return {"prompt": prompt(), "num_samples": 1, "params": params, "gate_wait_s": 0.05, **fields}


class Fleet:
    """The servers, and a client of each for everybody."""

    def __init__(self, checks, **servers):
        self.checks = checks
        self.servers = servers
        self._clients = {}

    def ask(self, who, server, method, path, **kwargs):
        key = KEY if who == "operator" else f"fsk-{who}"
        client = self._clients.get((who, server))
        if client is None:
            headers = {"Authorization": f"Bearer {key}"}
            client = self._clients[who, server] = httpx.Client(
                base_url=self.servers[server].url, headers=headers, timeout=60, trust_env=False
            )
        return client.request(method, path, **kwargs)

    def close(self):
        for client in self._clients.values():
            client.close()

    def submit(self, who, ids, verb, body, *, seq):
        headers = {paths.CLIENT_ID: f"{ids.name}-client"}
        path = paths.VERB.format(run_id=ids.run_id, verb=verb)
        response = self.ask(who, "trainer", "POST", path, json=body, params={"seq": seq}, headers=headers)
        assert response.status_code == 202, response.text
        return self.ask(who, "trainer", "GET", f"/v1/operations/{ids.run_id}:{seq}", params={"wait_s": 60}).json()

    def make(self, ids):
        """A run with a published policy that is a checkpoint as well, and a finished sample on sampler and router."""
        who = ids.name
        lora = {"rank": 2}
        body = {"run_id": ids.run_id, "base_model": "farstep/tiny", "lora": lora, "seed": "1"}
        created = self.ask(who, "trainer", "POST", paths.RUNS, json=body)
        assert created.status_code == 200, created.text
        assert created.json()["project"] == who
        datum = {
            "model_input": prompt(),
            "loss_fn_inputs": {"target_tokens": {"dtype": "DTYPE_INT64", "shape": ["5"], "values": [*PROMPT[1:], 2]}},
        }
        trained = {"data": [datum], "loss_fn": "cross_entropy"}
        assert "error" not in self.submit(who, ids, "forward_backward", trained, seq=1)
        adam = {"learning_rate": 1.0, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
        assert "error" not in self.submit(who, ids, "optim_step", adam, seq=2)
        published = self.submit(who, ids, "publish", {"name": f"{who}-policy"}, seq=3)
        assert published["save_weights"]["path"] == ids.path
        for server in ("sampler", "router"):
            wait = {"min_version": 1, "wait_s": 60}
            served = self.ask(who, server, "GET", paths.POLICY.format(run_id=ids.run_id), params=wait)
            assert served.status_code == 200, served.text
            self.ask(who, server, "POST", paths.LOAD_POLICY, json={"model_path": ids.path}).raise_for_status()
            key = ids.of_route(server)["operation_id"]
            headers = {paths.CLIENT_ID: f"{who}-client", paths.MIN_POLICY_VERSION: "1"}
            accepted = self.ask(
                who, server, "POST", paths.SAMPLES, params={"key": key}, json=sample(run_id=ids.run_id), headers=headers
            )
            assert accepted.json()["operation_id"] == key, accepted.text


@pytest.fixture(scope="module")
def fleet(pair, key_checks):
    """The pair that all contract tests use, with a router before its sampler."""
    trainer, sampler = pair
    for name in ("maple", "birch", "gone"):
        key_checks.give(f"fsk-{name}", project=name)
    with running("farstep_sampler.router", "--replica", sampler.url, env=key_checks.env) as router:
        fleet = Fleet(key_checks, trainer=trainer, sampler=sampler, router=router)
        deadline = time.monotonic() + 60
        while fleet.ask("operator", "router", "GET", paths.INFO).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        fleet.gone_s = revoke_after_use(fleet)
        fleet.make(MAPLE)
        fleet.make(BIRCH)
        yield fleet
        fleet.close()


def revoke_after_use(fleet):
    """Its end is looked at last, so that nobody has to wait for it."""
    for server in SERVERS:
        assert fleet.ask("gone", server, "GET", paths.INFO).status_code == 200
    fleet.checks.revoke("fsk-gone")
    return time.monotonic()


# Every route


def routes(server):
    """(method, template) of all that a server answers."""
    table = OperationTable()
    if server == "trainer":
        dispatcher = SimpleNamespace(table=table, cancel=None, usage=UsageCounters())
        found = TrainerApi(None, dispatcher, Checkpoints(None, secret="")).routes()
    else:
        members = SimpleNamespace()
        more = replica_routes(members) if server == "router" else [usage_route(UsageCounters(), instance_id="")]
        found = make_sampler_app(None, Submissions(max_pending=1), keys=KeyRing.of(KEY), more_routes=more).routes
    assert all(isinstance(route, Route) for route in found)
    return sorted({(method, route.path) for route in found for method in (route.methods or {"GET"}) - {"HEAD"}})


OPERATORS_ONLY = {
    ("GET", paths.METRICS),
    ("POST", paths.DRAIN),
    *((method, paths.REPLICAS) for method in ("GET", "POST", "DELETE")),
}
EVERYBODYS = {("GET", paths.HEALTH), ("GET", paths.INFO), ("GET", paths.TOKENIZER), ("GET", paths.OPENAPI)}
LISTS = {("GET", each) for each in (paths.RUNS, paths.POLICY_VERSION, paths.POLICIES, paths.OPENAI_MODELS, paths.USAGE)}
SIGNED = {("GET", paths.CHECKPOINT_FILE)}  # whoever has the URL may fetch it; keys have no part in it
MESSAGES = [{"role": "user", "content": "Hi"}]
# What names something in its body: the bodies that do, each of which is refused or told of in an outcome.
BODIES = {
    ("POST", paths.RUNS): lambda ids: [],  # a test of its own
    ("POST", paths.POLL): lambda ids: [],  # as well
    ("POST", paths.SAMPLES): lambda ids: [],  # as well
    ("POST", paths.SAMPLE): lambda ids: [sample(run_id=ids.run_id), sample(model_path=ids.path)],
    ("POST", paths.SAMPLE_STREAM): lambda ids: [sample(run_id=ids.run_id), sample(model_path=ids.path)],
    ("POST", paths.LOAD_POLICY): lambda ids: [{"model_path": ids.path}],
    ("POST", paths.OPENAI_CHAT): lambda ids: [
        {"model": name, "messages": MESSAGES, "max_tokens": 1, "seed": 3}
        for name in (ids.run_id, f"{ids.run_id}@1", ids.path)
    ],
    ("POST", paths.OPENAI_COMPLETIONS): lambda ids: [
        {"model": name, "prompt": "Hi", "max_tokens": 1, "seed": 3}
        for name in (ids.run_id, f"{ids.run_id}@1", ids.path)
    ],
}
# Before its first policy, a run is the base model under its own id, whoever asks; that is what others' runs are, too.
FROM_THE_BASE = {
    paths.SAMPLE: ["run_id"],
    paths.SAMPLE_STREAM: ["run_id"],
}


def requests(server, method, template, ids):
    """All requests to a route that name what somebody has."""
    if (method, template) in BODIES:
        return [(template, body) for body in BODIES[method, template](ids)]
    filled = ids.of_route(server)
    if template == paths.VERB:
        return [(template.format(**filled, verb=verb) + "?seq=9", {}) for verb in REQUEST_TYPES]
    body = {"ttl_seconds": "1000"} if template == paths.CHECKPOINT_TTL else None
    if template == paths.OPENAI_MODEL:
        return [(template.replace("{model:path}", name), body) for name in (ids.run_id, f"{ids.run_id}@1", ids.path)]
    if template == paths.POLICY:
        return [(template.format(**filled) + "?min_version=1", body)]
    return [(template.format(**filled), body)]


def is_about_ids(method, template):
    return (method, template) not in OPERATORS_ONLY | EVERYBODYS | LISTS | SIGNED


def same(text, ids):
    """A response with the ids taken out, and what differs from one to the next."""
    content = text.replace(ids.name, "?")
    try:
        fields = json.loads(content)
    except ValueError:
        return content
    return {key: value for key, value in fields.items() if key not in ("id", "created", "prompt_cache_hit_tokens")}


@pytest.mark.parametrize("server", SERVERS)
def test_every_route_knows_others_ids_no_better_than_nobodys(fleet, server):
    num_compared = 0
    for method, template in routes(server):
        if not is_about_ids(method, template):
            continue
        pairs = zip(requests(server, method, template, MAPLE), requests(server, method, template, NOBODY), strict=True)
        for (url, body), (unknown_url, unknown_body) in pairs:
            theirs = fleet.ask("birch", server, method, url, json=body)
            nobodys = fleet.ask("birch", server, method, unknown_url, json=unknown_body)
            assert theirs.status_code == nobodys.status_code, (method, url, theirs.text, nobodys.text)
            assert same(theirs.text, MAPLE) == same(nobodys.text, NOBODY), (method, url)
            wanted = 425 if template == paths.POLICY else 404
            if body and any(name in body for name in FROM_THE_BASE.get(template, ())):
                wanted = 200
            assert theirs.status_code == wanted, (method, url, theirs.text)
            num_compared += 1
    assert num_compared >= {"trainer": 15, "sampler": 15, "router": 15}[server]


@pytest.mark.parametrize("server", SERVERS)
def test_whoever_owns_them_is_known_on_every_route(fleet, server):
    """So that the test above compares with what is there; what ends something is asked last, of what nobody needs."""
    for method, template in routes(server):
        if not is_about_ids(method, template) or method == "DELETE" or template in (paths.VERB, paths.CANCEL):
            continue
        for url, body in requests(server, method, template, MAPLE):
            for who in ("maple", "operator"):
                if template == paths.OPERATION and server != "trainer" and who == "operator":
                    continue  # keys of samples are their own client's names
                response = fleet.ask(who, server, method, url, json=body)
                assert response.status_code == 200, (who, method, url, response.text)


@pytest.mark.parametrize("server", SERVERS)
def test_lists_show_ones_own(fleet, server):
    for method, template in routes(server):
        if (method, template) in LISTS:
            mine, theirs = (fleet.ask(who, server, method, template) for who in ("maple", "birch"))
            assert mine.status_code == theirs.status_code == 200, (template, mine.text)
            assert SECRET in mine.text
            assert SECRET not in theirs.text
            assert "birch" in theirs.text


@pytest.mark.parametrize("server", SERVERS)
def test_what_is_for_operators_is_for_them_alone(fleet, server):
    for method, template in routes(server):
        if (method, template) in OPERATORS_ONLY:
            assert fleet.ask("birch", server, method, template).status_code == 403, template


# Runs and checkpoints


def test_a_run_id_that_another_project_has_is_taken_and_no_more_is_said(fleet):
    body = {"run_id": MAPLE.run_id, "base_model": "farstep/tiny", "lora": {"rank": 2}, "seed": "1"}
    response = fleet.ask("birch", "trainer", "POST", paths.RUNS, json=body)
    assert response.status_code == 409
    assert response.json()["message"] == f"run id '{MAPLE.run_id}' is taken"
    assert fleet.ask("maple", "trainer", "POST", paths.RUNS, json=body).status_code == 200  # the same again
    named = fleet.ask("birch", "trainer", "POST", paths.RUNS, json={**body, "project": "maple"})
    assert (named.status_code, named.json()["field"]) == (400, "project")


def test_another_projects_checkpoint_cannot_be_loaded(fleet):
    seq = int(fleet.ask("birch", "trainer", "GET", paths.RUN.format(run_id=BIRCH.run_id)).json()["next_seq"])
    theirs, nobodys, own = (
        fleet.submit("birch", BIRCH, "load_state", {"path": ids.path}, seq=seq + place)
        for place, ids in enumerate((MAPLE, NOBODY, BIRCH))
    )
    assert theirs["error"]["status"] == 404
    assert same(json.dumps(theirs["error"]), MAPLE) == same(json.dumps(nobodys["error"]), NOBODY)
    assert "error" not in own


def test_a_public_checkpoint_is_read_by_everybody_and_changed_by_its_owner_alone(fleet, pair_home):
    store, path = CheckpointStore(pair_home / "store"), CheckpointPath.parse(MAPLE.path)
    named = MAPLE.of_route("trainer")
    sampled = {"json": sample(model_path=MAPLE.path)}
    reading = [
        *((server, "POST", paths.SAMPLE, sampled) for server in ("sampler", "router")),
        *(("trainer", "GET", template, {}) for template in (paths.CHECKPOINT, paths.CHECKPOINT_ARCHIVE)),
    ]
    changing = [
        ("trainer", "DELETE", paths.CHECKPOINT, {}),
        ("trainer", "PUT", paths.CHECKPOINT_TTL, {"json": {"ttl_seconds": "1000"}}),
    ]

    def told(asked):
        return [
            fleet.ask("birch", server, method, template.format(**named), **more).status_code
            for server, method, template, more in asked
        ]

    store.set_public(path, True)
    try:
        assert told(reading) == [200] * 4
        assert told(changing) == [404] * 2
        seq = int(fleet.ask("birch", "trainer", "GET", paths.RUN.format(run_id=BIRCH.run_id)).json()["next_seq"])
        assert "error" not in fleet.submit("birch", BIRCH, "load_state", {"path": MAPLE.path}, seq=seq)
        usage = fleet.ask("birch", "sampler", "GET", paths.USAGE).json()["usage"]
        assert [row["project"] for row in usage if row.get("run_id") == MAPLE.run_id] == ["birch"], "who asks, pays"
    finally:
        store.set_public(path, False)
    assert told(reading) == [404] * 4


def test_only_operators_ask_for_others(fleet):
    as_maple = {paths.ON_BEHALF_OF: "maple"}
    for server in SERVERS:
        assert fleet.ask("birch", server, "GET", paths.INFO, headers=as_maple).status_code == 403
        assert fleet.ask("maple", server, "GET", paths.INFO, headers=as_maple).status_code == 200
    for ids, status in ((MAPLE, 200), (BIRCH, 404)):
        path = paths.RUN.format(run_id=ids.run_id)
        assert fleet.ask("operator", "trainer", "GET", path, headers=as_maple).status_code == status


# Outcomes


@pytest.mark.parametrize("server", SERVERS)
def test_a_strangers_poll_brings_and_acknowledges_nothing(fleet, server):
    operation_id = MAPLE.of_route(server)["operation_id"]

    def poll(who, **fields):
        return fleet.ask(who, server, "POST", paths.POLL, json={"client_id": "maple-client", **fields}).json()

    mine = poll("maple", wait_s=20)
    assert operation_id in [each["operation_id"] for each in mine["finished"]]
    stolen = poll("birch", ack=[operation_id], check=[operation_id])
    assert "finished" not in stolen
    assert stolen["unknown"] == [operation_id]
    assert operation_id in [each["operation_id"] for each in poll("maple")["finished"]]
    assert "unknown" not in poll("maple", check=[operation_id])


@pytest.mark.parametrize("server", ["sampler", "router"])
def test_samples_submitted_under_anothers_key_and_name_are_ones_own(fleet, server):
    key = MAPLE.of_route(server)["operation_id"]
    headers = {paths.CLIENT_ID: "maple-client"}
    for number, ids in enumerate((MAPLE, NOBODY)):
        body = sample(model_path=ids.path)
        submitted = {"params": {"key": f"{key}{number or ''}"}, "json": body, "headers": headers}
        accepted = fleet.ask("birch", server, "POST", paths.SAMPLES, **submitted)
        assert accepted.status_code == 202, accepted.text
        path = paths.OPERATION.format(operation_id=accepted.json()["operation_id"])
        outcome = fleet.ask("birch", server, "GET", path, params={"wait_s": 20}).json()
        assert outcome["error"]["status"] == 404, outcome
    assert "error" not in fleet.ask("maple", server, "GET", paths.OPERATION.format(operation_id=key)).json()


# Caches, and what is counted


@pytest.mark.parametrize("server", ["sampler", "router"])
def test_caches_do_not_tell_what_others_asked(fleet, server):
    offset = {"sampler": 0, "router": 1}[server]
    asked = sample(prompt=prompt([1 + offset, *LONG_PROMPT[1:]]))

    def num_cached(who):
        response = fleet.ask(who, server, "POST", paths.SAMPLE, json=asked)
        assert response.status_code == 200, response.text
        return int(response.json().get("prompt_cache_hit_tokens", 0))

    assert num_cached("maple") == 0
    assert num_cached("maple") > 0
    assert num_cached("birch") == 0
    assert num_cached("operator") == 0
    assert num_cached("birch") > 0


def test_what_was_used_is_told_by_project_and_run(fleet):
    def rows(server, who):
        usage = fleet.ask(who, server, "GET", paths.USAGE).json()["usage"]
        return {(row.get("project", ""), row.get("run_id", "")): row for row in usage}

    trained = rows("trainer", "operator")["maple", MAPLE.run_id]
    assert int(trained["num_operations"]) >= 3
    assert int(trained["tokens_trained"]) == len(PROMPT)
    assert trained["trainer_seconds"] > 0
    sampled = rows("sampler", "operator")["maple", MAPLE.run_id]
    assert int(sampled["num_samples"]) >= 1
    assert int(sampled["tokens_prompted"]) >= len(PROMPT)
    assert int(sampled["tokens_sampled"]) >= 1
    assert sampled["sampler_seconds"] > 0
    assert {project for project, _ in rows("sampler", "maple")} == {"maple"}


# The feed


def feed_of(fleet, who):
    key = KEY if who == "operator" else f"fsk-{who}"
    channel = grpc.insecure_channel(fleet.servers["trainer"].facts["feed"])
    return channel, PolicyFeedStub(channel), (("authorization", f"Bearer {key}"),)


@pytest.mark.parametrize(("who", "seen"), [("birch", {"birch"}), ("operator", {"maple", "birch"})])
def test_the_feed_brings_ones_own_policies(fleet, who, seen):
    channel, stub, metadata = feed_of(fleet, who)
    with channel:
        events = stub.Subscribe(feed_pb2.SubscribeRequest(), metadata=metadata, timeout=60)
        found = set()
        for event in events:
            if event.HasField("header"):
                found.add(event.header.project)
                assert event.header.run_id.startswith(event.header.project)
            if found >= seen:
                break
        events.cancel()
    assert found == seen


def test_the_feed_fetches_nothing_of_others(fleet):
    channel, stub, metadata = feed_of(fleet, "birch")

    def fetched(ids):
        try:
            return list(stub.Fetch(feed_pb2.FetchRequest(run_id=ids.run_id, version=1), metadata=metadata, timeout=60))
        except grpc.RpcError as error:
            return error.code(), error.details().replace(ids.name, "?")

    with channel:
        assert fetched(MAPLE) == fetched(NOBODY)
        assert fetched(MAPLE)[0] is grpc.StatusCode.NOT_FOUND
        assert fetched(BIRCH)[0].header.project == "birch"


# Keys


def test_while_the_control_plane_is_silent_known_keys_go_on(fleet):
    fleet.checks.silent = True
    try:
        for server in SERVERS:
            assert fleet.ask("maple", server, "GET", paths.INFO).status_code == 200
            assert fleet.ask("operator", server, "GET", paths.INFO).status_code == 200
            unknown = fleet.ask("stranger", server, "GET", paths.INFO)
            assert unknown.status_code == 503
            assert int(unknown.headers["Retry-After"]) >= 1
            assert "fsk-" not in unknown.text
    finally:
        fleet.checks.silent = False
    for server in SERVERS:
        deadline = time.monotonic() + 30
        while (status := fleet.ask("stranger", server, "GET", paths.INFO).status_code) != 401:
            assert status == 503
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_flood_of_wrong_keys_asks_little(fleet):
    asked = len(fleet.checks.asked)
    for _ in range(50):
        assert fleet.ask("wrong", "sampler", "GET", paths.INFO).status_code in (401, 503)
    assert fleet.checks.times_asked("fsk-wrong") <= 2
    assert len(fleet.checks.asked) - asked < 10


def test_a_revoked_key_stops_within_seconds(fleet):
    for server in SERVERS:
        while fleet.ask("gone", server, "GET", paths.INFO).status_code != 401:
            assert time.monotonic() < fleet.gone_s + 60
            time.sleep(0.25)


def test_a_run_and_its_checkpoints_survive_a_stranger_and_end_with_their_owner(fleet):
    """The last test: what was denied to others is granted here."""
    for template in (paths.CHECKPOINT, paths.RUN):
        path = template.format(**MAPLE.of_route("trainer"))
        assert fleet.ask("birch", "trainer", "DELETE", path).status_code == 404
        assert fleet.ask("maple", "trainer", "DELETE", path).status_code == 200
    assert "was deleted" in fleet.ask("maple", "trainer", "GET", path).json()["message"]
    gone, unknown = (
        fleet.ask("birch", "trainer", "GET", paths.RUN.format(run_id=ids.run_id)).text for ids in (MAPLE, NOBODY)
    )
    assert same(gone, MAPLE) == same(unknown, NOBODY)
