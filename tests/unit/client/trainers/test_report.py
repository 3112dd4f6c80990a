"""The report of a run: what it is made of, what it says, and that nothing in a run can become more than text."""

import json
import math
from html.parser import HTMLParser

import pytest

from farstep.trainers import TrainerError
from farstep.trainers.report import write_report
from farstep.trainers.report.charts import MAX_POINTS, chart, histogram, round_ticks, thinned, tick_label
from farstep.trainers.report.record import read_run
from farstep.trainers.report.sections import charts, facts, failure, funnel, headline, rewards, samples, token_rows

HOSTILE = "</pre><script src=https://evil.example/x.js>alert(1)</script>\"'&{{ 7 * 7 }}"
VOID = {"meta", "input", "line", "circle", "rect", "polyline"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and whether tags match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def event(seq, kind_, step=0, **data):
    return {"seq": seq, "type": kind_, "time": f"2026-01-31T12:00:{seq:02}.000Z", "run": "run-1", "step": step, **data}


def started(**data):
    report = {"rows": 100, "used": 90, "dropped_too_long": 10, "tokens": 1000}
    given = {"name": "first", "trainer": "sft", "base_model": "farstep/tiny", "total_steps": 4, "num_examples": 90}
    return event(1, "started", data=report, **{**given, "config": {"epochs": 2}, **data})


def logs(values, first=2):
    lost = [{"not_finite": ["loss"]} if value is None else {} for value in values]
    return [event(first + n, "log", n + 1, loss=value, learning_rate=1e-3, **lost[n]) for n, value in enumerate(values)]


def written(folder, events, batches=(), tail=""):
    folder.mkdir(exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events) + tail)
    (folder / "batches.jsonl").write_text("".join(json.dumps(each) + "\n" for each in batches) + tail)
    return folder


ROW = {
    "tokens": [5, 6, 7, 8], "text": ["<b>", "x", "y", HOSTILE], "num_tokens": 9, "reward": 0.5,
    "mask": [0, 0, 1, -1], "prompt_mask": [1, 1, 0, 0], "logprobs": [0, -9, -0.01, -3], "advantages": [0, 0, 1, -0.2],
    "kinds": ["user", "user", "assistant_text", "tool_call"],
}  # fmt: skip


def test_a_run_from_its_first_event_to_its_last(tmp_path):
    events = [started(), *logs([3.0, 2.0, 1.0, 0.5]), event(6, "eval", 4, **{"eval/loss": 0.7}, num_batches=1),
              event(7, "checkpoint", 4, kind="state", path="bt://loops:run-1/weights/step-000004"),
              event(8, "completed", 4, reason="max_steps (4) reached")]  # fmt: skip
    folder = written(tmp_path / "run", events, [{"step": 1, "num_rows": 1, "rewards": None, "rows": [ROW]}])
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text())
    for told in ("first", "completed", "3 → 0.5", "eval/loss", "step-000004", "epochs: 2", "4 of 4"):
        assert told in page.text, told
    assert "dropped too long 10" in page.text
    assert write_report(folder, tmp_path / "elsewhere.html").read_text() == path.read_text()
    assert not list(folder.glob("*~"))


def test_it_is_one_page_that_asks_nobody_for_anything_and_runs_nothing(tmp_path):
    """Whatever a run is called, samples or fails with."""
    events = [
        started(name=HOSTILE, trainer=HOSTILE, config={HOSTILE: HOSTILE}),
        event(2, "log", 1, loss=1.0, **{HOSTILE: 2.0}),
        event(3, "eval", 1, samples=[{"prompt": HOSTILE, "completion": HOSTILE, "answer": HOSTILE}]),
        event(4, "rollout", 1, samples=[{"prompt": HOSTILE, "completion": HOSTILE, "reward": 1.0}],
              funnel={"asked": 1}, dropped={HOSTILE: 1}),
        event(5, "checkpoint", 1, kind=HOSTILE, path=HOSTILE),
        event(6, "failed", 1, error=HOSTILE, error_class=HOSTILE, reason=HOSTILE),
    ]  # fmt: skip
    page = Page(write_report(written(tmp_path / "run", events, [{"step": 1, "rows": [ROW]}])).read_text())
    assert page.text.count(HOSTILE) >= 10
    assert "49" not in page.text.replace("149", "")  # no template of a run's own was filled in
    assert not {"script", "link", "img", "iframe", "object", "base", "a", "b/"} & set(page.tags)
    names = {name for _, name, _ in page.attributes}
    assert not {"src", "href", "xlink:href", "srcset", "action", "onload", "onclick"} & names
    assert [value for _, name, value in page.attributes if name == "http-equiv"] == ["Content-Security-Policy"]
    raw = (tmp_path / "run" / "report.html").read_text()
    assert "url(" not in raw
    assert "@import" not in raw


