"""Names of models: what each means, and which cannot be."""

import pytest

from farstep_infra.control.served_models import ServedModels
from farstep_proto.errors import InvalidInput


def served(*names):
    return ServedModels.of("fake/one", names)


def test_a_name_means_the_default_model_unless_it_says_another():
    models = served("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", "judge=fake/two", "fake/three=fake/three")
    assert models.resolve("Qwen/Qwen3-8B") == models.resolve("Qwen/Qwen3-8B-Base") == "fake/one"
    assert models.resolve("judge") == "fake/two"
    assert models.resolve("fake/one") == "fake/one"
    assert models.resolve("anything/else") == "anything/else"
    assert models.names == ("fake/one", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", "judge", "fake/three")


def test_programs_are_told_the_first_name_of_a_model():
    assert served("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base").name_for("fake/one") == "Qwen/Qwen3-8B"
    assert served("judge=fake/two").name_for("fake/one") == "fake/one"


def test_programs_are_told_the_name_that_they_asked_for():
    models = served("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", "judge=fake/two")
    for asked in ("Qwen/Qwen3-8B-Base", "fake/one"):
        assert models.name_for("fake/one", asked=asked) == asked
    for asked in ("", "judge", "fake/two", "nobody"):
        assert models.name_for("fake/one", asked=asked) == "Qwen/Qwen3-8B"


def test_a_directory_is_told_by_another_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert ServedModels.of(str(tmp_path), ["mine"]).name_for(str(tmp_path), asked=str(tmp_path)) == "mine"


def test_a_name_of_another_model_is_listed():
    assert served("judge=fake/two").names == ("fake/one", "judge")


@pytest.mark.parametrize(
    "names",
    [
        ("judge=fake/two", "judge=fake/three"),
        ("judge=fake/two", "judge"),
        ("fake/one=fake/two",),
        ("a=fake/two", "fake/two=fake/three"),
        ("",),
        ("x" * 201,),
        ("a\nb",),
        ("tinker://run/weights/x",),
        ("a=no model at all",),
    ],
)
def test_what_cannot_be_is_refused(names):
    with pytest.raises(InvalidInput):
        served(*names)


def test_an_unknown_name_lists_what_is_served(tmp_path):
    models = served("Qwen/Qwen3-8B", "judge=fake/two")
    for name in ("fake/one", "fake/two", "judge", "Qwen/Qwen3-8B"):
        models.check_served(name)
    with pytest.raises(
        InvalidInput, match=r"'Qwen/Qwen3-4B' is not served here; there is fake/one, Qwen/Qwen3-8B, judge"
    ) as error:
        models.check_served("Qwen/Qwen3-4B")
    assert error.value.field == "base_model"
    (tmp_path / "config.json").write_text("{}")
    models.check_served(str(tmp_path))
    assert ServedModels.of(str(tmp_path), ["mine"]).names == ("mine",)
    assert ServedModels.of(str(tmp_path), []).names == (str(tmp_path),)
    models.check("Qwen/Qwen3-4B")
    with pytest.raises(InvalidInput):
        models.check("no model at all")
