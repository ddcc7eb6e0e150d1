"""What clients see of a replica under a steady number of requests: batch, throughput, times.

Knows the cost of steps and the lengths of requests. Does not know layouts.

Clients ask again as soon as they are answered. In steps, a request is prefilled (one station, which gives what decodes
leave of a step's budget to one prompt after the other) and then decodes for one step a token (a delay). The mean values
of such a closed network follow from Little's law, by the estimate of Schweitzer and Bard (1979) of what an arriving
request finds. Every step makes one token of each decoding sequence; only a share of the steps carries prompts too.
"""

import math
from dataclasses import dataclass

from scripts.planner.step import StepLoad, StepModel

NUM_HALVINGS = 50


@dataclass(frozen=True, slots=True)
class Workload:
    """What each request is, and what the engine allows in a step.

    Attributes:
        prompt: tokens of a prompt.
        output: tokens of an answer.
        max_num_seqs: most sequences in a step.
        token_budget: most tokens in a step.
    """

    prompt: int
    output: int
    max_num_seqs: int
    token_budget: int

    @property
    def mean_context(self) -> float:
        """Tokens before the one that is decoded, on average over an answer."""
        return self.prompt + self.output / 2


@dataclass(frozen=True, slots=True)
class Steady:
    """What a replica does under a steady number of requests.

    Attributes:
        batch: requests in it; others wait outside.
        num_decodes: of them, decoding in a step.
        tokens_per_s: tokens that it makes.
        ttft_s: until a request's first token, waiting included.
        itl_s: between two tokens.
        e2e_s: until its last token.
        wait_s: of the first, waiting for a place in the batch.
    """

    batch: float
    num_decodes: float
    tokens_per_s: float
    ttft_s: float
    itl_s: float
    e2e_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class _Flow:
    """The closed network's answer, in steps.

    Attributes:
        rate: requests that end in a step.
        prefill: steps of a request until its first token.
        decode: steps from then to its last.
        room: tokens that decodes leave to prompts.
    """

    rate: float
    prefill: float
    decode: float
    room: float


def steady(step: StepModel, work: Workload, in_flight: float, largest_batch: float) -> Steady:
    """Return what a replica with `in_flight` requests does, of which at most `largest_batch` are computed at once."""
    batch = min(in_flight, largest_batch)
    flow = _solve(work, batch)
    share, tokens = _prompt_steps(work, flow)
    decodes = flow.rate * flow.decode
    plain = step.cost(StepLoad(decodes, work.mean_context)).seconds if decodes else 0.0
    mixed = step.cost(StepLoad(decodes, work.mean_context, tokens, work.prompt / 2)).seconds
    mean = share * mixed + (1.0 - share) * plain
    inside = batch * mean / flow.rate  # Little's law: seconds of a request in the batch
    prefill = min(flow.prefill * mixed, inside)
    wait = (in_flight - batch) * mean / flow.rate
    return Steady(
        batch=batch,
        num_decodes=decodes,
        tokens_per_s=flow.rate * work.output / mean,
        ttft_s=wait + prefill,
        itl_s=(inside - prefill) / flow.decode if flow.decode else 0.0,
        e2e_s=wait + inside,
        wait_s=wait,
    )


def _solve(work: Workload, batch: float) -> _Flow:
    """Find the number of decodes that leaves the room in which prompts keep up with it."""
    low, high = 0.0, min(batch, work.token_budget - 1.0)
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        flow = _flow(work, batch, middle)
        if flow.rate * flow.decode > middle:
            low = middle
        else:
            high = middle
    return _flow(work, batch, (low + high) / 2)


def _flow(work: Workload, batch: float, decodes: float) -> _Flow:
    room = work.token_budget - decodes
    service = work.prompt / room
    decode = work.output - 1.0
    rest = max(0.0, 1.0 - service)  # a prompt takes a step, however little of it
    others, away = max(0.0, batch - 1.0), decode + rest
    surplus = (1.0 + others) * service - away
    at_station = (surplus + math.sqrt(surplus**2 + 4.0 * service * away)) / 2
    return _Flow(batch / (at_station + away), at_station + rest, decode, room)


def _prompt_steps(work: Workload, flow: _Flow) -> tuple[float, float]:
    """Return the share of steps that carry prompts, and how many of their tokens each of these does."""
    tokens = flow.rate * work.prompt  # of an average step
    share = min(1.0, max(tokens / flow.room, 1.0 - math.exp(-flow.rate)))
    return share, tokens / share