def test_a_failure_says_what_to_do_and_where_to_go_on(tmp_path):
    saved = event(5, "checkpoint", 2, kind="state", path="bt://there")
    end = event(6, "failed", 3, error="CUDA ran out", error_class="RemoteOpError OutOfMemory", reason="")
    folder = written(tmp_path / "run", [started(), *logs([3.0, 2.0, 1.0]), saved, end])
    found = failure(read_run(folder))
    assert (found.step, found.checkpoint) == (3, "step 2: bt://there")
    assert "mini_bs" in found.remedy
    text = Page(write_report(folder).read_text()).text
    assert "Failed after step 3" in text
    assert "CUDA ran out" in text
    lost = written(
        tmp_path / "lost", [started(), *logs([3.0, None]), event(6, "failed", 2, error="x", error_class="E")]
    )
    assert "optimizer.lr" in failure(read_run(lost)).remedy
    assert "Nothing was saved" in write_report(lost).read_text()


def test_of_a_run_that_goes_on_or_was_killed_it_says_what_there_is(tmp_path):
    folder = written(tmp_path / "run", [started(), *logs([3.0, 2.0])], tail='{"seq": 9, "type": "lo')
    assert read_run(folder).state == "unfinished"
    assert "unfinished" in write_report(folder).read_text()


def test_a_step_that_was_made_again_counts_once_and_resumptions_are_told(tmp_path):
    events = [started(), *logs([3.0, 2.5, 2.0]), started(resumed=True), event(6, "log", 3, loss=1.9)]
    run = read_run(written(tmp_path / "run", events))
    assert run.series()["loss"] == [(1, 3.0), (2, 2.5), (3, 1.9)]
    assert facts(run)["Gone on with"] == "once"


def test_time_between_an_end_and_going_on_is_not_counted(tmp_path):
    events = [started(), event(5, "log", 1, loss=1.0), {**started(), "seq": 20, "time": "2026-01-31T13:00:00.000Z"},
              {**event(21, "log", 2, loss=0.5), "time": "2026-01-31T13:00:02.500Z"}]  # fmt: skip
    told = facts(read_run(written(tmp_path / "run", events)))
    assert (told["Began"], told["Took"]) == ("2026-01-31 12:00:01 UTC", "6.5 s")


def test_where_there_is_no_run_it_says_so(tmp_path):
    with pytest.raises(TrainerError, match="has no run"):
        write_report(tmp_path)
    with pytest.raises(TrainerError, match="no run that began"):
        write_report(written(tmp_path / "run", [event(1, "log", 1, loss=1.0)]))


def test_the_funnel_is_of_samples_where_there_are_some(tmp_path):
    stages = {"asked": 10, "sampled": 9, "parsed": 8, "scored": 8, "trained": 4}
    events = [started(), *(event(n, "rollout", n, funnel=stages, dropped={"too_long": 2}) for n in (2, 3))]
    found = funnel(read_run(written(tmp_path / "run", events)))
    assert [(each.name, each.count, each.share) for each in found] == [
        ("asked", "20", 100.0), ("sampled", "18", 90.0), ("parsed", "16", 80.0), ("scored", "16", 80.0),
        ("trained", "8", 40.0),
    ]  # fmt: skip
    assert "dropped as too long 4" in Page(write_report(tmp_path / "run").read_text()).text
    rows = funnel(read_run(written(tmp_path / "rows", [started()])))
    assert [(each.name, each.count) for each in rows] == [("rows read", "100"), ("rows used", "90"), ("examples", "90")]


