"""The SDK's RestClient and AdminClient, a control plane whose trainers are fakes, checkpoints written here."""

import json
import math
import tempfile
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tinker
from tinker import types

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.names import CheckpointPath
from tests.unit.infra.conftest import start_up

pytestmark = pytest.mark.timeout(240)

LORA = {"rank": 4, "train_attn": True, "train_mlp": True, "train_unembed": False}
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"\0" * 1000}


@pytest.fixture(scope="module")
def up():
    with tempfile.TemporaryDirectory() as home:
        running = start_up(Path(home), "--model=fake/one")
        yield running
        running.stop()


@pytest.fixture(scope="module")
def store(up):
    return CheckpointStore(up.home / "store")


class Project:
    """A project with a key of its own, and what the SDK makes of that key."""

    def __init__(self, up, store, name):
        self.up, self.store, self.name = up, store, name
        self.key = up.call("POST", "/v1/keys", {"project": name})["secret"]
        self.rest = tinker.RestClient(base_url=up.url, api_key=f"tml-{self.key}")
        self.admin = tinker.AdminClient(base_url=up.url, api_key=f"tml-{self.key}")

    def run(self, **fields):
        session = self.up.session(project=self.name)
        return self.up.run(session, **fields)

    def save(self, run_id, kind, name, *, project=None, **meta):
        path = CheckpointPath(run_id, kind, name)
        meta = {"base_model": "fake/one", "lora": LORA, "project": project or self.name, **meta}
        self.store.write(path, FILES, meta)
        return path.tinker_path


@pytest.fixture(scope="module")
def lab(up, store):
    return Project(up, store, "lab")


@pytest.fixture(scope="module")
def elsewhere(up, store):
    return Project(up, store, "elsewhere")


@pytest.fixture(scope="module")
def operator(up):
    return tinker.RestClient(base_url=up.url, api_key=f"tml-{up.key}")


def test_what_there_is_is_told(lab):
    models = lab.rest.get_server_capabilities().result().supported_models
    assert [(model.model_name, model.trainable, model.sampleable) for model in models] == [("fake/one", True, True)]


def test_runs_are_listed_newest_first_a_window_at_a_time(lab, elsewhere, operator):
    made = [lab.run(user_metadata={"number": str(number)})["run_id"] for number in range(3)]
    theirs = elsewhere.run()["run_id"]
    found = lab.rest.list_training_runs(limit=2).result()
    assert [run.training_run_id for run in found.training_runs] == made[:0:-1]
    total = found.cursor.total_count
    assert (found.cursor.limit, found.cursor.offset) == (2, 0)
    following = lab.rest.list_training_runs(limit=2, offset=2).result()
    assert following.training_runs[0].training_run_id == made[0]
    assert following.cursor.total_count == total
    assert theirs not in [run.training_run_id for run in lab.rest.list_training_runs(limit=100).result().training_runs]
    everything = operator.list_training_runs(limit=100).result().training_runs
    assert {*made, theirs} <= {run.training_run_id for run in everything}
    narrowed = operator.list_training_runs(limit=100, project_id="elsewhere").result()
    assert [run.model_owner for run in narrowed.training_runs] == ["elsewhere"] * narrowed.cursor.total_count
    for project in ("elsewhere", "never"):
        with pytest.raises(tinker.NotFoundError, match="no project"):
            lab.rest.list_training_runs(project_id=project).result()


@pytest.mark.parametrize("window", [{"limit": -1}, {"limit": 1001}, {"offset": -1}, {"access_scope": "all"}])
def test_a_wrong_window_is_refused_by_name(lab, window):
    (name,) = window
    with pytest.raises(tinker.BadRequestError, match=name):
        lab.rest.list_training_runs(**window).result()


def test_a_run_is_told_with_its_last_checkpoints(lab, elsewhere):
    run_id = lab.run(user_metadata={"who": "me"})["run_id"]
    told = lab.rest.get_training_run(run_id).result()
    assert (told.base_model, told.model_owner, told.is_lora, told.lora_rank) == ("fake/one", "lab", True, 4)
    assert (told.corrupted, told.user_metadata, told.last_checkpoint) == (False, {"who": "me"}, None)
    assert abs(told.last_request_time - datetime.now(UTC)) < timedelta(minutes=2)
    for name in ("first", "second"):
        path = lab.save(run_id, "weights", name, metadata={"name": name})
        sampler = lab.save(run_id, "sampler_weights", name)
    told = lab.rest.get_training_run_by_tinker_path(path).result()
    assert told.last_checkpoint.tinker_path == path
    assert told.last_checkpoint.user_metadata == {"name": "second"}
    assert told.last_sampler_checkpoint.tinker_path == sampler
    refusals = []
    for unknown in (run_id, "run-never"):
        with pytest.raises(tinker.NotFoundError) as caught:
            elsewhere.rest.get_training_run(unknown).result()
        refusals.append(str(caught.value).replace(unknown, "X"))
    assert refusals[0] == refusals[1]


