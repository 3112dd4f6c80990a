"""A fixed seed gives the same losses, norms and weights to the last bit: again, and in another process."""

import subprocess
import sys

from tests.unit.worker.loss_curve import NUM_STEPS, loss_curve


def test_a_fixed_seed_repeats_bit_for_bit():
    curve = loss_curve(seed=1)
    assert loss_curve(seed=1) == curve
    command = [sys.executable, "-m", "tests.unit.worker.loss_curve", "1"]
    elsewhere = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    assert elsewhere.stdout.split() == curve
    losses = [float.fromhex(text) for text in curve[:-1]]
    assert losses[4 * NUM_STEPS - 4] < losses[0]  # it does learn
    assert loss_curve(seed=2) != curve
