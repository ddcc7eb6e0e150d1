"""Fake backends and a gateway in front of them."""

from collections.abc import Callable, Iterator

import pytest

from tests.gateway.backend import Backend
from tests.gateway.process import GatewayProcess

Start = Callable[..., tuple[GatewayProcess, list[Backend]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a starter of a gateway with backends named a, b, ...; all end with the test."""
    gateways: list[GatewayProcess] = []
    started: list[Backend] = []

    def run(
        count: int = 2, *flags: str, metrics: bool = True, options: tuple[tuple[str, int], ...] = ()
    ) -> tuple[GatewayProcess, list[Backend]]:
        backends = [Backend("abcdef"[index], metrics, options=options) for index in range(count)]
        started.extend(backends)
        gateway = GatewayProcess(*(backend.flag for backend in backends), flags=flags)
        gateways.append(gateway)
        gateway.wait_usable(count)
        return gateway, backends

    yield run
    for gateway in gateways:
        gateway.stop()
    for backend in started:
        backend.stop()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[GatewayProcess, list[Backend]]]:
    """Return a gateway with two backends that a module's tests share and leave as they are."""
    backends = [Backend("a"), Backend("b")]
    gateway = GatewayProcess(*(backend.flag for backend in backends))
    gateway.wait_usable(2)
    yield gateway, backends
    gateway.stop()
    for backend in backends:
        backend.stop()