def test_checkpoints_of_every_kind_are_listed_with_what_is_known_of_them(lab, elsewhere):
    run_id = lab.run()["run_id"]
    paths = [lab.save(run_id, kind, "one") for kind in ("weights", "sampler_weights", "external_weights")]
    lab.rest.set_checkpoint_ttl_from_tinker_path(paths[2], 7200).result()
    found = lab.rest.list_checkpoints(run_id).result()
    assert found.cursor is None
    assert [each.tinker_path for each in found.checkpoints] == paths
    assert [each.checkpoint_type for each in found.checkpoints] == ["training", "sampler", "external"]
    assert [each.checkpoint_id for each in found.checkpoints] == [path.split("/", 3)[3] for path in paths]
    first, last = found.checkpoints[0], found.checkpoints[2]
    assert (first.size_bytes, first.public, first.expires_at) == (1002, False, None)
    assert abs(last.expires_at - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=2)
    with pytest.raises(tinker.NotFoundError):
        elsewhere.rest.list_checkpoints(run_id).result()
    assert lab.rest.list_checkpoints(lab.run()["run_id"]).result().checkpoints == []


def test_checkpoints_of_all_runs_are_listed_newest_first(lab, elsewhere, operator):
    theirs = elsewhere.save(elsewhere.run()["run_id"], "weights", "theirs")
    paths = [lab.save(lab.run()["run_id"], "weights", f"w{number}") for number in range(2)]
    first = lab.rest.list_user_checkpoints(limit=1).result()
    second = lab.rest.list_user_checkpoints(limit=1, offset=1).result()
    assert [page.checkpoints[0].tinker_path for page in (first, second)] == paths[::-1]
    everything = lab.rest.list_user_checkpoints(limit=1000).result()
    assert len(everything.checkpoints) == everything.cursor.total_count == first.cursor.total_count
    assert theirs not in [each.tinker_path for each in everything.checkpoints]
    assert {theirs, *paths} <= {
        each.tinker_path for each in operator.list_user_checkpoints(limit=1000).result().checkpoints
    }


def test_a_checkpoint_is_kept_for_a_while_and_deleted_by_its_owner_alone(lab, elsewhere):
    path = lab.save(lab.run()["run_id"], "weights", "one")
    for change in ("delete_checkpoint_from_tinker_path", "publish_checkpoint_from_tinker_path"):
        with pytest.raises(tinker.NotFoundError):
            getattr(elsewhere.rest, change)(path).result()
    for seconds in (60, 3599, 11 * 365 * 24 * 3600, 0, -1):
        with pytest.raises(tinker.BadRequestError, match="ttl_seconds"):
            lab.rest.set_checkpoint_ttl_from_tinker_path(path, seconds).result()

    def expires_at():
        return _only(lab, path).expires_at

    lab.rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    assert abs(expires_at() - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=2)
    lab.rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert expires_at() is None
    run_id = path.removeprefix("tinker://").partition("/")[0]
    with pytest.raises(tinker.BadRequestError, match="weights/<name>"):  # its kind is not said
        lab.rest.delete_checkpoint(run_id, "one").result()
    lab.rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError, match="no checkpoint tinker://"):
        lab.rest.delete_checkpoint_from_tinker_path(path).result()


