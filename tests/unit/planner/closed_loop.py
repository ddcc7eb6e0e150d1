"""The engine's steps, one after the other, under clients that ask again at once or all at one time: what the planner's
formulas and measured bursts are compared with. Knows the cost of a step. Does not know the formulas.
"""

import statistics
from collections import deque
from dataclasses import dataclass, field

from scripts.planner.load import Workload
from scripts.planner.step import StepLoad, StepModel


@dataclass
class Request:
    """One request on its way."""

    arrived: float
    left: int  # of its prompt
    made: int = 0
    first: float = 0.0
    ended: float = 0.0


@dataclass
class Engine:
    """Requests that are computed; decodes come first, then what the budget leaves of prompts, in order of arrival."""

    step: StepModel
    work: Workload
    now: float = 0.0
    running: list[Request] = field(default_factory=list[Request])

    def ask(self) -> None:
        """Take one more request."""
        self.running.append(Request(self.now, self.work.prompt))

    def advance(self) -> list[Request]:
        """Compute one step and return whose answers end in it."""
        work = self.work
        decoding = [each for each in self.running if not each.left][: work.max_num_seqs]
        room, chunks, computed = work.token_budget - len(decoding), [], 0.0
        for each in [each for each in self.running if each.left][: work.max_num_seqs - len(decoding)]:
            chunk = min(each.left, room)
            room -= chunk
            computed += chunk * (work.prompt - each.left + chunk / 2)
            chunks.append((each, chunk))
        tokens = sum(chunk for _, chunk in chunks)
        context = sum(work.prompt + each.made for each in decoding) / max(1, len(decoding))
        load = StepLoad(len(decoding), context, tokens, computed / tokens if tokens else 0.0)
        self.now += self.step.cost(load).seconds
        for each in decoding:
            each.made += 1
        for each, chunk in chunks:
            each.left -= chunk
            if not each.left:
                each.made, each.first = 1, self.now
        ended = [each for each in self.running if each.made == work.output]
        for each in ended:
            each.ended = self.now
        self.running = [each for each in self.running if each.made < work.output]
        return ended


def simulate(step: StepModel, work: Workload, in_flight: int, num_answers: int) -> tuple[float, float, float]:
    """Return tokens a second, the mean time to the first token and between tokens, after a warm-up of half the answers.

    Starts are spread over the first answer's time, as random lengths would do.
    """
    engine, starts = Engine(step, work), deque(range(0, in_flight * work.output, work.output))
    ended: list[Request] = []
    number = 0
    while len(ended) < num_answers:
        while starts and starts[0] <= number * in_flight:
            starts.popleft()
            engine.ask()
        number += 1
        for each in engine.advance():
            ended.append(each)
            engine.ask()
    steady = ended[num_answers // 2 :]
    rate = len(steady) * work.output / (steady[-1].ended - ended[num_answers // 2 - 1].ended)
    ttft = statistics.mean(each.first - each.arrived for each in steady)
    itl = statistics.mean(each.ended - each.first for each in steady) / (work.output - 1)
    return rate, ttft, itl


def burst(step: StepModel, work: Workload, number: int) -> tuple[float, float, float]:
    """Return tokens a second and the medians of the same times where all requests come at once and none follow."""
    engine = Engine(step, work)
    for _ in range(number):
        engine.ask()
    ended: list[Request] = []
    while engine.running:
        ended += engine.advance()
    ttft = statistics.median(each.first for each in ended)
    itl = statistics.median((each.ended - each.first) / (work.output - 1) for each in ended)
    return number * work.output / engine.now, ttft, itl
