"""Machines with networks of their own, on one machine: network namespaces joined by a bridge. Needs root and `ip`."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

HOST_ADDRESS = "198.18.77.1"  # of a range for such trials


@dataclass(frozen=True)
class Machine:
    """A machine, or what stands for one.

    Attributes:
        address: its own.
        network: its network namespace; without a name it is this machine as it is.
    """

    address: str
    network: str = ""

    @property
    def within(self) -> tuple[str, ...]:
        """What runs a command there."""
        return ("ip", "netns", "exec", self.network) if self.network else ()

    def set_link(self, state: str) -> None:
        """Set its link up or down."""
        ip("-n", self.network, "link", "set", "inner", state)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def makes_networks() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"probe{os.getpid()}"
    is_made = not subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode
    if is_made:
        ip("netns", "del", probe)
    return is_made


@contextmanager
def network() -> Iterator[tuple[Machine, Machine, Machine]]:
    """Join this machine by a bridge with two networks that stand for machines; yield the three."""
    bridge = f"ranks{os.getpid()}"
    with ExitStack() as stack:
        ip("link", "add", bridge, "type", "bridge")
        stack.callback(ip, "link", "del", bridge)
        ip("addr", "add", f"{HOST_ADDRESS}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        first, second = (stack.enter_context(_other_machine(bridge, number)) for number in (2, 3))
        yield Machine(HOST_ADDRESS), first, second


@contextmanager
def _other_machine(bridge: str, number: int) -> Iterator[Machine]:
    name, outer = f"{bridge}-{number}", f"rk{number}-{os.getpid()}"
    address = f"{HOST_ADDRESS.rpartition('.')[0]}.{number}"
    ip("netns", "add", name)
    try:
        ip("link", "add", outer, "type", "veth", "peer", "name", "inner", "netns", name)
        ip("link", "set", outer, "master", bridge, "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "inner")
        for link in ("inner", "lo"):
            ip("-n", name, "link", "set", link, "up")
        yield Machine(address, name)
    finally:
        ip("netns", "del", name)


def three_machines() -> AbstractContextManager[tuple[Machine, Machine, Machine]]:
    """Return machines with networks of their own where these can be made, else this machine thrice."""
    here = Machine("127.0.0.1")
    return network() if makes_networks() else nullcontext((here, here, here))
