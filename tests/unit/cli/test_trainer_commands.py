"""The commands about trainers, as far as they go without a server: what they check, write, refuse and say."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from farstep.cli import env as env_command
from farstep.cli import init as init_command
from farstep.cli.command import Refused
from farstep.cli.main import main
from farstep.cli.program import Program, parsed_changes
from farstep.trainers import ConfigError, SFTTrainer, Trainer
from farstep.trainers.config import load_config
from farstep.trainers.preflight import local_tokenizer


@pytest.fixture(autouse=True)
def no_server(monkeypatch, tmp_path):
    """Nothing answers, and is not waited for; everything is written into a folder of the test's own."""
    monkeypatch.setenv("FARSTEP_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("farstep.cli.server.PATIENCE_S", 0.05)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def written(name, text):
    path = Path(name)
    path.write_text(text)
    return path


CONFIG = """
name: small
model: farstep/tiny
data: {sources: [{path: rows.jsonl}]}
"""


def config(text=CONFIG, rows=({"prompt": "a", "response": "b"},)):
    written("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return str(written("config.yaml", text))


# check


def test_check_says_what_there_is_and_that_a_server_is_not_needed_yet(capsys):
    assert main(["check", config(), "--json"]) == 0
    found = {each["what"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["data"] == {"what": "data", "verdict": "ok", "detail": "1 rows"}
    assert found["tokens"]["detail"].startswith("rows 1, used 1, sequences 1, tokens ")
    assert found["server"]["verdict"] == "skipped"
    assert {each["verdict"] for each in found.values()} == {"ok", "skipped"}


@pytest.mark.parametrize(
    ("text", "rows", "what", "message"),
    [
        ("model: farstep/tiny\nlearningRate: fast", (), "configuration", "learningRate (= optimizer.lr): 'fast' is no"),
        ("name: x", (), "configuration", "model: missing"),
        (CONFIG, ({"prompt": "a", "response": "b"}, {"question": "a"}), "data", "row 1 of source 0: no known form"),
        ("model: farstep/tiny", (), "trainer", "nothing to train on"),
        ("model: farstep/tiny\ndataset: gone.jsonl", (), "data", "gone.jsonl"),
        (CONFIG + "type: grpo\nrl: {reward: 'nowhere_at_all:f'}", (), "trainer", "nowhere_at_all cannot be imported"),
        (CONFIG + "type: grpo\nrl: {reward: 'json:gone'}", (), "trainer", "json has no gone"),
        (CONFIG + "type: grpo", (), "trainer", "reward"),
        (CONFIG + "type: grpo\nrl: {reward: 'json:loads', agent: 'json:gone'}", (), "trainer", "json has no gone"),
        (CONFIG + "type: sftt", (), "configuration", "did you mean 'sft'"),
        (CONFIG + "code: gone.py", (), "configuration", "no Python file"),
    ],
)
def test_check_finds_what_is_wrong_before_a_gpu_is_paid_for(text, rows, what, message, capsys):
    assert main(["check", config(text, rows or ({"prompt": "a", "response": "b"},)), "--no-tokens", "--json"]) == 1
    found = {each["what"]: each for each in json.loads(capsys.readouterr().out)}
    assert found[what]["verdict"] == "wrong"
    assert message in found[what]["detail"]


def test_train_refuses_all_of_it_without_a_word_to_a_server(capsys):
    rows = ({"prompt": "a", "response": "b"}, {"question": "a"})
    assert main(["train", config(rows=rows)]) == 1
    said = capsys.readouterr().err
    assert "row 1 of source 0" in said
    assert said.endswith("nothing was started\n")
    assert not Path("farstep-runs").exists()


def test_a_package_that_is_missing_is_named_with_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr("farstep.trainers.preflight.find_spec", lambda name: None)
    text = CONFIG.replace("{path: rows.jsonl}", "{name: org/name}")
    main(["check", config(text), "--no-tokens", "--json"])
    found = {each["what"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["package datasets"]["verdict"] == "missing"
    assert "pip install 'farstep[data]'" in found["package datasets"]["detail"]


def test_the_resolved_configuration_is_one_that_gives_itself(capsys):
    assert main(["check", config(), "--resolved", "--set", "optimizer.lr=1e-3"]) == 0
    resolved = capsys.readouterr().out
    assert load_config(resolved).optimizer.lr == 1e-3
    assert load_config(resolved).resolved() == resolved


# --set


def test_settings_of_the_command_line_win():
    changes = parsed_changes(["optimizer.lr=1e-4", "optimizer.betas=[0.9, 0.99]", "name=x", "epochs=1k", "trackers="])
    assert changes == {
        "optimizer": {"lr": "1e-4", "betas": [0.9, 0.99]}, "name": "x", "epochs": "1k", "trackers": "",
    }  # fmt: skip
    found = Program(Path(config()), parsed_changes(["optimizer.lr=1e-4", "epochs=1k"])).trainer().config
    assert (found.optimizer.lr, found.epochs) == (1e-4, 1000)
    found = Program(Path(config("name: x\ndataset: rows.jsonl")), {"model": "m", "type": "dpo"}).trainer()
    assert (found.config.model.base, found.name) == ("m", "dpo")


@pytest.mark.parametrize("given", ["epochs", "=1", "a b=1", "optimizer..lr=1", "epochs=[1"])
def test_a_setting_that_is_none_is_refused(given):
    with pytest.raises(Refused, match="--set"):
        parsed_changes([given])


def test_the_same_setting_twice_is_refused():
    with pytest.raises(Refused, match="given twice"):
        parsed_changes(["epochs=1", "epochs=2"])
    with pytest.raises(Refused, match="a value of its own"):
        parsed_changes(["optimizer=1", "optimizer.lr=2"])


def test_an_unknown_setting_names_itself():
    with pytest.raises(ConfigError, match=r"optimizer\.lrr: unknown setting"):
        Program(Path(config()), parsed_changes(["optimizer.lrr=1"])).trainer()


# Python files

HEAD = "from farstep.trainers import SFTTrainer\nconfig = {'name': 'own', 'model': 'm'}\nrows = [{'text': 'a'}]\n"


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("trainer = SFTTrainer(config, train_data=rows)", [{"text": "a"}]),
        ("def trainer(): return SFTTrainer(config, train_data=rows)", [{"text": "a"}]),
        ("class Base(SFTTrainer): pass\nclass Own(Base): pass\ntrain_data = rows", [{"text": "a"}]),
    ],
)
def test_a_python_file_defines_a_trainer(text, data):
    trainer = Program(written("own.py", HEAD + text), {"epochs": 3}).trainer()
    assert isinstance(trainer, SFTTrainer)
    assert (trainer.given_rows, trainer.config.epochs, trainer.config.name) == (data, 3, "own")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "define one class of trainer; it has none"),
        ("trainer = 1", "`trainer` is a int, not a Trainer"),
        ("class A(SFTTrainer): pass\nclass B(SFTTrainer): pass", "one class of trainer; it has A, B"),
        ("del config\nclass A(SFTTrainer): pass", "A needs a configuration"),
        ("def trainer(): return 3", "gave a int"),
    ],
)
def test_a_python_file_without_one_is_refused(text, message):
    with pytest.raises(Refused, match=message):
        Program(written("own.py", HEAD + text), {}).trainer()


def test_a_python_file_that_breaks_says_how(capsys):
    written("own.py", "1 / 0")
    assert main(["train", "own.py"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert main(["train", "gone.yaml"]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main(["train", "notes.txt"]) == 1


def test_trainers_and_sources_of_ones_own_are_found_by_configuration_and_help():
    """T1, R21: from a file that `code` names, beside the configuration wherever that is run from."""
    Path("there").mkdir()
    written(
        "there/own.py",
        "from farstep.trainers import SFTTrainer\nfrom farstep.trainers.config import SourceConfig\n"
        "from farstep.trainers.data import Source\n"
        "class Loud(SFTTrainer):\n    name = 'loud'\n    config_defaults = {'epochs': 7}\n"
        "class Moon(Source):\n    name = 'moon'\n    config_class = SourceConfig\n"
        "    def rows(self): return [{'text': 'a'}]\n    def fingerprint(self): return '1'\n",
    )
    written("there/config.yaml", "type: loud\ncode: own.py\nmodel: farstep/tiny\ndata: {sources: [{type: moon}]}\n")
    code = (
        "import sys; from farstep.cli.main import main\n"
        "print(main(['check', 'there/config.yaml', '--no-tokens', '--json']))\n"
        "main(['check', 'there/config.yaml', '--resolved'])\n"
        "main(['train', 'there/config.yaml', '--help'])"
    )
    environment = {**os.environ, "COLUMNS": "1000"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "loud, farstep/tiny" in done.stdout
    assert '"detail": "1 rows"' in done.stdout
    assert "epochs: 7\n" in done.stdout
    told = done.stdout.splitlines()[-1]
    assert "trainers (type): causal, dpo" in told
    assert "loud" in told.split(";")[0]
    assert "moon" in told.split(";")[1]


# process-data


def test_process_data_needs_a_tokenizer_alone_and_finds_its_cache_again(capsys):
    path = config(
        CONFIG + "eval_interval: 5\n".replace("eval_interval: 5\n", ""), [{"prompt": "a", "response": "b"}] * 5
    )
    arguments = ["process-data", path, "--cache-dir", "cache", "--max-length", "64", "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["train"]["from_cache"], first["train"]["rows"], first["cache_dir"]) == (False, 5, "cache")
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["train"]["from_cache"] is True
    assert main([*arguments, "--set", "data.mask_inputs=false"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["from_cache"] is False
    assert main(["process-data", path]) == 1
    assert "data.cache_dir" in capsys.readouterr().err


def test_process_data_has_nothing_to_do_where_prompts_are_asked(capsys):
    path = config(CONFIG + "type: grpo\nrl: {reward: 'math:sqrt'}")
    assert main(["process-data", path, "--cache-dir", "cache"]) == 1
    assert "prompts of 'grpo' become tokens as they are asked" in capsys.readouterr().err


def test_a_function_of_the_file_is_named_as_its_author_knows_it(capsys):
    written("rows.jsonl", '{"prompt": "a", "response": "b"}\n')
    text = """
from farstep.trainers import SFTTrainer
def score(completion): return 1.0
def trainer():
    return SFTTrainer({"model": "farstep/tiny", "dataset": "rows.jsonl"}, reward_fn=score)
"""
    assert main(["check", str(written("train.py", text)), "--no-tokens", "--json"]) == 0
    found = {each["what"]: each["detail"] for each in json.loads(capsys.readouterr().out)}
    assert found["reward"] == "train:score"


def test_a_tokenizer_that_is_nowhere_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = load_config({"model": "farstep/tiny", "dataset": "x.jsonl"})
    assert local_tokenizer(found).decode(local_tokenizer(found).encode("12+30?")) == "12+30?"
    with pytest.raises(Exception, match=r"model.tokenizer: no tokenizer './nowhere'"):
        local_tokenizer(load_config({"model": {"base": "farstep/tiny", "tokenizer": "./nowhere"}}))


# env


def test_env_says_what_is_installed_and_needs_nothing(capsys, monkeypatch):
    monkeypatch.setenv("FARSTEP_API_KEY", "fsk-secret")
    assert main(["env", "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert "fsk-secret" not in out
    assert found["server"]["answers"] is False
    assert found["server"]["has_key"] is True
    assert found["packages"]["numpy"]
    assert found["extras"]["trainers"] == []
    assert found["devices"]["cpus"] > 0
    assert main(["env"]) == 0
    assert "extra trainers" in capsys.readouterr().out


def test_env_says_what_an_extra_lacks(monkeypatch):
    known = {"farstep": "1", "numpy": "2"}
    monkeypatch.setattr(env_command, "_version", known.get)
    assert env_command.missing_of("data") == [
        "datasets", "jinja2", "pydantic", "pyyaml", "starlette", "transformers", "uvicorn",
    ]  # fmt: skip


def test_gpus_are_those_that_the_driver_lists(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert env_command.gpus() == [{"name": "NVIDIA H100", "memory_mib": 81559, "driver": "570.1"}]


# init


@pytest.mark.parametrize("template", list(init_command.TEMPLATES))
def test_a_template_passes_its_check(template, capsys):
    assert main(["init", template, "here"]) == 0
    assert "create  here" in capsys.readouterr().out
    os.chdir("here")
    program = "train.py" if Path("train.py").exists() else "config.yaml"
    assert main(["check", program, "--json"]) == 0, capsys.readouterr().out


def test_init_never_overwrites_and_says_what_it_did(capsys):
    main(["init", "sft-chat", "here"])
    Path("here/config.yaml").write_text("mine")
    Path("here/chat.jsonl").unlink()
    capsys.readouterr()
    assert main(["init", "sft-chat", "here", "--json"]) == 0
    actions = {each["file"]: each["action"] for each in json.loads(capsys.readouterr().out)}
    assert actions == {"here/README.md": "keep", "here/chat.jsonl": "create", "here/config.yaml": "keep"}
    assert Path("here/config.yaml").read_text() == "mine"
    written("file", "")
    assert main(["init", "sft-chat", "file"]) == 1
    assert Path("file").read_text() == ""


def test_where_nobody_can_be_asked_it_asks_nothing(capsys):
    """Standard input is no terminal here."""
    assert main(["init"]) == 1
    said = capsys.readouterr().err
    assert all(name in said for name in init_command.TEMPLATES)
    assert "TEMPLATE [FOLDER]" in said
    assert list(Path().iterdir()) == []


def test_every_template_is_offered():
    parser = argparse.ArgumentParser()
    init_command.add_arguments(parser)
    folders = {path.name for path in (Path(init_command.__file__).parent / "templates").iterdir() if path.is_dir()}
    assert folders == set(init_command.TEMPLATES)


def test_the_help_of_a_command_needs_no_trainer_loaded():
    assert {"sft", "dpo", "grpo", "ppo", "operator"} <= set(Trainer.names())
    code = "import sys; from farstep.cli import main; main.whole_parser(); print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
