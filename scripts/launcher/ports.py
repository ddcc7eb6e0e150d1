"""TCP ports of one machine: which are free.

Knows how to try a port. Does not keep one: a port is free at the time of asking.

Free ports come from below the range that the kernel hands to outgoing connections, so that a server that is
restarted finds its port as it left it.
"""

import errno
import random
import socket
from dataclasses import dataclass
from pathlib import Path

from scripts.launcher.errors import LaunchError

LOWEST = 15000
RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
DEFAULT_HIGHEST = 32768
NUM_TRIES = 500


@dataclass(frozen=True, slots=True)
class InstancePorts:
    """The three ports of one tritonserver."""

    http: int
    grpc: int
    metrics: int


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on the port now.

    Raises:
        OSError: it could not, for another reason than that somebody else does.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that nobody listens on.

    Raises:
        LaunchError: too few were found in many tries.
    """
    rng = random.SystemRandom()
    found: list[int] = []
    for _ in range(NUM_TRIES):
        if len(found) == count:
            return found
        port = rng.randrange(LOWEST, _highest())
        if port not in found and is_free(port, "0.0.0.0"):  # noqa: S104 - asks, never listens
            found.append(port)
    raise LaunchError(f"no {count} free ports between {LOWEST} and {_highest()}", "stop what occupies them")


def instance_ports(count: int) -> list[InstancePorts]:
    """Return free ports for `count` tritonservers."""
    numbers = iter(free_ports(3 * count))
    return [InstancePorts(next(numbers), next(numbers), next(numbers)) for _ in range(count)]


def _highest() -> int:
    try:
        low = int(RANGE_FILE.read_text().split()[0])
    except OSError:
        low = DEFAULT_HIGHEST
    return low if low > LOWEST + 1000 else DEFAULT_HIGHEST