def test_tokens_are_coloured_by_mask_logprob_and_advantage(tmp_path):
    batches = [{"step": step, "rows": [ROW]} for step in (1, 2, 4)]
    first, last = token_rows(read_run(written(tmp_path / "run", [started()], batches)))
    assert (first.title, last.title) == ("Step 1, row 1, reward 0.5", "Step 4, row 1, reward 0.5")
    assert [token.mask for token in first.tokens] == ["prompt", "prompt", "trained", "trained"]  # −1 twice
    assert [token.logprob for token in first.tokens] == [0, 0, 1, 4]
    assert [token.advantage for token in first.tokens] == ["", "", "p3", "n1"]
    assert first.tokens[2].title == "token 2: id 7, assistant text, weight 1, logprob -0.01, advantage 1"
    assert first.left_out == 5


def test_rewards_of_the_first_the_middle_and_the_last_batch_on_one_scale(tmp_path):
    batches = [{"step": 2**n, "rewards": [0.0] * (4 - n) + [1.0] * n, "rows": []} for n in range(5)]
    found = rewards(read_run(written(tmp_path / "run", [started()], batches)))
    assert [each.title for each in found] == ["Step 1: 4 samples", "Step 4: 4 samples", "Step 16: 4 samples"]
    assert [len(each.bars) for each in found] == [1, 2, 1]
    assert {tuple(tick.label for tick in each.x_ticks) for each in found} == {("0", "0.5", "1")}
    assert found[0].bars[0].x < found[2].bars[0].x


def test_a_line_has_gaps_where_numbers_were_none():
    (line,) = chart("Loss", {"loss": [(1, 3.0), (2, 2.0), (3, None), (4, 1.0), (5, 0.5), (6, None), (7, 2.0)]}).lines
    assert [len(path.split()) for path in line.paths] == [2, 2]
    assert len(line.dots) == 1
    assert (line.first, line.last, line.lowest, line.highest) == ("3", "2", "0.5", "3")
    assert chart("Loss", {"loss": [(1, None)]}) is None


def test_higher_is_higher_and_later_is_further():
    (line,) = chart("Loss", {"loss": [(1, 3.0), (9, 1.0)]}).lines
    (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in line.paths[0].split())
    assert x1 < x2
    assert y1 < y2  # downwards
    flat = chart("Rate", {"rate": [(1, 0.0), (2, 0.0)]})
    assert flat.lines[0].paths
    assert len(chart("One", {"one": [(5, 1.0)]}).lines[0].dots) == 1


def test_a_long_run_keeps_its_peaks():
    points = [(step, math.sin(step)) for step in range(50_000)]
    points[31_234] = (31_234, 99.0)
    kept = thinned(points)
    assert len(kept) <= 1.5 * MAX_POINTS
    assert (31_234, 99.0) in kept
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)


def test_what_one_looks_at_first_comes_first(tmp_path):
    events = [started(), event(2, "log", 1, loss=1.0, zeta=1.0, grad_norm=2.0, **{"rollout/reward_mean": 0.1}),
              event(3, "eval", 1, **{"eval/loss": 1.5})]  # fmt: skip
    first, rest = charts(read_run(written(tmp_path / "run", events)))
    assert [each.title for each in first] == ["Reward", "Loss", "Gradient norm"]
    assert [line.name for line in first[1].lines] == ["loss", "eval/loss"]
    assert [each.title for each in rest] == ["zeta"]


def test_a_histogram_counts_every_value():
    found = histogram("x", [0.0, 0.5, 1.0, 1.0], low=0.0, high=1.0, bins=2)
    assert [bar.label for bar in found.bars] == ["0 to 0.5: 1", "0.5 to 1: 3"]
    assert histogram("x", [2.0], low=2.0, high=2.0).bars
    assert histogram("x", [], low=0.0, high=1.0) is None


