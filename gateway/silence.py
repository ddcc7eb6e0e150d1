"""Which answers have stopped coming although nobody holds them up.

Knows how much each request has been given and when that last grew. Does not know instances or what is done about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.request import Request


@dataclass(slots=True)
class SilenceWatch:
    """Compares what has been delivered with what had been delivered at the last look."""

    seen: dict[Request, tuple[tuple[int, int] | None, float]] = field(default_factory=dict)  # its mark, and since when

    def stalled(self, requests: Iterable[Request], limit: float, now: float) -> list[Request]:
        """Return the requests that have been silent for more than `limit` seconds.

        A request whose client is slow is not silent: what it has is still on its way.
        """
        before, self.seen = self.seen, {}
        for request in requests:
            if request.can_resume and request.exchange.is_clear:
                mark = request.delivered_mark
                known = before.get(request)
                self.seen[request] = (mark, now) if known is None or known[0] != mark else known
        return [request for request, (_, since) in self.seen.items() if now - since > limit]