def test_a_published_checkpoint_is_read_by_everybody_and_changed_by_its_owner(lab, elsewhere):
    run_id = lab.run()["run_id"]
    path, hidden = lab.save(run_id, "weights", "one"), lab.save(run_id, "weights", "two")
    with pytest.raises(tinker.NotFoundError):
        elsewhere.rest.get_weights_info_by_tinker_path(path).result()
    lab.rest.publish_checkpoint_from_tinker_path(path).result()
    assert _only(lab, path).public
    info = elsewhere.rest.get_weights_info_by_tinker_path(path).result()
    assert (info.base_model, info.lora_rank, info.train_attn, info.train_unembed) == ("fake/one", 4, True, False)
    seen = elsewhere.rest.get_training_run(run_id, access_scope="accessible").result()
    assert seen.last_checkpoint.tinker_path == path, "what was not published is not told of"
    assert [each.tinker_path for each in elsewhere.rest.list_checkpoints(run_id).result().checkpoints] == [path]
    listed = elsewhere.rest.list_user_checkpoints(limit=1000).result().checkpoints
    assert path not in [each.tinker_path for each in listed]
    for refused in (
        lambda: elsewhere.rest.get_training_run(run_id),
        lambda: elsewhere.rest.delete_checkpoint_from_tinker_path(path),
        lambda: elsewhere.rest.unpublish_checkpoint_from_tinker_path(path),
        lambda: elsewhere.rest.set_checkpoint_ttl_from_tinker_path(path, 3600),
        lambda: elsewhere.rest.get_weights_info_by_tinker_path(hidden),
    ):
        with pytest.raises(tinker.NotFoundError):
            refused().result()
    lab.rest.unpublish_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError):
        elsewhere.rest.get_weights_info_by_tinker_path(path).result()


def test_external_weights_are_fetched_by_urls_that_need_no_key(lab, elsewhere):
    path = lab.save(lab.run()["run_id"], "external_weights", "out")
    told = lab.rest.get_external_weights_urls(path).result()
    assert timedelta(minutes=50) < told.expires - datetime.now(UTC) <= timedelta(hours=1)
    fetched = {}
    for name, url in told.urls.items():
        with urllib.request.urlopen(url, timeout=30) as answer:
            fetched[name] = answer.read()
    assert fetched == FILES
    with pytest.raises(tinker.NotFoundError):
        elsewhere.rest.get_external_weights_urls(path).result()


def test_weights_are_copied_to_a_project_by_whoever_may_read_them(lab, elsewhere):
    path = lab.save(lab.run()["run_id"], "weights", "one", metadata={"a": "b"}, operation="run:7")
    with tinker.ServiceClient(project_id="lab", base_url=lab.up.url, api_key=f"tml-{lab.key}") as service:
        copied = service.copy_weights(path, ttl_seconds=7200).result()
    record = _only(lab, copied)
    assert (record.user_metadata, record.size_bytes) == ({"a": "b"}, 1002)
    assert abs(record.expires_at - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=2)
    assert lab.rest.get_training_run_by_tinker_path(copied).result().lora_rank == 4
    to_project = lab.rest.copy_weights(path, destination_project_id="lab").result()
    assert _only(lab, to_project).expires_at is None
    for destination in ("elsewhere", "never"):
        with pytest.raises(tinker.NotFoundError):
            lab.rest.copy_weights(path, destination_project_id=destination).result()
    with pytest.raises(tinker.NotFoundError):
        elsewhere.rest.copy_weights(path, destination_project_id="elsewhere").result()
    lab.rest.publish_checkpoint_from_tinker_path(path).result()
    taken = elsewhere.rest.copy_weights(path, destination_project_id="elsewhere").result()
    lab.rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert _only(elsewhere, taken).public is False
    with pytest.raises(tinker.BadRequestError, match="weights_access_token"):
        lab.rest.copy_weights(path, destination_project_id="lab", weights_access_token="secret").result()


def test_a_copy_that_is_asked_for_again_is_the_same(lab):
    path = lab.save(lab.run()["run_id"], "weights", "one")
    ask = _raw(lab)
    body, once = {"source_path": path, "destination_project_id": "lab"}, {"X-Idempotency-Key": "copy-1"}
    first, again = [ask("POST", "copy_weights", body, **once) for _ in range(2)]
    assert first["tinker_path"] == again["tinker_path"]
    other = ask("POST", "copy_weights", body, **{"X-Idempotency-Key": "copy-2"})
    assert other["tinker_path"] != first["tinker_path"]
    session = lab.up.session(project="lab")
    body = {"source_path": path, "session_id": session, "model_seq_id": 3}
    copies = {ask("POST", "copy_weights", body)["tinker_path"] for _ in range(2)}
    assert copies == {f"tinker://{session}:train:3/weights/one"}
    another = lab.save(lab.run()["run_id"], "weights", "one", step=9)
    ask("POST", "copy_weights", body | {"source_path": another}, status=400)
    ask("POST", "copy_weights", {"source_path": path}, status=400)
    ask("POST", "copy_weights", body | {"destination_project_id": "lab"}, status=400)


