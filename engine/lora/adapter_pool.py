"""Which adapters are in memory, who uses them, and who waits for one.

Knows names, sizes and users. Does not know files, tensors, threads or time: it says what is to be loaded, and is told
when it has been.

States of an adapter, and what moves it on:

    absent  -> LOADING   somebody waits for it and there is room, or room can be made
    LOADING -> READY     `loaded`; those who wait for it get it
    LOADING -> absent    `failed`; those who wait for it are told
    READY   -> LEAVING   it is in use, and `unload` is asked for or somebody waits for room; nobody new gets it
    READY   -> absent    the same where nobody uses it; for room the one that was asked for longest ago goes first
    LEAVING -> absent    its last user releases it

Invariants, checked by `check`:
1. At most `max_adapters` adapters of together at most `max_bytes` are in memory, those being loaded included.
2. An adapter with users stays in memory.
3. Who waits first for room gets it first. It comes to pass once the users of adapters that leave have ended, since
   adapters that leave get no new ones.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from engine.errors import InvalidRequest


class AdapterState(Enum):
    """Where an adapter in memory is."""

    LOADING = auto()
    READY = auto()
    LEAVING = auto()


@dataclass(slots=True)
class Place:
    """An adapter in memory."""

    num_bytes: int
    state: AdapterState = AdapterState.LOADING
    users: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Moves:
    """What follows from an event: adapters to load, users that have got theirs, and adapters to drop."""

    load: list[str] = field(default_factory=list)
    granted: list[tuple[int, str]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Waiter:
    """A user without its adapter."""

    user: int
    name: str
    num_bytes: int


class AdapterPool:
    """Adapters within a budget; every method returns what is to be done because of it."""

    def __init__(self, max_adapters: int, max_bytes: int) -> None:
        """Start empty."""
        self.max_adapters = max_adapters
        self.max_bytes = max_bytes
        self.places: dict[str, Place] = {}  # asked for longest ago first
        self.line: list[Waiter] = []

    @property
    def num_bytes(self) -> int:
        """Memory taken, or about to be."""
        return sum(place.num_bytes for place in self.places.values())

    def acquire(self, user: int, name: str, num_bytes: int) -> Moves:
        """Let a user, who has none yet, wait for an adapter, which may be there at once.

        Raises:
            InvalidRequest: it does not fit into the budget even alone.
        """
        if num_bytes > self.max_bytes:
            raise InvalidRequest(f"the adapter {name!r} takes {num_bytes} bytes; the budget is {self.max_bytes}")
        self.line.append(Waiter(user, name, num_bytes))
        return self._advance()

    def release(self, user: int) -> Moves:
        """Let a user go, whether it has its adapter or waits; unknown ones are fine."""
        self.line = [waiter for waiter in self.line if waiter.user != user]
        for place in self.places.values():
            place.users.discard(user)
        return self._advance()

    def loaded(self, name: str) -> Moves:
        """Take notice that an adapter has been loaded."""
        self.places[name].state = AdapterState.READY
        return self._advance()

    def failed(self, name: str) -> tuple[list[int], Moves]:
        """Take notice that an adapter could not be loaded; also return the users who waited for it."""
        del self.places[name]
        waiting = [waiter.user for waiter in self.line if waiter.name == name]
        self.line = [waiter for waiter in self.line if waiter.name != name]
        return waiting, self._advance()

    def unload(self, name: str) -> Moves:
        """Drop an adapter as soon as nobody uses it.

        Raises:
            InvalidRequest: it is not in memory, or is being loaded.
        """
        place = self.places.get(name)
        if place is None or place.state is AdapterState.LOADING:
            state = "not loaded" if place is None else "being loaded; unload it when it is ready"
            raise InvalidRequest(f"the adapter {name!r} is {state}")
        place.state = AdapterState.LEAVING
        return self._advance()

    def check(self) -> None:
        """Assert the invariants."""
        assert len(self.places) <= self.max_adapters
        assert self.num_bytes <= self.max_bytes
        assert all(not place.users for place in self.places.values() if place.state is AdapterState.LOADING)
        assert all(place.users for place in self.places.values() if place.state is AdapterState.LEAVING)
        users = [user for place in self.places.values() for user in place.users] + [w.user for w in self.line]
        assert len(set(users)) == len(users)
        ready = {name for name, place in self.places.items() if place.state is AdapterState.READY}
        assert not any(waiter.name in ready for waiter in self.line)

    def _advance(self) -> Moves:
        """Drop what nobody uses any more, grant what is there, and load more in the order of the line."""
        moves = Moves()
        self._drop([name for name, place in self.places.items() if _is_gone(place)], moves)
        for waiter in list(self.line):
            place = self.places.get(waiter.name)
            if place is not None and place.state is AdapterState.READY:
                self._grant(waiter, place, moves)
        for waiter in self.line:
            if waiter.name not in self.places:
                if not self._make_room(waiter.num_bytes, moves):
                    break
                self.places[waiter.name] = Place(waiter.num_bytes)
                moves.load.append(waiter.name)
        return moves

    def _grant(self, waiter: Waiter, place: Place, moves: Moves) -> None:
        self.line.remove(waiter)
        place.users.add(waiter.user)
        self.places[waiter.name] = self.places.pop(waiter.name)
        moves.granted.append((waiter.user, waiter.name))

    def _make_room(self, num_bytes: int, moves: Moves) -> bool:
        """Make room for one more adapter; False, with adapters told to leave, where it takes some time."""
        unused = [n for n, place in self.places.items() if place.state is AdapterState.READY and not place.users]
        while not self._fits(num_bytes, list(self.places.values())) and unused:
            self._drop([unused.pop(0)], moves)
        if self._fits(num_bytes, list(self.places.values())):
            return True
        for place in self.places.values():
            staying = [other for other in self.places.values() if other.state is not AdapterState.LEAVING]
            if self._fits(num_bytes, staying):
                break
            if place.state is AdapterState.READY:
                place.state = AdapterState.LEAVING
        return False

    def _fits(self, num_bytes: int, places: list[Place]) -> bool:
        return len(places) < self.max_adapters and sum(p.num_bytes for p in places) + num_bytes <= self.max_bytes

    def _drop(self, names: list[str], moves: Moves) -> None:
        for name in names:
            del self.places[name]
            moves.dropped.append(name)


def _is_gone(place: Place) -> bool:
    return place.state is AdapterState.LEAVING and not place.users
