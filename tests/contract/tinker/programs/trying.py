"""Features of an SDK tried one by one against a server, told as JSON lines: what, whether, how long, and why not.

A program imports nothing but the SDK whose environment runs it, its dependencies and this file. It finds the server as
any program of that SDK does (TINKER_BASE_URL, TINKER_API_KEY) and the base model in FARSTEP_TEST_MODEL.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tinker

MODEL = os.environ["FARSTEP_TEST_MODEL"]
VERSION = tuple(int(part) for part in tinker.__version__.split(".")[:2])


@dataclass(frozen=True)
class Feature:
    """`since`: the first version of the SDK that has it."""

    program: str
    name: str
    since: tuple[int, int]
    check: Callable[[tinker.ServiceClient], None]


FEATURES: list[Feature] = []


def feature(name: str, *, since: str = "0.30"):
    """Enters a check: it returns where the feature works, raises where not."""
    major, minor = since.split(".")

    def enter(check):
        module = check.__module__
        program = Path(sys.argv[0]).stem if module == "__main__" else module
        FEATURES.append(Feature(program, name, (int(major), int(minor)), check))
        return check

    return enter


def made(client):
    """A client itself, from versions that return it and from those that return a future of it."""
    return client.result(timeout=120) if hasattr(client, "result") else client


def trainer(service, **options) -> tinker.TrainingClient:
    return made(service.create_lora_training_client(MODEL, **{"rank": 4, "seed": 1, **options}))


def rest_client(service):
    return service.create_rest_client() if VERSION < (0, 36) else tinker.RestClient()


def datum(tokens=(1, 40, 41, 60, 61, 2), **inputs) -> tinker.Datum:
    """With every input of a loss as long as the model's input; by default cross-entropy's."""
    targets = list(tokens[1:])
    inputs = inputs or {"weights": [1.0] * len(targets)}
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(tokens[:-1])),
        loss_fn_inputs={"target_tokens": tensor(targets, "int64"), **{k: tensor(v) for k, v in inputs.items()}},
    )


def tensor(values, dtype="float32") -> tinker.TensorData:
    return tinker.TensorData(data=list(values), dtype=dtype, shape=[len(values)])


def logprobs_of(output) -> list[list[float]]:
    return [list(each["logprobs"].data) for each in output.loss_fn_outputs]


def close(a, b, tolerance=1e-4) -> bool:
    return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


@contextlib.contextmanager
def refused(*said: str, category="user", within_s=30.0):
    """What must fail, soon, for the user's own mistake, and say what it is about."""
    began = time.monotonic()
    failure: Exception | None = None
    try:
        yield
    except (tinker.RequestFailedError, tinker.APIStatusError, ValueError) as error:
        failure = error
    assert failure is not None, "it was taken"
    message = str(failure)
    if isinstance(failure, tinker.RequestFailedError):
        told = str(failure.category).rpartition(".")[2].lower()
        assert told == category, f"category {failure.category}: {message}"
    assert time.monotonic() - began < within_s, "it took too long to be refused"
    assert all(word in message for word in said), message


def main() -> None:
    """Tries what is asked for on the command line by name, or everything."""
    print(json.dumps({"sdk": tinker.__version__}), flush=True)
    wanted = sys.argv[1:]
    service = tinker.ServiceClient()
    for each in FEATURES:
        if wanted and each.name not in wanted:
            continue
        report = {"program": each.program, "feature": each.name, "since": ".".join(map(str, each.since))}
        began = time.monotonic()
        if each.since > VERSION:
            report["outcome"] = "absent"
        else:
            try:
                each.check(service)
                report["outcome"] = "works"
            except Exception:
                report |= {"outcome": "fails", "why": traceback.format_exc(limit=-4)}
        report["seconds"] = round(time.monotonic() - began, 2)
        print(json.dumps(report), flush=True)
    made(service.close("success"))
