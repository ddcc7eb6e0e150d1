"""Which instance a request goes to: filter, score, pick. Pure: time and randomness come from outside.

Knows health, load and where the request has been. Does not know connections.
"""

import random
from collections.abc import Iterable, Mapping
from typing import Protocol

from gateway.endpoint import Endpoint
from gateway.loads import Load


class Placeable(Protocol):
    """What routing wants to know of a request."""

    @property
    def tried(self) -> set[str]:
        """Names of instances that have failed it."""
        ...


def pick(
    request: Placeable, endpoints: Iterable[Endpoint], loads: Mapping[str, Load], now: float, rng: random.Random
) -> Endpoint | None:
    """Return the usable endpoint with the least load, or None where none is usable.

    An instance that has failed this request comes after all others. Of equals the one picked longest ago is taken, so
    that ties rotate; `rng` decides between those never picked.
    """
    usable = [endpoint for endpoint in endpoints if endpoint.is_usable]
    if not usable:
        return None

    def score(endpoint: Endpoint) -> tuple[bool, float, int, float]:
        load = loads[endpoint.name]
        return endpoint.name in request.tried, load.total(now), load.last_picked, rng.random()

    return min(usable, key=score)
