"""One installation for all recipes, and a folder with what they would download."""

import pytest

from farstep.cli.local_stack import LocalStack
from tests.cookbook.data import write_data_sets
from tests.cookbook.recipes import PYTHON, SERVED_NAMES, Recipes
from tests.support.hub_folder import tinker_environment, write_tokenizer


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "cookbook":
            item.add_marker(pytest.mark.system)
            item.add_marker(pytest.mark.timeout(1800))
            if not PYTHON:
                item.add_marker(pytest.mark.skip(reason="make test-cookbook runs the recipes"))


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    names = [f"--served-name={name}" for name in SERVED_NAMES]
    with LocalStack(home=tmp_path_factory.mktemp("home"), more=names) as stack:
        yield stack


@pytest.fixture(scope="session")
def recipes(stack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    for name in SERVED_NAMES:
        write_tokenizer(folder, name)
    write_data_sets(folder)
    more = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    return Recipes(folder, tinker_environment(stack.base_url, stack.api_key, **more))
