"""The engine's steps under clients that ask again at once, one step after the other: what the planner's formulas are
compared with. Knows the cost of a step. Does not know the formulas.
"""

from collections import deque
from dataclasses import dataclass

from scripts.planner.load import Workload
from scripts.planner.step import StepLoad, StepModel


@dataclass
class Request:
    """One request on its way."""

    arrived: float
    left: int  # of its prompt
    made: int = 0
    first: float = 0.0


def simulate(step: StepModel, work: Workload, in_flight: int, num_answers: int) -> tuple[float, float, float]:
    """Return tokens a second, the mean time to the first token and between tokens, after a warm-up of half the answers.

    Decodes come first, then what the budget leaves of prompts, in order of arrival. Starts are spread over the first
    answer's time, as random lengths would do.
    """
    now, ended, starts = 0.0, [], deque(range(0, in_flight * work.output, work.output))
    running: list[Request] = []
    number = 0
    while len(ended) < num_answers:
        while starts and starts[0] <= number * in_flight:
            starts.popleft()
            running.append(Request(now, work.prompt))
        number += 1
        decoding = [each for each in running if not each.left][: work.max_num_seqs]
        room, chunks, computed = work.token_budget - len(decoding), [], 0.0
        for each in [each for each in running if each.left][: work.max_num_seqs - len(decoding)]:
            chunk = min(each.left, room)
            room -= chunk
            computed += chunk * (work.prompt - each.left + chunk / 2)
            chunks.append((each, chunk))
        tokens = sum(chunk for _, chunk in chunks)
        context = sum(work.prompt + each.made for each in decoding) / max(1, len(decoding))
        now += step.cost(StepLoad(len(decoding), context, tokens, computed / tokens if tokens else 0.0)).seconds
        for each in decoding:
            each.made += 1
        for each, chunk in chunks:
            each.left -= chunk
            if not each.left:
                each.made, each.first = 1, now
        for each in [each for each in running if each.made == work.output]:
            running.remove(each)
            ended.append((each.arrived, each.first, now))
            running.append(Request(now, work.prompt))
    steady = ended[num_answers // 2 :]
    rate = len(steady) * work.output / (steady[-1][2] - ended[num_answers // 2 - 1][2])
    ttft = sum(first - arrived for arrived, first, _ in steady) / len(steady)
    itl = sum(end - first for _, first, end in steady) / len(steady) / (work.output - 1)
    return rate, ttft, itl
