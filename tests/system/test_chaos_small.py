"""A small part of the chaos suite: every kind of process is killed once while two programs train.

What is shown here is shown by `make chaos` at random moments and two hundred times; docs/reliability.md.
"""

import pytest

from tests.chaos.campaign import Campaign, Settings
from tests.chaos.schedule import Kill, Network, OnLine

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]

FAULTS = (
    Kill(OnLine("accepted", "Step", 3, 0.0), ("trainer",), 0),
    Kill(OnLine("accepted", "", 5, 0.0), ("client",), 0),
    Network(OnLine("accepted", "", 2, 0.0), ("drop_response", "duplicate", "cut_response")),
    Kill(OnLine("intent", "Publish", 1, 0.0), ("replica", "router"), 0),
    Kill(OnLine("accepted", "Step", 2, 0.0), ("control",), 0),
)


def test_nothing_is_lost_doubled_changed_or_stuck(tmp_path):
    settings = Settings(
        seed=1, num_kills=5, minutes=10, most_waves=1, programs=(1, 2), at_once=2, num_steps=30, faults=FAULTS
    )
    totals = Campaign(settings, tmp_path).run()
    assert [finding for _, finding in totals.findings] == []
    assert totals.killed == {"trainer": 1, "client": 1, "replica": 1, "router": 1, "control": 1}
