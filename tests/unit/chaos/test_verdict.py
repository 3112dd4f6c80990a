"""The judge of the chaos suite: a run like its reference passes, and each kind of harm is seen as what it is."""

import copy
import json

import pytest

from tests.chaos import diary, verdict
from tests.chaos.diary import Diary, Known
from tests.chaos.programs import ForwardBackward, Program, Publish, Save, Step

CALLS = (
    ForwardBackward(1, 1, "cross_entropy"),
    Step(1e-3),
    Publish("", "exact", 3, num_samples=1, max_tokens=2),
    Save("final"),
)
PROGRAM = Program(0, 4, 0.0, 4, CALLS)


def known_of(run_id):
    known = Known(run_id=run_id, intended=3, end={})
    known.seqs = {index: [index + 1] for index in range(4)}
    known.results = {
        0: {"sum": "0x1p0", "logprobs": "aa"},
        1: {"step": 1.0, "grad_norm": "0x1p1"},
        2: {"path": "", "version": 1},
        3: {"path": f"bt://loops:{run_id}/weights/final", "version": None},
    }
    known.samplers = {2: "00"}
    known.samples = {(2, 0): {"version": 1, "tokens": [[5, 6]], "logprobs": "bb"}}
    return known


@pytest.fixture
def store(tmp_path):
    for run_id in ("good", "run"):
        keep(tmp_path, run_id, sha256="cc")
    return tmp_path


def keep(store, run_id, *, sha256):
    folder = store / run_id / "weights" / "final"
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"step": 1, "draws": 1, "history": run_id, "operation": f"{run_id}:4"}
    manifest = {"created_at": len(run_id), "files": {"adapter": {"sha256": sha256}}, "meta": meta}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def good(store):
    return verdict.reference(PROGRAM, known_of("good"), store)


def harms(known, good, store):
    return [finding.harm for finding in verdict.judge(PROGRAM, known, good, store)]


def test_a_run_like_its_reference_passes(good, store):
    assert harms(known_of("run"), good, store) == []


@pytest.mark.parametrize(
    ("change", "harm"),
    [
        (lambda known: known.results[0].update(sum="0x1.0000000000001p0"), "bit_different"),
        (lambda known: known.samples[2, 0].update(tokens=[[5, 7]]), "bit_different"),
        (lambda known: known.results.pop(1), "lost"),
        (lambda known: known.seqs.pop(1), "lost"),
        (lambda known: known.samples.clear(), "lost"),
        (lambda known: known.seqs[1].append(9), "doubled"),
        (lambda known: known.seqs.update({1: [1]}), "doubled"),
        (lambda known: known.results[2].update(version=2), "doubled"),
        (lambda known: setattr(known, "end", None), "hung"),
        (lambda known: known.errors.append("UnknownRequestError"), "error"),
    ],
)
def test_each_harm_is_seen(good, store, change, harm):
    known = copy.deepcopy(known_of("run"))
    change(known)
    assert harm in harms(known, good, store)


def test_another_byte_in_a_checkpoint_is_seen(good, store):
    keep(store, "run", sha256="dd")
    assert harms(known_of("run"), good, store) == ["bit_different"]


def test_samples_of_a_client_that_died_with_its_process_are_not_missed(good, store):
    known = known_of("run")
    known.samplers, known.samples = {}, {}
    assert harms(known, good, store) == []


def test_a_dropped_pass_may_have_been_done(good, store):
    known = known_of("run")
    known.results[0] = {"cancelled": True}
    assert harms(known, good, store) == []


def test_a_reference_that_failed_is_none(store):
    known = known_of("good")
    known.errors.append("TransportError")
    with pytest.raises(AssertionError):
        verdict.reference(PROGRAM, known, store)


def test_a_diary_outlives_a_killed_writer(tmp_path, capsysbinary):
    path = tmp_path / "diary"
    pages = Diary(path)
    pages.write("run", run_id="run-1")
    pages.write("intent", index=0)
    with open(path, "ab") as file:
        file.write(b'{"what": "accepted", "ind')  # killed here
    Diary(path).write("accepted", index=0, seq=7)
    known = diary.read(path)
    assert (known.run_id, known.intended, known.seqs, known.last_seq) == ("run-1", 0, {0: [7]}, 7)
    assert b'"seq": 7' in capsysbinary.readouterr().out
