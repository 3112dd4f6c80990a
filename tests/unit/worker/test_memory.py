"""What memory there is."""

import os

import torch

from farstep_worker import memory


def test_a_container_s_limit_counts_where_there_is_one(tmp_path, monkeypatch):
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", limit)
    assert memory.total_bytes(torch.device("cpu")) == host
    for text, expected in (("max\n", host), ("1048576\n", 1 << 20), (str(host * 2), host)):
        limit.write_text(text)
        assert memory.total_bytes(torch.device("cpu")) == expected
