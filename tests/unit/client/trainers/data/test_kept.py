"""Blobs that are kept: sent once, asked for again, and never believed unasked."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from farstep.trainers import SFTTrainer, TrainerError
from farstep.trainers.config import BlobConfig
from farstep.trainers.data.sources.base import Source
from farstep.trainers.data.sources.download import Rules
from farstep.trainers.data.sources.kept import FORGOTTEN_AFTER_S, default_folder, fetched
from farstep.trainers.errors import DataError
from farstep.trainers.preflight import preflight

OPEN = Rules(allow_http=True, allow_private=True)


class Handler(BaseHTTPRequestHandler):
    body = b'{"prompt": "a", "response": "one"}\n'
    validator: tuple[str, str] | None = ("ETag", '"v1"')
    token = ""
    looks_at_headers = True
    sent: list[int]

    def do_GET(self) -> None:
        asked = self.headers["If-None-Match"] or self.headers["If-Modified-Since"]
        status = 200
        if self.token and self.headers["Authorization"] != f"Bearer {self.token}":
            status = 401
        elif self.looks_at_headers and self.validator is not None and asked == self.validator[1]:
            status = 304
        self.sent.append(status)
        self.send_response(status)
        if self.validator is not None:
            self.send_header(*self.validator)
        self.send_header("Content-Type", "application/x-ndjson")
        if status != 304:
            self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if status != 304:
            self.wfile.write(self.body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kind: Any = type("Own", (Handler,), {"sent": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    kind.url = f"http://127.0.0.1:{http.server_address[1]}/rows"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield kind
    http.shutdown()
    http.server_close()
    thread.join()


def source(handler: Any, **settings: Any) -> Source:
    return Source.get("blob")(BlobConfig(url=handler.url, allow_http=True, allow_private=True, **settings))


def answers(handler: Any, **settings: Any) -> list[str]:
    return [row["response"] for row in source(handler, **settings).rows()]


@pytest.mark.parametrize("validator", [("ETag", '"v1"'), ("Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT")])
def test_what_has_not_changed_is_not_sent_again(handler: Any, validator: tuple[str, str]) -> None:
    handler.validator = validator
    assert [answers(handler) for _ in range(3)] == [["one"]] * 3
    assert handler.sent == [200, 304, 304]


def test_what_has_changed_is(handler: Any) -> None:
    answers(handler)
    handler.body, handler.validator = b'{"prompt": "a", "response": "two"}\n', ("ETag", '"v2"')
    assert [answers(handler) for _ in range(2)] == [["two"]] * 2
    assert handler.sent == [200, 200, 304]


def test_a_server_that_does_not_look_at_headers_is_understood(handler: Any) -> None:
    handler.looks_at_headers = False
    with fetched(handler.url, token=None, rules=OPEN) as found:
        assert not found.was_kept
    with fetched(handler.url, token=None, rules=OPEN) as found:
        assert found.was_kept
        assert found.path.read_bytes() == handler.body


def test_without_a_validator_nothing_is_kept(handler: Any) -> None:
    handler.validator = None
    assert [answers(handler) for _ in range(2)] == [["one"]] * 2
    assert handler.sent == [200, 200]
    assert [path.name for path in default_folder().glob("*/*")] == ["lock"]


def test_what_is_kept_is_for_those_who_may_have_it(handler: Any) -> None:
    """Nobody reads with the help of another's token."""
    handler.token = "s3cret"
    assert answers(handler, token="s3cret") == ["one"]
    with pytest.raises(DataError, match="HTTP 401"):
        answers(handler)
    with pytest.raises(DataError, match="HTTP 401"):
        answers(handler, token="wr0ng")
    assert answers(handler, token="s3cret") == ["one"]
    assert handler.sent == [200, 401, 401, 304]
    (content,) = default_folder().glob("*/content")
    assert (content.stat().st_mode & 0o777, default_folder().stat().st_mode & 0o777) == (0o600, 0o700)
    assert not any(b"s3cret" in path.read_bytes() for path in default_folder().rglob("*") if path.is_file())


def test_what_is_no_longer_whole_is_fetched_anew(handler: Any) -> None:
    answers(handler)
    (content,) = default_folder().glob("*/content")
    content.write_bytes(b'{"prom')
    assert answers(handler) == ["one"]
    (about,) = default_folder().glob("*/about.json")
    about.write_text("no json")
    assert answers(handler) == ["one"]
    assert handler.sent == [200, 200, 200]


def test_limits_hold_for_what_is_kept_too(handler: Any) -> None:
    answers(handler)
    with pytest.raises(DataError, match="more than max_bytes"):
        answers(handler, max_bytes=5)


def test_a_folder_that_cannot_be_written_is_done_without(
    handler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [answers(handler) for _ in range(2)] == [["one"]] * 2
    assert handler.sent == [200, 200]


def test_what_nobody_asked_for_in_a_long_time_is_forgotten(handler: Any) -> None:
    answers(handler)
    (about,) = default_folder().glob("*/about.json")
    long_ago = time.time() - FORGOTTEN_AFTER_S - 60
    os.utime(about, (long_ago, long_ago))
    handler.url += "2"
    answers(handler)
    assert len(list(default_folder().glob("*/content"))) == 1


def test_two_at_once_both_get_it(handler: Any) -> None:
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(answers(handler))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["one"]] * 6
    assert sorted(handler.sent) == [200] + [304] * 5


def test_a_check_and_the_run_after_it_ask_once(handler: Any, tmp_path: Path) -> None:
    """What was checked is what is trained on."""

    class Unreachable(SFTTrainer):
        def create_client(self, resume_from: Any = None) -> Any:
            raise ConnectionError

    blob = {"url": handler.url, "allow_http": True, "allow_private": True}
    config = {"model": "farstep/tiny", "dataset": blob, "output_dir": str(tmp_path)}
    client: Any = object()
    trainer = Unreachable(config, client=client)
    assert not any(finding.is_bad for finding in preflight(trainer, with_tokens=False))
    with pytest.raises(TrainerError, match="could not begin: ConnectionError"):
        trainer.fit()
    assert handler.sent == [200]
