"""Names of classes: found, refused, and the same after a notebook cell was run again."""

import pickle
import sys
import types
from importlib.metadata import EntryPoint

import pytest

from farstep.trainers import Registered, RegistryError, SFTTrainer, Trainer, registry


class Shape(Registered):
    homes = {"far": f"{__name__}:NoSuchClass"}  # noqa: RUF012
    entry_point_group = "farstep.test_shapes"


class Round(Shape):
    name = "round"


def test_a_class_with_a_name_is_found_by_it():
    class Square(Shape):
        name = "square"

    class Unnamed(Square):
        pass

    assert Shape.get("square") is Square
    assert Shape.names() == ["far", "round", "square"]
    assert Unnamed.name == "square"
    assert Shape.get("round") is Round
    Shape._classes.pop("square")


def test_an_unknown_name_says_the_nearest_and_all():
    with pytest.raises(
        RegistryError, match=r"no shape 'rond' \(did you mean 'round'\? there are: far, round\)"
    ) as caught:
        Shape.get("rond")
    assert caught.value.known == ("far", "round")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_name_is_taken_once():
    with pytest.raises(RegistryError, match="the shape name 'round' is taken by"):

        class Rounder(Shape):
            name = "round"

    with pytest.raises(RegistryError, match="the shape name 'far' is taken by"):

        class Farther(Shape):
            name = "far"

    class Replaced(Shape, replace=True):
        name = "round"

    assert Shape.get("round") is Replaced
    Shape._classes["round"] = Round


def test_the_same_cell_again_is_no_second_class():
    cell = "class Cell(Shape):\n    name = 'cell'\n"
    module = types.ModuleType("notebook")
    module.Shape = Shape
    sys.modules["notebook"] = module
    exec(cell, vars(module))
    first = module.Cell
    exec(cell, vars(module))
    assert Shape.get("cell") is module.Cell is not first
    Shape._classes.pop("cell")
    del sys.modules["notebook"]


@pytest.mark.parametrize("name", ["with space", "", "ü", "a" * 65, "-x"])
def test_a_name_that_is_none_is_refused_or_ignored(name):
    if not name:
        type("Nameless", (Shape,), {"name": name})
        assert "" not in Shape.names()
        return
    with pytest.raises(RegistryError, match="is no name"):
        type("Bad", (Shape,), {"name": name})


def test_packages_bring_more_and_a_broken_one_says_so(monkeypatch):
    points = [
        EntryPoint("outside", f"{__name__}:Round", "farstep.test_shapes"),
        EntryPoint("broken", "no_such_module:Thing", "farstep.test_shapes"),
        EntryPoint("alien", "json:dumps", "farstep.test_shapes"),
    ]

    def entry_points(*, group, name=None):
        return [each for each in points if each.group == group and name in (None, each.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setitem(sys.modules, __name__, types.SimpleNamespace(Round=Round))
    assert Shape.names() == ["alien", "broken", "far", "outside", "round"]
    assert Shape.get("outside") is Round
    with pytest.raises(RegistryError, match=r"'broken' of no_such_module:Thing cannot be loaded: ModuleNotFoundError"):
        Shape.get("broken")
    with pytest.raises(RegistryError, match="is to be the shape 'alien', is none"):
        Shape.get("alien")
    Shape._classes.pop("outside")


def test_a_class_is_asked_for_its_own_kind():
    assert Trainer.get("sft") is SFTTrainer
    assert {"sft", "causal", "dpo", "ipo"} <= set(Trainer.names())
    with pytest.raises(RegistryError, match="'dpo' is a trainer, but no SFTTrainer"):
        SFTTrainer.get("dpo")
