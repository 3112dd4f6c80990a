"""What becomes of a published adapter: its number, its copies, and how it is found again."""

import threading

import pytest

from farstep_infra.store.blobs import open_blobs
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policies import PolicyShelves, ShelvedPolicy
from farstep_infra.store.policy_numbers import PolicyNumbers
from farstep_model.adapter import Adapter
from farstep_proto.errors import Internal, NotFound, StorageFull
from farstep_proto.v1 import operations_pb2
from farstep_worker.executor import Executor
from farstep_worker.publisher import Publisher, WeightSync
from farstep_worker.shelf_writer import ShelfWriter
from farstep_worker.submission import LoadState, Publish, Reset, SaveState


def succeeded(outcome):
    operation = outcome.operation
    assert operation.state == operations_pb2.OPERATION_STATE_SUCCEEDED, operation.error
    return operation.save_weights


@pytest.fixture
def store(executor):
    return executor.store


@pytest.fixture
def make_trainer(layers, store):
    """An executor as a trainer that was just started has it."""

    def make(**settings):
        return Executor(layers, store, token_budget=128, publisher=Publisher(store, **settings))

    return make


def test_old_versions_are_found_again_until_they_are_too_many(make_trainer, make_run, executor):
    executor.publisher = Publisher(executor.store, keep=3)
    run = make_run(warm=True)
    data = {}
    for version in range(1, 6):
        run.adapter.parameters()[0].data.add_(0.01)
        data[version] = run.adapter.to_bytes()
        assert succeeded(executor.execute("run", Publish("", None))).policy_version == version
        assert executor.publisher.read("run", version, history="").data == data[version]  # written or not
    assert executor.publisher.flush(10)
    later = Publisher(executor.store)
    for version in (3, 4, 5):
        found = later.read("run", version, history="")
        assert found.data == data[version]
        loaded = Adapter.from_files(
            run.adapter.layers, {"adapter_model.safetensors": found.data, "adapter_config.json": found.config}
        )
        assert loaded.to_bytes() == data[version]
    with pytest.raises(NotFound):
        later.read("run", 2, history="")
    with pytest.raises(NotFound):
        later.read("run", 5, history="another")


def test_a_named_version_is_found_as_long_as_its_checkpoint_is_there(executor, make_run):
    executor.publisher = Publisher(executor.store, keep=1)
    make_run(warm=True)
    succeeded(executor.execute("run", Publish("first", None)))
    succeeded(executor.execute("run", Publish("", None)))
    assert executor.publisher.flush(10)
    history = executor.publisher.read("run", 2, history="").history
    named = executor.publisher.read("run", 1, history=history)
    assert (named.version, named.history) == (1, history)
    assert named.config


def test_a_trainer_that_goes_on_from_an_older_checkpoint_gives_new_numbers(make_trainer, make_run, executor):
    """The worker dies after version 3 and its state is of version 1: the next version is 4, not another 2."""
    run = make_run(warm=True)
    succeeded(executor.execute("run", Publish("", None)))
    succeeded(executor.execute("run", SaveState("old", {}, None, overwrite=False)))
    history = [executor.execute("run", Publish("", None)).policy.history for _ in range(2)][-1]
    anew = make_trainer()
    resumed = anew.create_run(run.config)
    succeeded(anew.execute("run", LoadState(executor_path("old"), optimizer=True)))
    assert resumed.policy_version == 1
    outcome = anew.execute("run", Publish("", None))
    assert succeeded(outcome).policy_version == 4
    assert outcome.policy.history == history


def executor_path(name):
    from farstep_proto.names import CheckpointPath

    return CheckpointPath("run", "weights", name)


def test_versions_go_up_over_a_reset_and_a_load(executor, make_run):
    make_run(warm=True)
    succeeded(executor.execute("run", SaveState("start", {}, None, overwrite=False)))
    versions = []
    for call in (Reset(4), LoadState(executor_path("start"), optimizer=False), Reset(4)):
        succeeded(executor.execute("run", call))
        versions.append(succeeded(executor.execute("run", Publish("", None))).policy_version)
    assert versions == [1, 2, 3]


def test_a_store_that_lost_its_numbers_goes_on_above_its_checkpoints(executor, make_run, make_trainer):
    run = make_run(warm=True)
    for name in ("a", "b"):
        succeeded(executor.execute("run", Publish(name, None)))
    assert executor.publisher.flush(10)
    executor.store.private("policies~").delete("run/numbers.json")
    anew = make_trainer()
    anew.create_run(run.config)
    assert succeeded(anew.execute("run", Publish("", None))).policy_version == 3


@pytest.fixture
def sync(tmp_path):
    uri = f"file://{tmp_path}/sync"
    return WeightSync(uri, PolicyShelves(open_blobs(uri), keep=2))