def test_sessions_are_listed_looked_at_and_searched(lab, elsewhere):
    def open_one(**fields):
        return tinker.ServiceClient(base_url=lab.up.url, api_key=f"tml-{lab.key}", **fields)

    with open_one(display_name="Grand Tour of Maths", user_metadata={"kind": "maths"}) as service:
        finished = service.holder.get_session_id()
    service = open_one(display_name="tour of words", user_metadata={"kind": "words"})
    active = service.holder.get_session_id()
    try:
        assert lab.rest.list_sessions(limit=2).result().sessions == [active, finished]
        run = lab.up.run(active)["run_id"]
        lab.save(run, "weights", "one")
        content = lab.rest.get_session(active).result()
        assert (content.training_run_ids, content.sampler_ids) == ([run], [])
        assert (content.display_name, content.user_metadata) == ("tour of words", {"kind": "words"})
        for found, search in (
            ([active, finished], {"display_name": "TOUR of"}),
            ([finished], {"display_name": "maths grand"}),
            ([active], {"user_metadata": {"kind": "words"}}),
            ([], {"user_metadata": {"kind": "words"}, "session_id": finished}),
            ([active, finished], {"session_id": finished, "display_name": "words"}),
            ([active], {"display_name": "tour", "statuses": [types.ActiveSessionStatusQuery()]}),
            ([finished], {"display_name": "tour", "statuses": [_finished("success")]}),
            ([], {"display_name": "tour", "statuses": [_finished("errored")]}),
            ([], {"display_name": "tour", "owner": {"type": "user", "owner_urns": ["somebody"]}}),
            ([active], {"display_name": "words", "owner": {"type": "accessible"}, "project_ids": ["lab"]}),
        ):
            assert [each.session_id for each in _search(lab, **search).sessions] == found, search
        (summary,) = _search(lab, session_id=active).sessions
        assert (summary.project_id, summary.owner) == ("lab", "farstep:project:lab")
        assert (summary.checkpoints_count, summary.checkpoint_storage_bytes) == (1, 1002)
        page = _search(lab, display_name="tour", limit=1)
        following = _search(lab, display_name="tour", limit=1, cursor=page.next_cursor)
        assert [each.session_id for each in (*page.sessions, *following.sessions)] == [active, finished]
        assert following.next_cursor is None
        assert _search(elsewhere, session_id=active).sessions == []
    finally:
        service.close("success")


def test_an_empty_session_is_given_to_another_project_and_one_with_runs_is_not(lab, operator):
    empty, used = lab.up.session(project="lab"), lab.up.session(project="lab")
    lab.up.run(used)
    lab.rest.assign_session_project(empty, "lab").result()
    with pytest.raises(tinker.NotFoundError):
        lab.rest.assign_session_project(empty, "elsewhere").result()
    operator.assign_session_project(empty, "elsewhere").result()
    with pytest.raises(tinker.NotFoundError):
        lab.rest.get_session(empty).result()
    with pytest.raises(tinker.BadRequestError, match="has runs"):
        operator.assign_session_project(used, "elsewhere").result()


def test_a_sessions_timeline_is_fetched_by_a_url_that_needs_no_key(lab, elsewhere):
    session = lab.up.session(project="lab")
    url = lab.rest.export_session_trace(session).result()
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert json.load(answer)["traceEvents"] == []
    other = lab.up.session(project="lab")
    for altered in (url.replace(session, other), url.partition("?")[0], url[:-3]):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(altered, timeout=30)
    with pytest.raises(tinker.NotFoundError):
        elsewhere.rest.export_session_trace(session).result()


def test_usage_is_what_the_ledger_has_by_day(lab, elsewhere):
    run = lab.run(base_model="fake/two", with_sampler=False)
    lab.up.use(run["trainer_url"], run_id=run["run_id"], project="lab", tokens=700)
    lab.up.call("POST", f"/v1/runs/{run['run_id']}/deactivate")  # its server is asked once more before it ends
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

    def events():
        found = lab.admin.get_billing_usage(today - timedelta(days=1), today + timedelta(days=2)).result()
        mine = [each for each in found.data if each.session_id == run["session_id"]]
        assert not mine or run["session_id"] in found.sessions
        return mine

    lab.up.wait_until(events, within_s=60)
    (event,) = events()
    assert (event.event_info.type, event.event_info.token_count) == ("training", 700)
    assert (event.project_id, event.base_model, event.estimated_cost_usd) == ("lab", "fake/two", None)
    assert event.bucket_end - event.bucket_start == timedelta(days=1)
    theirs = elsewhere.admin.get_billing_usage(today - timedelta(days=1), today + timedelta(days=2)).result()
    assert run["session_id"] not in theirs.sessions


