"""Ports for servers that keep them over all their lives.

They are taken from below the range out of which the kernel gives ports to outgoing connections. Otherwise, while a
server is down, somebody's connection could get its port, or a client that tries again and again could connect to
itself: both ends of a TCP connection may be the same port of the same address.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

_LEAST, _END = 15_000, 32_768
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ATTEMPTS = 200
_CHOICE = random.Random()  # its own: what a program draws from `random` must not depend on our ports


def choose_port(host: str, *, taken: Container[int] = ()) -> int:
    """A port of `host` that nobody listens on now and that is not in `taken`.

    Raises:
        OSError: none was found, or `host` is not an address of this machine.
    """
    for _ in range(_ATTEMPTS):
        port = _CHOICE.randrange(_LEAST, _range_end())
        if port in taken:
            continue
        if is_free(host, port):
            return port
    raise OSError(errno.EADDRINUSE, f"no free port between {_LEAST} and {_range_end()}")


def is_free(host: str, port: int) -> bool:
    """Raises OSError where `host` is not an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the servers do: what is left of a dead server's connections does not make its port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def _range_end() -> int:
    with suppress(OSError, ValueError):
        first = int(_RANGE.read_text().split()[0])
        if first > _LEAST + 1000:
            return min(first, 60_000)
    return _END
