"""Heal or restart what dies.

Knows when a process counts as dead and how long to wait before it is started again. Does not know how it is stopped.

Invariants:
1. A process that died is swept away, its shared memory too, before it is started again at the same address.
2. An instance that runs but whose model process is dead is healed, once in each of its lives, before it is restarted.
   Healing takes minutes at worst and has a thread of its own: the other children are looked at meanwhile.
3. An instance that loses a process while it loads models is restarted: Triton waits for the lost one for minutes.
4. The wait doubles with each death in a row and starts over after the process has lived for a while.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from scripts.launcher.cluster import Cluster
from scripts.launcher.heal import heal
from scripts.launcher.heartbeat import Pulse, scrape
from scripts.launcher.instance import TritonInstance
from scripts.launcher.process import Child

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
LIVED_SECONDS = 60.0
CHECK_SECONDS = 0.5
LOST_PART = "a process of it ended while it was loading its models"


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next start."""

    deaths: int = 0

    def next_wait(self, lived: float) -> float:
        """Return the seconds to wait after a death, given how many seconds the process had lived."""
        self.deaths = 1 if lived > LIVED_SECONDS else self.deaths + 1
        return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.deaths - 1))


@dataclass(slots=True)
class Watched:
    """One child under watch; `restart_at` is set while it waits for its next start."""

    child: Child
    pulse: Pulse
    started: float
    observed: float
    restart_at: float | None = None
    was_healed: bool = False
    healing: Future[str | None] | None = None  # gives why it did not work, or None
    former: frozenset[int] = frozenset()  # processes of its before it began to load models; these may end
    backoff: Backoff = field(default_factory=Backoff)

    def has_lost_a_part(self) -> bool:
        """Whether one has ended of the processes that it has started to load models."""
        return any(has_ended and pid not in self.former for pid, has_ended in self.child.parts().items())


class Supervisor:
    """Looks at every child of a cluster when `check` is called, and restarts the dead."""

    def __init__(
        self, cluster: Cluster, say: Callable[[str], None], heal_instance: Callable[[str], str | None] = heal
    ) -> None:
        self._say = say
        self._heal = heal_instance
        self._start_seconds = cluster.ready_timeout
        now = time.monotonic()
        self._watched = [Watched(child, Pulse(self._start_seconds), now, now) for child in cluster.children]

    def check(self) -> None:
        """Look at each child once, and start the one whose waiting time is over."""
        for one in self._watched:
            if one.healing is not None:
                self._follow_healing(one, one.healing)
            elif one.restart_at is None:
                self._look(one)
            elif time.monotonic() >= one.restart_at:
                self._restart(one)

    def _look(self, one: Watched) -> None:
        trouble = self._trouble(one)
        if trouble is None or self._begins_healing(one, trouble):
            return
        self._end(one, trouble)

    def _end(self, one: Watched, trouble: str) -> None:
        one.child.kill()
        now = time.monotonic()
        wait = one.backoff.next_wait(now - one.started)
        one.restart_at = now + wait
        self._say(f"{one.child.name}: {trouble}; starting it again in {wait:g} s (log: {one.child.log})")

    def _begins_healing(self, one: Watched, trouble: str) -> bool:
        child = one.child
        if one.was_healed or not child.is_running or not isinstance(child, TritonInstance) or one.pulse.silent:
            return False
        one.was_healed, one.former = True, frozenset(child.parts())
        self._say(f"{child.name}: {trouble}; loading its models again")
        one.healing = _in_a_thread(self._heal, child.http_url)
        return True

    def _follow_healing(self, one: Watched, healing: Future[str | None]) -> None:
        if not healing.done():  # also of one that ended: what it is still told is not to reach its successor
            if one.child.is_running and one.has_lost_a_part():
                self._say(f"{one.child.name}: {LOST_PART}")
                one.child.kill()
            return
        one.healing = None
        one.observed = time.monotonic()
        one.pulse, one.former = Pulse(self._start_seconds), frozenset(one.child.parts())
        if not one.child.is_running:
            self._end(one, f"it ended with exit code {one.child.exit_code}")
        elif reason := healing.result():
            self._end(one, f"not healed: {reason}")
        else:
            self._say(f"{one.child.name}: healed")

    def _trouble(self, one: Watched) -> str | None:
        if not one.child.is_running:
            return f"it ended with exit code {one.child.exit_code}"
        if not isinstance(one.child, TritonInstance):
            return None
        beats = scrape(one.child.metrics_url)
        now = time.monotonic()
        one.pulse.observe(beats, now - one.observed)
        one.observed = now
        if not one.pulse.has_answered and one.has_lost_a_part():
            return LOST_PART
        return one.pulse.trouble()

    def _restart(self, one: Watched) -> None:
        one.child.start()
        one.restart_at = None
        one.was_healed, one.former = False, frozenset()
        one.started = one.observed = time.monotonic()
        one.pulse = Pulse(self._start_seconds)
        self._say(f"{one.child.name}: started again (pid {one.child.pid})")


def _in_a_thread(heal_instance: Callable[[str], str | None], url: str) -> Future[str | None]:
    """Call in a thread that nobody waits for at the end of the process."""
    result: Future[str | None] = Future()

    def run() -> None:
        try:
            result.set_result(heal_instance(url))
        except Exception as error:  # noqa: BLE001 - told to whoever follows it
            result.set_result(repr(error))

    threading.Thread(target=run, name="healer", daemon=True).start()
    return result


@contextmanager
def supervised(cluster: Cluster, say: Callable[[str], None]) -> Iterator[None]:
    """Supervise the cluster from a thread of its own; leave before the cluster is stopped."""
    supervisor, is_over = Supervisor(cluster, say), threading.Event()

    def watch() -> None:
        while not is_over.wait(CHECK_SECONDS):
            supervisor.check()

    thread = threading.Thread(target=watch, name="supervisor")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