def test_ticks_are_round_numbers_within_the_picture():
    assert round_ticks(0.0652, 7.4) == [0.0 + 2 * n for n in range(1, 4)]
    assert round_ticks(-0.6886, 0.0) == [-0.6, -0.4, -0.2, 0.0]
    assert round_ticks(1.9e-5, 4e-3) == [0.001, 0.002, 0.003, 0.004]
    assert round_ticks(3.0, 3.0) == [3.0]
    picture = chart("Steps", {"x": [(1, 1.0), (40, 2.0)]})
    assert [tick.label for tick in picture.x_ticks] == ["1", "10", "20", "30", "40"]
    assert all(0 <= tick.at <= 460 for tick in [*picture.x_ticks, *picture.y_ticks])
    assert [tick.label for tick in chart("Flat", {"x": [(1, 0.004), (2, 0.004)]}).y_ticks] == ["0.004"]
    assert [tick.label for tick in chart("One", {"x": [(7, 1.0)]}).x_ticks] == ["7"]


@pytest.mark.parametrize("value", [0.0, 5e-7, 1.2e-5, 0.25, 9_999.0, 20_000.0, 1.5e6, -2.5e11, 1e14, 1e300])
def test_a_label_of_an_axis_is_short_enough_for_its_margin(value):
    assert len(tick_label(value)) <= 8
    assert len(tick_label(-value)) <= 8


def test_what_one_wants_to_know_first_is_in_large_type(tmp_path):
    events = [started(), event(2, "log", 1, loss=2.0, **{"rollout/reward_mean": 0.25}),
              event(3, "log", 2, loss=1.0, **{"rollout/reward_mean": 0.75}),
              event(4, "eval", 2, **{"eval/loss": 1.5})]  # fmt: skip
    found = headline(read_run(written(tmp_path / "run", events)))
    assert [(each.name, each.last, each.told) for each in found] == [
        ("Reward", "0.75", "from 0.25 at step 1"), ("Loss", "1", "from 2 at step 1"),
        ("Loss, evaluation", "1.5", "at step 2"),
    ]  # fmt: skip


def test_rejected_rows_and_negative_advantages_are_trained_away_from(tmp_path):
    plain = {**ROW, "mask": [0, 0, 1, 1], "advantages": None}
    rows = [{**plain, "name": "chosen", "row": 4}, {**plain, "name": "rejected", "row": 5},
            {**plain, "advantages": [0, 0, 1, -1]}]  # fmt: skip
    run = read_run(written(tmp_path / "run", [started()], [{"step": 1, "rows": rows}]))
    chosen, rejected, sampled = token_rows(run)
    assert (chosen.title, rejected.title) == (
        "Step 1, row 5, chosen, reward 0.5", "Step 1, row 6, rejected, reward 0.5",
    )  # fmt: skip
    assert [[token.mask for token in row.tokens[2:]] for row in (chosen, rejected, sampled)] == [
        ["trained", "trained"], ["negative", "negative"], ["trained", "negative"],
    ]  # fmt: skip


@pytest.mark.parametrize("advantages", [[0, 0, 1, -0.2], None])
def test_colours_by_advantage_are_offered_where_there_are_any(tmp_path, advantages):
    folder = written(tmp_path / "run", [started()], [{"step": 1, "rows": [{**ROW, "advantages": advantages}]}])
    page = Page(write_report(folder).read_text())
    assert ({"by-advantage"} <= {value for _, name, value in page.attributes if name == "id"}) is bool(advantages)
    checked = [attributes for attributes in page.attributes if attributes[1] == "checked"]
    assert len(checked) == 1


def test_samples_say_after_how_many_steps_they_were_taken(tmp_path):
    events = [started(), *(event(2 + n, "rollout", n, samples=[{"prompt": "a", "completion": ""}]) for n in (0, 1))]
    run = read_run(written(tmp_path / "run", events))
    assert [title for title, _ in samples(run)] == ["Rollout after 0 steps", "Rollout after 1 step"]
    assert "(nothing)" in Page(write_report(run.folder).read_text()).text
