"""How many tokens a micro-batch may have: what was configured, less for a while after memory ran out.

The rule: a micro-batch of n tokens that did not fit leaves n / 2 as the budget. After `CALM_PASSES` passes in which
everything fitted it doubles, until it is again what was configured. Nothing else changes it, no clock and no reading of
free memory: where memory never runs out, the same data is always cut in the same way, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping

# Of what is free at the start. Gradients, moments and further runs come later, and lengths vary.
USABLE_SHARE = 0.6
CALM_PASSES = 64


class TokenBudget:
    """Of one process. `limit` is what was configured."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._current = limit
        self._calm_passes = 0

    def current(self) -> int:
        """Tokens, padding included, that the next pass plans for."""
        return self._current

    def ran_out(self, num_tokens: int) -> None:
        """A micro-batch of so many tokens, padding included, did not fit."""
        self._current = max(1, min(self._current, num_tokens // 2))
        self._calm_passes = -1  # the pass that it happened in is not one

    def passed(self) -> None:
        """A whole pass went well, split or not."""
        if self._current == self.limit:
            return
        self._calm_passes += 1
        if self._calm_passes == CALM_PASSES:
            self._current = min(self.limit, 2 * self._current)
            self._calm_passes = 0


def fitting_tokens(peaks: Mapping[int, int], *, free_bytes: int, most: int) -> int:
    """How many tokens `USABLE_SHARE` of the free memory suffices for: memory grows in a line with them.

    Args:
        peaks: bytes that passes over two numbers of tokens took at most, by that number.
        most: never more than so many.
    """
    (few, few_bytes), (many, many_bytes) = sorted(peaks.items())
    bytes_per_token = max(1.0, (many_bytes - few_bytes) / (many - few))
    fixed_bytes = max(0.0, few_bytes - few * bytes_per_token)
    return max(1, min(most, int((USABLE_SHARE * free_bytes - fixed_bytes) / bytes_per_token)))
