"""The ledger of one request: when it entered each stage on its way, in nanoseconds of the wall clock.

Knows stages, and how the engine's clock and durations fit between the gateway's own marks. Pure. Clocks of several
machines agree only as well as they are kept.
"""

from dataclasses import dataclass
from itertools import pairwise

STAGES = ("gateway_in", "routed", "triton_in", "queued", "prefill", "decode", "detokenize", "gateway_out")
HOPS = {  # stage -> what is done from its mark to the next one
    "gateway_in": "admission and routing",
    "routed": "to Triton",
    "triton_in": "pre-processing",
    "queued": "waiting in the engine",
    "prefill": "prefill",
    "decode": "decode",
    "detokenize": "detokenize and back",
}


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """What the engine says of a finished request: two instants in ns, durations in seconds since the second one.

    `triton_in_ns` is 0 where no pre-processing was asked for, a duration where the request did not come so far: an
    embedding has no first token, and what a deadline ended early no first step.
    """

    triton_in_ns: int
    engine_in_ns: int
    queue_seconds: float
    ttft_seconds: float
    e2e_seconds: float


Ledger = dict[str, int]


def make_ledger(gateway_in: int, routed: int, gateway_out: int, engine: EngineTimes | None) -> Ledger:
    """Return the known marks by stage, in the order of `STAGES`; 0 for `routed` means that it never was."""
    ledger = {"gateway_in": gateway_in}
    if routed:
        ledger["routed"] = routed
    if engine is not None:
        end = engine.e2e_seconds
        since = {"prefill": engine.queue_seconds or end, "decode": engine.ttft_seconds or end, "detokenize": end}
        if engine.triton_in_ns:
            ledger["triton_in"] = engine.triton_in_ns
        ledger["queued"] = engine.engine_in_ns
        ledger |= {stage: engine.engine_in_ns + round(1e9 * seconds) for stage, seconds in since.items()}
    return ledger | {"gateway_out": gateway_out}


def durations(ledger: Ledger) -> dict[str, int] | None:
    """Return how long each stage took, in ns, or None of a ledger that lacks one."""
    if any(stage not in ledger for stage in STAGES):
        return None
    return {stage: ledger[after] - ledger[stage] for stage, after in pairwise(STAGES)}
