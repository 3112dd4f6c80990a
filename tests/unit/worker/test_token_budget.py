"""The rule by which a budget shrinks and comes back."""

import pytest

from farstep_worker.token_budget import CALM_PASSES, USABLE_SHARE, TokenBudget, fitting_tokens


def test_without_a_lack_of_memory_it_never_changes():
    budget = TokenBudget(100)
    for _ in range(3 * CALM_PASSES):
        assert budget.current() == 100
        budget.passed()


def test_what_did_not_fit_is_halved_and_comes_back_step_by_step():
    budget = TokenBudget(100)
    budget.ran_out(96)
    assert budget.current() == 48
    budget.ran_out(200)  # larger than what is planned now: nothing new
    assert budget.current() == 48
    budget.ran_out(40)
    assert budget.current() == 20
    budget.passed()  # in which it ran out
    seen = []
    for _ in range(3 * CALM_PASSES):
        seen.append(budget.current())
        budget.passed()
    assert sorted(set(seen)) == [20, 40, 80]
    assert seen.count(20) == CALM_PASSES
    assert budget.current() == 100


def test_a_failure_in_between_starts_the_count_anew():
    budget = TokenBudget(64)
    budget.ran_out(64)
    for _ in range(CALM_PASSES):
        budget.passed()
    budget.ran_out(64)
    budget.passed()
    assert budget.current() == 32


def test_it_never_falls_below_one_token():
    budget = TokenBudget(1)
    budget.ran_out(1)
    assert budget.current() == 1


@pytest.mark.parametrize(
    ("peaks", "free", "expected"),
    [
        ({100: 1_100, 300: 3_100}, 50_000, 2_990),  # 10 a token and 100 at any rate
        ({300: 3_100, 100: 1_100}, 50_000, 2_990),
        ({100: 1_000, 300: 3_000}, 10**9, 16_384),  # more than is wanted
        ({100: 1_100, 300: 3_100}, 50, 1),  # not even the fixed part
        ({100: 5_000, 300: 5_000}, 10_000, 1_100),  # nothing by the token
    ],
)
def test_tokens_that_fit_into_free_memory(peaks, free, expected):
    assert fitting_tokens(peaks, free_bytes=free, most=16_384) == expected
    assert USABLE_SHARE == 0.6
