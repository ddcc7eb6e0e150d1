"""Adapters by name: found in a folder, checked and loaded beside the step loop, shared and dropped by the pool's rules.

Knows the folder, one background thread and the pool. Does not know requests beyond a number each, or the step loop: its
owner calls it on one thread, and hands it the events that it posts.

Invariants:
1. Files are read on the background thread only.
2. Each `ask` that is not released is answered exactly once, with the adapter or with an error.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.errors import EngineError, InvalidRequest, RequestFailed
from engine.lora.adapter_config import CONFIG_FILE
from engine.lora.adapter_file import InspectedAdapter, inspect_adapter, load_adapter
from engine.lora.adapter_pool import AdapterPool, AdapterState, Moves
from engine.lora.lora_linear import LoadedAdapter
from engine.lora.targets import Target
from engine.placement import ON_HOST, Placement


@dataclass(slots=True, frozen=True)
class AdapterInspected:
    """An adapter's files have been looked at for a user."""

    user: int
    name: str
    job: "Future[InspectedAdapter]"


@dataclass(slots=True, frozen=True)
class AdapterLoaded:
    """An adapter's weights have been read."""

    name: str
    job: "Future[LoadedAdapter]"


AdapterEvent = AdapterInspected | AdapterLoaded


@dataclass(slots=True, frozen=True)
class Answer:
    """What a user gets: the adapter, or the reason why not."""

    user: int
    result: LoadedAdapter | EngineError


class AdapterService:
    """The adapters of one model."""

    def __init__(
        self,
        folder: Path,
        config: EngineConfig,
        targets: Mapping[str, Target],
        post: Callable[[AdapterEvent], object],
        placement: Placement = ON_HOST,
    ) -> None:
        """Start with nothing loaded.

        Args:
            folder: holds a folder for each adapter.
            config: the budget.
            targets: what adapters may change; see `engine.lora.targets`.
            post: called on the background thread; brings an event to the thread that calls `handle`.
            placement: where the model is.
        """
        self.folder = folder
        self.targets = targets
        self.max_rank = config.max_lora_rank
        self.placement = placement
        self.pool = AdapterPool(config.max_adapters, int(config.adapter_gib * 2**30))
        self.num_loads = 0
        self._post = post
        self._asking: set[int] = set()
        self._inspected: dict[str, InspectedAdapter] = {}
        self._loaded: dict[str, LoadedAdapter] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="adapters")

    @property
    def loaded(self) -> list[str]:
        """Names of the adapters that can be used at once."""
        return sorted(self._loaded)

    def ask(self, user: int, name: str) -> list[Answer]:
        """Ask for an adapter on behalf of a user, which has none."""
        place = self.pool.places.get(name)
        if place is not None and place.state is AdapterState.READY:
            return self._follow(self.pool.acquire(user, name, place.num_bytes))
        self._asking.add(user)
        self._work(lambda job: AdapterInspected(user, name, job), self._inspect, name, self.loaded)
        return []

    def release(self, user: int) -> list[Answer]:
        """Let a user go, whether it has its adapter or waits for it; returns what others get by that."""
        self._asking.discard(user)
        return self._follow(self.pool.release(user))

    def unload(self, name: str) -> list[Answer]:
        """Drop an adapter as soon as nobody uses it.

        Raises:
            InvalidRequest: it is not loaded.
        """
        return self._follow(self.pool.unload(name))

    def handle(self, event: AdapterEvent) -> list[Answer]:
        """Take an event."""
        return self._take_inspected(event) if isinstance(event, AdapterInspected) else self._take_loaded(event)

    def describe(self) -> dict[str, Any]:
        """Return the adapters in memory with their state and size, for people."""
        places = self.pool.places.items()
        return {
            name: {"state": place.state.name.lower(), "bytes": place.num_bytes, "users": len(place.users)}
            for name, place in sorted(places)
        }

    def _take_inspected(self, event: AdapterInspected) -> list[Answer]:
        if event.user not in self._asking:  # released meanwhile
            return []
        self._asking.remove(event.user)
        if (error := _error_of(event.job)) is not None:
            return [Answer(event.user, error)]
        inspected = self._inspected[event.name] = event.job.result()
        try:
            return self._follow(self.pool.acquire(event.user, event.name, inspected.num_bytes))
        except InvalidRequest as refusal:
            return [Answer(event.user, refusal)]

    def _take_loaded(self, event: AdapterLoaded) -> list[Answer]:
        if (error := _error_of(event.job)) is not None:
            users, moves = self.pool.failed(event.name)
            return [Answer(user, error) for user in users] + self._follow(moves)
        self.num_loads += 1
        self._loaded[event.name] = event.job.result()
        return self._follow(self.pool.loaded(event.name))

    def _follow(self, moves: Moves) -> list[Answer]:
        for name in moves.dropped:
            del self._loaded[name]
        for name in moves.load:
            self._work(
                lambda job, name=name: AdapterLoaded(name, job), load_adapter, self._inspected.pop(name), self.placement
            )
        return [Answer(user, self._loaded[name]) for user, name in moves.granted]

    def _work(self, event: Callable[[Any], AdapterEvent], function: Callable[..., Any], *args: Any) -> None:
        job = self._worker.submit(function, *args)
        job.add_done_callback(lambda done: self._post(event(done)))

    def _inspect(self, name: str, loaded: list[str]) -> InspectedAdapter:
        """Find an adapter by name among the folders that there are, so that no name leads elsewhere."""
        names = sorted(path.parent.name for path in self.folder.glob(f"*/{CONFIG_FILE}"))
        if name not in names:
            raise InvalidRequest(
                f"there is no adapter {name!r}; there are: {', '.join(names) or 'none'}; "
                f"loaded are: {', '.join(loaded) or 'none'}"
            )
        return inspect_adapter(name, self.folder / name, self.targets, self.max_rank)


def _error_of(job: "Future[Any]") -> EngineError | None:
    error = job.exception()
    if error is None or isinstance(error, EngineError):
        return error
    return RequestFailed(f"the adapter could not be loaded: {error!r}")
