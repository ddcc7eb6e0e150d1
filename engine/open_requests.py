"""Which engine requests belong to which key, so that a key can abort them.

Knows keys, engine request ids and, for a while, keys that were aborted before their request came. Does not know the
engine or Triton. Safe to use from several threads.

Invariants:
1. A key names every open request that was registered with it; ids leave with `forget`.
2. An abort that names nobody is remembered for `REMEMBER_SECONDS`, at most `MAX_REMEMBERED` of them: a request with
   that key, if it says that keys are unique, is cancelled when it comes late.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

REMEMBER_SECONDS = 5.0
MAX_REMEMBERED = 4096


@dataclass(slots=True)
class OpenRequests:
    """Open requests by key."""

    clock: Callable[[], float]
    _ids: dict[str, set[int]] = field(default_factory=dict)
    _keys: dict[int, str] = field(default_factory=dict)
    _aborted: OrderedDict[str, float] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def register(self, key: str, request_id: int, *, is_unique: bool) -> bool:
        """Remember an open request; return whether its key has been aborted already.

        Args:
            key: names the request to whoever may abort it; an empty one names nothing.
            request_id: the engine's id.
            is_unique: no two requests ever share this key, so an earlier abort meant this one.
        """
        if not key:
            return False
        with self._lock:
            self._ids.setdefault(key, set()).add(request_id)
            self._keys[request_id] = key
            aborted_at = self._aborted.pop(key, None) if is_unique else None
        return aborted_at is not None and self.clock() - aborted_at < REMEMBER_SECONDS

    def forget(self, request_id: int) -> None:
        """Drop a request that has ended; unknown ids are fine."""
        with self._lock:
            key = self._keys.pop(request_id, None)
            if key is None:
                return
            self._ids[key].discard(request_id)
            if not self._ids[key]:
                del self._ids[key]

    def abort(self, key: str) -> list[int]:
        """Return the ids to abort for `key`; where there are none the key is remembered for a while."""
        with self._lock:
            ids = sorted(self._ids.get(key, ()))
            if not ids and key:
                self._aborted[key] = self.clock()
                self._aborted.move_to_end(key)
                if len(self._aborted) > MAX_REMEMBERED:
                    self._aborted.popitem(last=False)
        return ids
