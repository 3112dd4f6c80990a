"""The leash: nothing of a tree of processes outlives its root, whatever each of them is doing then."""

import os
import subprocess
import sys

import psutil
import pytest

from farstep_serving.leash import leashed

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only the kernel of Linux holds leashes")

# Starts itself as often as it is told, each on a leash and in a session of its own, and says who they are.
LINK = """
import subprocess, sys, time
from farstep_serving.leash import leashed
left = int(sys.argv[2])
print(__import__("os").getpid(), flush=True)
if left:
    subprocess.Popen(leashed([sys.executable, "-c", sys.argv[1], sys.argv[1], str(left - 1)]), start_new_session=True)
time.sleep(600)
"""


def chain(length):
    """The root as Popen, and those below it."""
    argv = [sys.executable, "-c", LINK, LINK, str(length - 1)]
    root = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    pids = [int(root.stdout.readline()) for _ in range(length)]
    assert pids[0] == root.pid
    return root, [psutil.Process(pid) for pid in pids[1:]]


@pytest.mark.parametrize("are_stopped", [False, True])
def test_kill_minus_nine_of_the_root_leaves_none(are_stopped):
    root, others = chain(3)
    if are_stopped:
        for process in others:
            process.suspend()
    with root:
        root.kill()
    assert psutil.wait_procs(others, timeout=20)[1] == []


def test_the_program_is_what_was_asked_for():
    said = subprocess.run(leashed(["printf", "%s-%s", "a b", "-c"]), capture_output=True, text=True, check=True)
    assert said.stdout == "a b--c"
    missing = subprocess.run(leashed(["/nowhere/at/all"]), capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "/nowhere/at/all" in missing.stderr


def test_one_whose_parent_is_gone_before_the_leash_is_on_ends_at_once():
    argv = leashed([sys.executable, "-c", "print('it ran')"])
    argv[argv.index(str(os.getpid()))] = "1"  # as if another had been the parent
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