def test_with_a_weight_sync_uri_saving_publishes_too(layers, store, make_run, executor, sync):
    executor.publisher = Publisher(store, sync=sync)
    run = make_run(warm=True)
    assert succeeded(executor.execute("run", Publish("", None))).policy_version == 1
    saved = executor.execute("run", SaveState("a", {}, None, overwrite=False))
    assert succeeded(saved).policy_version == 2
    assert saved.policy.version == run.policy_version == 2
    assert store.manifest(executor_path("a")).meta["policy_version"] == 2
    assert executor.publisher.flush(10)
    found = sync.shelves.read("run", 2)
    assert Adapter.from_files(layers, found.files).to_bytes() == run.adapter.to_bytes()
    taken = executor.execute("run", SaveState("a", {}, None, overwrite=False))
    assert taken.operation.error.error_class == "ConflictError"
    assert run.policy_version == 2
    assert succeeded(executor.execute("run", Publish("", None))).policy_version == 3  # no number was lost


def test_without_one_saving_publishes_nothing(executor, make_run):
    make_run(warm=True)
    outcome = executor.execute("run", SaveState("a", {}, None, overwrite=False))
    assert not outcome.operation.save_weights.HasField("policy_version")
    assert outcome.policy is None


def test_a_new_store_goes_on_where_the_uri_is(tmp_path, layers, make_run, executor, sync):
    """The trainer's disk is gone, what its samplers know is not: versions must not begin at 1 again."""
    executor.publisher = Publisher(executor.store, sync=sync)
    run = make_run(warm=True)
    for _ in range(3):
        first = executor.execute("run", Publish("", None))
    assert executor.publisher.flush(10)
    store = CheckpointStore(tmp_path / "new-store")
    anew = Executor(layers, store, token_budget=128, publisher=Publisher(store, sync=sync))
    anew.create_run(run.config)
    second = anew.execute("run", Publish("", None))
    assert (second.policy.version, second.policy.history) == (4, first.policy.history)
    assert anew.publisher.flush(10)


class SlowShelves:
    """Writes when `gate` is open; fails as often as `failures` says."""

    def __init__(self, *, failures=0):
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.written = []
        self.failures = failures

    def put(self, policy):
        self.entered.set()
        assert self.gate.wait(20)
        if self.failures:
            self.failures -= 1
            raise Internal("no answer")
        self.written.append((policy.run_id, policy.version))


def shelved(version, run_id="r"):
    return ShelvedPolicy(run_id, version, "h", 1.0, {"f": b""})


def test_a_far_place_that_is_slow_holds_up_nobody_and_gets_the_newest():
    shelves = SlowShelves()
    writer = ShelfWriter(shelves, name="far", skips=True)
    for version in range(1, 51):
        writer.put(shelved(version))
        if version == 1:
            assert shelves.entered.wait(5)
    writer.put(shelved(1, "other"))
    assert len(writer._waiting) <= 2  # whatever was passed over is forgotten
    shelves.gate.set()
    assert writer.flush(10)
    assert shelves.written == [("r", 1), ("r", 50), ("other", 1)]


def test_a_far_place_that_fails_is_tried_again_and_given_up(caplog):
    shelves = SlowShelves(failures=2)
    shelves.gate.set()
    writer = ShelfWriter(shelves, name="far", skips=True, retries_s=(0.01, 0.01))
    writer.put(shelved(1))
    assert writer.flush(10)
    assert shelves.written == [("r", 1)]
    shelves.failures = 9
    writer.put(shelved(2))
    assert writer.flush(10)
    assert "version 2 of r is not kept far" in caplog.text
    shelves.failures = 0
    writer.put(shelved(3))
    assert writer.flush(10)
    assert shelves.written == [("r", 1), ("r", 3)]


def test_the_store_keeps_every_version_in_order():
    shelves = SlowShelves()
    writer = ShelfWriter(shelves, name="near", skips=False)
    threading.Timer(0.2, shelves.gate.set).start()
    for version in range(1, 11):
        writer.put(shelved(version))  # waits for the disk once four are under way
    assert writer.flush(10)
    assert shelves.written == [("r", version) for version in range(1, 11)]


@pytest.mark.parametrize(
    ("operation", "is_over", "version"),
    [("one:3", True, 2), ("one:3", False, 3), ("other:3", True, 3), ("one:2", False, 2)],
    ids=["the next", "before the end of the first is written down", "another run's", "done again"],
)
def test_a_number_that_a_full_disk_keeps_goes_to_the_runs_next_operation(
    store, monkeypatch, operation, is_over, version
):
    publisher = Publisher(store)
    assert publisher.reserve("run", above=0, operation="one:1").version == 1
    in_vain = publisher.reserve("run", above=1, operation="one:2")

    def refused(*given):
        raise StorageFull("no room")

    monkeypatch.setattr(PolicyNumbers, "give_back", refused)
    publisher.give_back("run", in_vain)
    later = Publisher(store)
    later.is_over = lambda name: is_over or name == "one:1"
    assert later.reserve("run", above=1, operation=operation).version == version
    assert later.reserve("run", above=version, operation="one:4").version == version + 1
