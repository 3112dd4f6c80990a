"""The `tinker` command, each call in a process of its own, forked from one that has imported the SDK once."""

import contextlib
import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_PRELOADED = ["tinker", "tinker.cli.__main__", "tinker.cli.commands.checkpoint", "tinker.cli.commands.run"]
_WITHIN_S = 120


@dataclass
class Told:
    """What a command left: its exit code and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Command:
    """`tinker` as somebody with that server and key, and a home of their own, calls it."""

    url: str
    key: str
    home: Path

    def __call__(self, *arguments, cwd=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder, name)) for name in ("stdout", "stderr")]
            environment = {"TINKER_BASE_URL": self.url, "TINKER_API_KEY": self.key, "HOME": str(self.home)}
            called = context.Process(target=_call, args=(arguments, environment, files, str(cwd or self.home)))
            called.start()
            called.join(_WITHIN_S)
            if called.is_alive():
                called.kill()
                called.join()
            return Told(called.exitcode, *(Path(file).read_text() for file in files))


def _call(arguments, environment, files, cwd):
    os.chdir(cwd)
    for name in [name for name in os.environ if name.startswith(("FARSTEP_", "TINKER_"))]:
        del os.environ[name]
    os.environ.update(environment, TINKER_TELEMETRY="0", COLUMNS="250")
    for stream, file in zip((sys.stdout, sys.stderr), files, strict=True):
        stream.flush()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, stream.fileno())
    from tinker.cli.__main__ import main

    sys.argv = ["tinker", *arguments]
    code = 0
    try:
        with contextlib.suppress(BrokenPipeError):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the SDK's threads are not waited for, as in a process that ends
