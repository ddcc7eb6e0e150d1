"""How much service each tenant has had, so that the one with the least, by weight, comes next.

Knows tenants' names, weights and token counts. Does not know sequences or queues.

The virtual token counter of *Fairness in Serving Large Language Models* (arXiv 2401.00588): every token served adds its
cost divided by the tenant's weight; a tenant that comes back after having had nothing to do is lifted, so that idleness
saves up no claim. We lift to the mean of the active tenants' counters where the paper takes the smallest: while tenants
stay the bound is of the same order, and an endless row of new tenants cannot hold an old one back for ever.

Invariants:
1. Counters only grow while a tenant is active.
2. At most `MAX_IDLE` idle tenants are remembered; the one idle for longest is forgotten first.
"""

PROMPT_TOKEN_COST = 1.0
OUTPUT_TOKEN_COST = 2.0
MAX_IDLE = 4096


class TenantShares:
    """Virtual counters of the tenants. A tenant is active while it has requests that have not ended."""

    def __init__(self) -> None:
        """Start without tenants."""
        self._active: dict[str, float] = {}
        self._num_open: dict[str, int] = {}
        self._weights: dict[str, int] = {}
        self._idle: dict[str, float] = {}
        self._last_left = 0.0

    def __getitem__(self, tenant: str) -> float:
        """Return an active tenant's counter, in weighted tokens."""
        return self._active[tenant]

    @property
    def num_active(self) -> int:
        """Tenants with requests."""
        return len(self._active)

    def join(self, tenant: str, weight: int) -> None:
        """Note one more request of a tenant, and its weight from now on."""
        self._weights[tenant] = weight
        self._num_open[tenant] = self._num_open.get(tenant, 0) + 1
        if tenant not in self._active:
            own = self._idle.pop(tenant, 0.0)
            self._active[tenant] = max(own, self._level())

    def leave(self, tenant: str) -> None:
        """Note that one request of a tenant has ended."""
        self._num_open[tenant] -= 1
        if self._num_open[tenant]:
            return
        del self._num_open[tenant], self._weights[tenant]
        self._last_left = self._idle[tenant] = self._active.pop(tenant)
        if len(self._idle) > MAX_IDLE:
            del self._idle[next(iter(self._idle))]

    def charge(self, tenant: str, cost: float) -> None:
        """Book service of an active tenant; `cost` in tokens of a prompt."""
        self._active[tenant] += cost / self._weights[tenant]

    def _level(self) -> float:
        return sum(self._active.values()) / len(self._active) if self._active else self._last_left
