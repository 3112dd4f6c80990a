"""What faults are aimed by: changed files are told, also in directories that are new, and waiting misses nothing."""

import sys

import pytest

from tests.chaos.events import Events, Seen, Tree

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="inotify")


@linux_only
def test_files_are_told_wherever_they_are(tmp_path):
    events = Events()
    Tree(tmp_path, events)
    with events.waiting() as waiting:
        (tmp_path / "new").mkdir()
        assert waiting.until(lambda seen: seen.what == "new", timeout_s=10)
        (tmp_path / "new" / "file").write_text("a")
        assert waiting.until(lambda seen: seen == Seen("file", "new/file"), timeout_s=10)


def test_waiting_counts_and_misses_nothing():
    events = Events()
    events.tell(Seen("client", "accepted"))  # nobody waited yet
    with events.waiting() as waiting:
        for what in ("accepted", "result", "accepted"):
            events.tell(Seen("client", what))
        assert waiting.until(lambda seen: seen.what == "accepted", times=2, timeout_s=10)
        assert not waiting.until(lambda seen: True, timeout_s=0)


def test_waiting_ends_where_it_is_in_vain():
    events = Events()
    with events.waiting() as waiting:
        events.tell(Seen("client", "over"))
        assert not waiting.until(lambda seen: seen.what == "accepted", timeout_s=600, unless=lambda: True)
