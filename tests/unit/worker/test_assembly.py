"""Operations in parts: joined in order, once, whatever arrives how often."""

import dataclasses
import itertools

import numpy as np
import pytest

from farstep_proto.errors import Conflict, InvalidInput
from farstep_worker.assembly import ABANDONED_S, Address, Assembler, digest_of
from farstep_worker.submission import Example, ImportAdapter, Pass, Skip


def part_of(values, *, loss_fn="cross_entropy", backward=True, **config):
    examples = tuple(Example(np.array([value], dtype=np.int32), {}) for value in values)
    return Pass(loss_fn, config, examples, backward)


def add(assembler, part, num_parts, call, *, now=0.0, body=None):
    address = Address("r", 1, part, num_parts)
    digest = digest_of("forward", body or str(part).encode(), address)
    if assembler.has(address, digest):
        return None
    return assembler.add(address, call, digest=digest, num_bytes=10, now=now)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parts_are_joined_in_their_order(order):
    assembler = Assembler()
    parts = [dataclasses.replace(part_of(values), adapter="start") for values in ([1, 2], [3], [4, 5])]
    results = [add(assembler, part, 3, parts[part]) for part in order for _ in range(2)]
    done = [result for result in results if result is not None]
    assert len(done) == 1
    assert [int(example.tokens[0]) for example in done[0].call.examples] == [1, 2, 3, 4, 5]
    assert done[0].call.adapter == "start"
    assert done[0].num_bytes == 30
    assert assembler.num_bytes == 0
    assert add(assembler, 1, 3, parts[1]) is None  # again, after the end
    assert assembler.num_bytes == 0


def test_the_digest_is_of_all_parts_whatever_their_order():
    digests = []
    for order in ((0, 1), (1, 0)):
        assembler = Assembler()
        digests += [r.digest for r in [add(assembler, part, 2, part_of([part])) for part in order] if r]
    assert digests[0] == digests[1]


def test_a_part_with_other_content_is_refused_before_and_after_the_end():
    assembler = Assembler()
    add(assembler, 0, 2, part_of([1]))
    with pytest.raises(Conflict, match="part 0 of r:1"):
        add(assembler, 0, 2, part_of([9]), body=b"other")
    assert add(assembler, 1, 2, part_of([2])) is not None
    with pytest.raises(Conflict):
        add(assembler, 1, 2, part_of([9]), body=b"other")


def test_another_number_of_parts_is_refused():
    assembler = Assembler()
    add(assembler, 0, 2, part_of([1]))
    with pytest.raises(Conflict, match="2 parts before, now in 3"):
        add(assembler, 1, 3, part_of([2]))


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (part_of([2], loss_fn="ppo"), "loss_fn"),
        (part_of([2], beta=0.1), "loss_fn_config"),
        (part_of([2], backward=False), "backward"),
        (dataclasses.replace(part_of([2]), adapter="base"), "adapter"),
        (Skip(), "parts"),
    ],
)
def test_parts_must_be_alike(other, field):
    assembler = Assembler()
    add(assembler, 0, 2, part_of([1]))
    with pytest.raises(InvalidInput) as caught:
        add(assembler, 1, 2, other)
    assert caught.value.field == field
    assert add(assembler, 1, 2, part_of([2]), body=b"corrected") is not None


def test_what_nobody_completes_is_dropped_in_the_end():
    assembler = Assembler()
    add(assembler, 0, 2, part_of([1]))
    assert assembler.num_bytes == 10
    other = Address("r", 2, 0, 2)
    assembler.add(other, part_of([1]), digest=b"d", num_bytes=7, now=ABANDONED_S + 1)
    assert assembler.num_bytes == 7
    assembler.forget("r:2")
    assembler.forget("r:2")
    assert assembler.num_bytes == 0


def test_an_adapter_s_bytes_are_joined_in_their_order():
    assembler = Assembler()
    parts = [ImportAdapter("n", b"{}", bytes([i]) * (i + 1)) for i in range(3)]
    assert add(assembler, 2, 3, parts[2]) is None
    for other in (dataclasses.replace(parts[1], name="m"), dataclasses.replace(parts[1], config=b"[]"), part_of([1])):
        with pytest.raises(InvalidInput):
            add(assembler, 1, 3, other)
    assert add(assembler, 0, 3, parts[0]) is None
    assert add(assembler, 1, 3, parts[1]).call == ImportAdapter("n", b"{}", b"\0\1\1\2\2\2")
