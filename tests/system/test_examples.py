"""The examples run as they are, in small, against `farstep up`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from farstep.cli.local_stack import LocalStack

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
EXAMPLES, README = ROOT / "examples", ROOT / "README.md"
IN_SMALL = {
    "sft.py": ["--steps", "6"],
    "rl_loop.py": ["--steps", "2", "--prompts", "8", "--samples", "4"],
    "async_rollouts.py": ["--rounds", "2", "--rollouts", "100"],
    "openai_client.py": ["--steps", "1"],
    "eval_hot_swap.py": ["--steps", "6", "--publish-every", "2"],
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with LocalStack(model="farstep/tiny", home=tmp_path_factory.mktemp("home")) as stack:
        yield stack


def test_all_examples_are_tried():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(IN_SMALL)


@pytest.mark.parametrize("name", sorted(IN_SMALL))
def test_example(stack, name):
    environment = {**os.environ, "FARSTEP_BASE_URL": stack.base_url, "FARSTEP_API_KEY": stack.api_key}
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, *IN_SMALL[name]], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_the_loop_of_the_readme(stack):
    """As it stands there, with fewer steps."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    loop = next(block for block in blocks if "for step in" in block).replace("range(30)", "range(3)")
    environment = {**os.environ, "FARSTEP_BASE_URL": stack.base_url, "FARSTEP_API_KEY": stack.api_key}
    result = subprocess.run([sys.executable, "-c", loop], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "policy v3" in result.stdout
    assert "bt://loops:" in result.stdout
