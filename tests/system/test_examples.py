"""The examples run as they are, in small, against `farstep up`."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from farstep.cli.init import TEMPLATES
from farstep.cli.local_stack import LocalStack
from farstep.cli.main import main

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


# Of trainers: as `farstep train` runs them, in small; all in one process, since to start one takes a second.
TRAINERS = ["sft.py", "dpo.py", "own_loss.py", "grpo.py", "ppo.py", "tool_agent.py", "config.yaml"]
ALONE = {"evolve.py": ["--rounds", "1", "--epochs", "1"]}
RUN_EACH = """
import json, os, sys
from pathlib import Path
from farstep.cli.main import main
for folder, program in json.loads(sys.argv[1]):
    os.chdir(folder)
    print("===", program, main(["train", program, "--dry-run", "--set", "max_steps=1"]), flush=True)
"""


def in_small(stack, folder, programs):
    """Exit codes by program."""
    given = json.dumps([(str(at), str(program)) for at, program in programs])
    environment = {**os.environ, "FARSTEP_BASE_URL": stack.base_url, "FARSTEP_API_KEY": stack.api_key}
    argv = [sys.executable, "-c", RUN_EACH, given]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    codes = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("===")]
    assert codes == [0] * len(programs), done.stdout + done.stderr
    return done


def test_all_examples_of_trainers_are_tried():
    assert {path.name for path in (EXAMPLES / "trainers").iterdir() if path.is_file()} == {*TRAINERS, *ALONE}
    for path in (EXAMPLES / "trainers").glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path.name


def test_examples_of_trainers(stack, tmp_path):
    done = in_small(stack, tmp_path, [(tmp_path, EXAMPLES / "trainers" / name) for name in TRAINERS])
    assert done.stdout.count("completed after 1 step,") == len(TRAINERS)
    assert len(list(tmp_path.glob("farstep-runs/*-dry-run/report.html"))) == len(TRAINERS)


@pytest.mark.parametrize("name", sorted(ALONE))
def test_example_of_a_trainer_as_a_program(stack, name, tmp_path):
    environment = {**os.environ, "FARSTEP_BASE_URL": stack.base_url, "FARSTEP_API_KEY": stack.api_key}
    argv = [sys.executable, EXAMPLES / "trainers" / name, *ALONE[name]]
    result = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "best in round 1" in result.stdout


def test_templates_of_init_run_as_they_are(stack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for template in TEMPLATES:
        assert main(["init", template]) == 0
    programs = {name: "train.py" if (tmp_path / name / "train.py").exists() else "config.yaml" for name in TEMPLATES}
    in_small(stack, tmp_path, [(tmp_path / name, program) for name, program in programs.items()])


def test_ctrl_c_ends_a_run_after_its_step_with_a_checkpoint_and_it_goes_on(stack, tmp_path):
    config = {
        "name": "long", "model": "farstep/tiny", "epochs": 5000, "checkpoint": [{"type": "state", "auto_resume": True}],
        "data": {"sources": [{"rows": [{"prompt": "shout apple", "response": "APPLE"}]}]},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    environment = {**os.environ, "FARSTEP_BASE_URL": stack.base_url, "FARSTEP_API_KEY": stack.api_key}
    argv = [sys.executable, "-m", "farstep.cli.main", "train", "config.yaml", "--json"]
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as run:
        for line in run.stdout:
            if json.loads(line)["type"] == "log":
                break
        run.send_signal(signal.SIGINT)
        said, warned = run.communicate(timeout=120)
    events = [json.loads(line) for line in said.splitlines()]
    assert run.returncode == 130, warned
    assert [event["type"] for event in events][-2:] == ["checkpoint", "cancelled"]
    assert "Ctrl-C again ends at once" in warned
    argv += ["--set", "exit_iteration_this_run=1"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, events[0]["resumed"], events[-1]["type"]) == (0, True, "completed")


def test_the_loop_of_the_readme(stack):
    """As it stands there, with fewer steps."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    loop = next(block for block in blocks if "for step in" in block).replace("range(30)", "range(3)")
    environment = {**os.environ, "FARSTEP_BASE_URL": stack.base_url, "FARSTEP_API_KEY": stack.api_key}
    result = subprocess.run([sys.executable, "-c", loop], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "policy v3" in result.stdout
    assert "bt://loops:" in result.stdout


BLOCKS = {
    "../README.md": ["trainer.fit().loss"],
    "trainers.md": ["result.loss", "class Watch", "class Shy", "trainer.init()", "GRPOTrainer(config", "class Ranked"],
    "data.md": ["sets = load(", "class Wiki("],
    "rollouts.md": ["rollout_batch("],
}
SMALLER = {
    '"epochs": 20': '"epochs": 2',
    '"max_steps": 12': '"max_steps": 1',
    "8,\n        SamplingParams": "2,\n        SamplingParams",
}


def text_of(page):
    return (README.parent / "docs" / page).read_text()


def test_what_the_documentation_shows_runs_as_it_stands_there(stack, tmp_path):
    """Page by page, each block after the one before it, in small; data.md's files are those that it shows."""
    program = [
        "from farstep.trainers.config import load_config",
        "from farstep.trainers.preflight import local_tokenizer",
        "tokenizer = local_tokenizer(load_config({'model': 'farstep/tiny'}))",
    ]
    for page, wanted in BLOCKS.items():
        blocks = re.findall(r"```python\n(.*?)```", text_of(page), flags=re.DOTALL)
        chosen = [
            block for block in blocks if any(sign.replace("result.loss", "result.loss") in block for sign in wanted)
        ]
        assert len(chosen) == len(wanted), page
        program += chosen
    (tmp_path / "config.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text_of("data.md"), flags=re.DOTALL)[0])
    (tmp_path / "answers.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    source = "\n".join(program)
    for large, small in SMALLER.items():
        assert large in source, large
        source = source.replace(large, small)
    environment = {**os.environ, "FARSTEP_BASE_URL": stack.base_url, "FARSTEP_API_KEY": stack.api_key}
    argv = [sys.executable, "-W", "error", "-c", source]
    result = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "rows 1, used 1" in result.stdout
    assert (tmp_path / "farstep-runs" / "vowels" / "report.html").is_file()
