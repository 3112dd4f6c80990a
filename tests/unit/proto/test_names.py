"""Names and paths: what is accepted reads back; what could leave its folder is refused."""

import pytest

from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath, check_name, check_run_id


@pytest.mark.parametrize("name", ["a", "step-10", "v1.2_final", "x" * 128])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a b", "ä", "x" * 129, "a\n", "a\0", "~", "a:b"])
def test_bad_names(name):
    with pytest.raises(InvalidInput) as caught:
        check_name(name)
    assert caught.value.field == "name"


@pytest.mark.parametrize("run_id", ["../x", "a/b", "", "..", "a b"])
def test_bad_run_ids(run_id):
    with pytest.raises(InvalidInput):
        check_run_id(run_id)


@pytest.mark.parametrize("scheme", ["bt://loops:", "tinker://"])
def test_both_schemes_read_as_the_same_path(scheme):
    path = CheckpointPath.parse(f"{scheme}s:train:0/weights/step-1")
    assert path == CheckpointPath("s:train:0", "weights", "step-1")
    assert str(path) == "bt://loops:s:train:0/weights/step-1"


def test_checkpoint_id_round_trip():
    path = CheckpointPath("run", "sampler_weights", "x")
    assert CheckpointPath.from_checkpoint_id(path.checkpoint_id) == path
    assert CheckpointPath.from_checkpoint_id(str(path)) == path


@pytest.mark.parametrize(
    "path",
    ["", "run/weights/x", "bt://loops:run/other/x", "bt://loops:run/weights/", "bt://loops:../weights/x",
     "bt://loops:run/weights/../x", "bt://loops:run/weights/a/b", "http://run/weights/x"],
)  # fmt: skip
def test_bad_paths(path):
    with pytest.raises(InvalidInput) as caught:
        CheckpointPath.parse(path)
    assert caught.value.field == "path"