def test_a_window_of_usage_that_cannot_be_is_refused_by_name(lab):
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for since, until, name in (
        (today + timedelta(minutes=1), today + timedelta(hours=1), "starting_on"),
        (today, today + timedelta(days=15), "ending_before"),
        (today, today, "ending_before"),
        (today + timedelta(days=3), today + timedelta(days=4), "starting_on"),
    ):
        with pytest.raises(tinker.BadRequestError, match=name):
            lab.admin.get_billing_usage(since, until).result()


def test_what_is_stored_is_added_up_by_project(lab, elsewhere, up):
    def stored(client, **fields):
        found = client.get_current_checkpoint_storage_usage(**fields).result()
        assert found.effective_rate_usd_per_gigabyte_month is None
        return {each.project_id: each for each in found.data}

    lab.save(lab.run()["run_id"], "weights", "one")
    elsewhere.save(elsewhere.run()["run_id"], "weights", "one")
    (mine,) = stored(lab.admin).values()
    assert (mine.project_id, mine.size_bytes) == ("lab", 1002 * mine.checkpoint_count)
    assert math.isclose(mine.size_gigabytes, mine.size_bytes / 1e9)
    everybody = stored(tinker.AdminClient(base_url=up.url, api_key=f"tml-{up.key}"))
    assert {"lab", "elsewhere"} <= set(everybody)
    assert set(stored(tinker.AdminClient(base_url=up.url, api_key=f"tml-{up.key}"), project_id="lab")) == {"lab"}


def test_no_audit_log_is_made_up(lab):
    with pytest.raises(tinker.NotFoundError):
        lab.admin.get_audit_log().result()


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("DELETE", "training_runs/run/checkpoints/nothing/x", None, "checkpoint_id"),
        ("DELETE", "training_runs/run/checkpoints/weights/a%20b", None, "checkpoint_id"),
        ("POST", "weights_info", {"tinker_path": "weights/x"}, "tinker_path"),
        ("POST", "weights_info", {}, "tinker_path"),
        ("POST", "sessions/search", {"limit": 201}, "limit"),
        ("POST", "sessions/search", {"statuses": [{"type": "lost"}]}, "statuses.0"),
        ("POST", "sessions/search", {"user_metadata": {"a": 1}}, "user_metadata.a"),
        ("POST", "sessions/search", {"cursor": {"last_created_at": "2026-01-01", "last_session_id": "x"}}, "cursor"),
        ("PUT", "training_runs/run/checkpoints/weights/x/ttl", {}, "ttl_seconds"),
        ("PUT", "training_runs/run/checkpoints/weights/x/ttl", {"ttl_seconds": "3600"}, "ttl_seconds"),
    ],
)
def test_a_wrong_request_is_refused_by_name(lab, method, path, body, field):
    assert _raw(lab)(method, path, body, status=400)["field"].startswith(field)


def test_telemetry_is_accepted_and_bounded(lab):
    ask = _raw(lab)
    assert ask("POST", "telemetry", {"events": [], "session_id": "x"}) == {"status": "accepted"}
    ask("POST", "telemetry", {"events": ["x" * (2 << 20)]}, status=413)


def _only(project, tinker_path):
    run_id = types.ParsedCheckpointTinkerPath.from_tinker_path(tinker_path).training_run_id
    (found,) = [
        each for each in project.rest.list_checkpoints(run_id).result().checkpoints if each.tinker_path == tinker_path
    ]
    return found


def _finished(*reasons):
    return types.ClientFinishedSessionStatusQuery(reasons=list(reasons))


def _search(project, **fields):
    with pytest.warns(tinker.lib.experimental.ExperimentalWarning):
        return project.rest.search_sessions(types.SessionSearchRequest(**fields)).result()


def _raw(project):
    import httpx

    def ask(method, path, body=None, *, status=200, **headers):
        headers |= {"X-API-Key": f"tml-{project.key}"}
        url = f"{project.up.url}/api/v1/{path}"
        answer = httpx.request(method, url, json=body, headers=headers, timeout=30, trust_env=False)
        assert answer.status_code == status, answer.text
        return answer.json()

    return ask
