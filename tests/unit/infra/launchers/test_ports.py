"""Ports that servers keep."""

import socket
from pathlib import Path

import pytest

from farstep_infra.launchers.ports import choose_port, is_free


def test_one_that_somebody_listens_on_is_not_free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free("127.0.0.1", port)
    assert is_free("127.0.0.1", port)


def test_no_outgoing_connection_can_get_a_chosen_one():
    ranges = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(ranges.read_text().split()[0]) if ranges.exists() else 32_768
    chosen: set[int] = set()
    for _ in range(50):
        chosen.add(choose_port("127.0.0.1", taken=chosen))
    assert len(chosen) == 50
    assert max(chosen) < first or first < 20_000  # somebody's machine may leave nothing below


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(OSError, match="assign"):
        choose_port("192.0.2.1")
