"""Many chats: concurrent, in order, gone on with after an interruption, failures listed."""

import asyncio
import json

import pytest

from farstep.trainers import DataError, TrainerError
from farstep.trainers.synthesis import ChatTask, run_chats, run_chats_async


def tasks(count):
    return [[{"role": "user", "content": f"say {index}"}] for index in range(count)]


def number_of(messages):
    return int(messages[-1]["content"].split()[1])


class Echo:
    """Answers in an order that is not that of the questions; fails where it is told to, so often."""

    def __init__(self, *, fails=None, dies_at=None):
        self.asked = []
        self.fails = dict(fails or {})
        self.dies_at = dies_at
        self.running = self.most = 0

    async def __call__(self, messages, seed=None):
        number = number_of(messages)
        self.asked.append(number)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(1 + (7 * number) % 5):
                await asyncio.sleep(0)
            if number == self.dies_at:
                raise KeyboardInterrupt
            if self.fails.get(number, 0) > 0:
                self.fails[number] -= 1
                raise ConnectionError(f"lost {number}")
            return f"answer {number}"
        finally:
            self.running -= 1


def test_answers_come_in_the_order_of_the_questions_and_no_more_run_than_wanted():
    chat = Echo()
    ended = []
    batch = run_chats(chat, tasks(50), max_running=7, on_outcome=lambda outcome: ended.append(outcome.index))
    assert batch.texts == [f"answer {index}" for index in range(50)]
    assert chat.most == 7
    assert ended != sorted(ended)
    assert sorted(ended) == list(range(50))


def test_failures_are_tried_again_then_listed_and_the_others_go_on():
    chat = Echo(fails={3: 2, 8: 99})
    batch = run_chats(chat, tasks(20), retry_delay_s=0.0)
    assert [outcome.index for outcome in batch.failures] == [8]
    assert (batch.failures[0].error, batch.failures[0].attempts) == ("ConnectionError: lost 8", 3)
    assert batch.texts[8] is None
    assert (batch.outcomes[3].text, batch.outcomes[3].attempts) == ("answer 3", 3)
    assert len(batch.outcomes) == 20


def test_an_interrupted_run_asks_only_what_is_missing(tmp_path):
    path = tmp_path / "new" / "chats.jsonl"

    ended = []

    async def interrupted(chat):
        enough = asyncio.Event()

        def count(outcome):
            ended.append(outcome.index)
            if len(ended) == 12:
                enough.set()

        options = {"path": path, "max_running": 3, "retry_delay_s": 0.0, "on_outcome": count}
        running = asyncio.create_task(run_chats_async(chat, tasks(30), **options))
        await enough.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(interrupted(Echo(fails={2: 99})))
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    answered = {line["text"] for line in kept if not line["error"]}
    assert 10 <= len(answered) < 30
    with path.open("a") as file:
        file.write('{"key": "half a li')  # of a process that was killed
    chat = Echo()
    batch = run_chats(chat, tasks(30), path=path)
    assert batch.texts == [f"answer {index}" for index in range(30)]
    assert batch.num_resumed == len(answered)
    assert {f"answer {number}" for number in chat.asked} == set(batch.texts) - answered
    assert 2 in chat.asked  # what had failed is asked again
    nobody = Echo()
    assert run_chats(nobody, tasks(30), path=path).texts == batch.texts
    assert nobody.asked == []
    more = Echo()
    assert run_chats(more, tasks(33), path=path).num_resumed == 30
    assert sorted(more.asked) == [30, 31, 32]


def test_a_file_of_other_chats_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "chats.jsonl"
    run_chats(Echo(), tasks(3), path=path)
    before = path.read_text()
    with pytest.raises(DataError, match="has another chat under '0'"):
        run_chats(Echo(), tasks(4)[1:], path=path)
    assert path.read_text() == before
    path.write_text(before.replace('"attempts"', '"tries"', 1))
    with pytest.raises(DataError, match="line 1 is none of ours"):
        run_chats(Echo(), tasks(3), path=path)


def test_one_file_is_written_by_one_run(tmp_path):
    path = tmp_path / "chats.jsonl"

    async def within(messages):
        with pytest.raises(TrainerError, match="another process writes"):
            await run_chats_async(Echo(), tasks(1), path=path)
        return "once"

    assert run_chats(within, tasks(1), path=path).texts == ["once"]


def test_an_answer_that_cannot_be_parsed_is_a_failure_and_its_text_is_kept():
    batch = run_chats(Echo(), tasks(3), parse=lambda text: 1 // (int(text[-1]) - 1), retry_delay_s=0.0)
    assert [outcome.value for outcome in batch.outcomes] == [-1, None, 1]
    assert (batch.failures[0].text, batch.failures[0].error.split(":")[0]) == ("answer 1", "ZeroDivisionError")


def test_tasks_have_names_and_seeds(tmp_path):
    seeds = []

    def chat(messages, seed):
        seeds.append(seed)
        if len(seeds) == 1:
            raise ConnectionError
        return f"{seed}"

    ask = [{"role": "user", "content": "x"}]
    batch = run_chats(chat, [ChatTask(ask, seed=64, key="a"), ChatTask(ask, seed=128, key="b")], max_running=1,
                      retry_delay_s=0.0, path=tmp_path / "chats.jsonl")  # fmt: skip
    assert batch.texts == ["65", "128"]  # another attempt has another seed
    with pytest.raises(DataError, match="two tasks have the key 'a'"):
        run_chats(chat, [ChatTask(ask, key="a"), ChatTask(ask, key="a")])
    for wrong, place in [([[]], r"tasks\[0\]"), ([ask, [{"content": "x"}]], r"tasks\[1\]")]:
        with pytest.raises(DataError, match=place):
            run_chats(chat, wrong)
    for name in ("max_running", "max_attempts"):
        with pytest.raises(DataError, match=name):
            run_chats(chat, [ask], **{name: 0})


def test_a_disk_that_is_full_ends_it_and_what_was_there_is_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "chats.jsonl"
    written = []

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 4:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(TrainerError, match=r"chats\.jsonl cannot be written: No space left on device"):
            run_chats(Echo(), tasks(20), path=path, max_running=3)
    assert len(written) == 5  # nothing is written after the trouble
    assert run_chats(Echo(), tasks(20), path=path).num_resumed >= 4
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match="cannot be written"):
        run_chats(Echo(), tasks(1), path=tmp_path / "file" / "chats.jsonl")
