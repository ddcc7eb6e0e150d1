"""Measuring which configuration of a kernel is the fastest for each class of sizes.

Knows cases, a timer and the choices of `kernels.tuning`. Does not know what configurations mean, nor where results are
kept. A class is measured by all cases that ask for it, each relative to the literal configuration.

Invariants:
1. A configuration that fails, or whose answer is not the reference's, is not chosen.
2. One that is not faster by `LEAST_GAIN` is not chosen: the literal one stays.
3. Afterwards the kernels take what was chosen.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernels import tuning
from kernels.tuning import Choices, Chosen, Configuration
from scripts.kernel_cases.case import Case
from scripts.kernel_cases.survey import Survey

LEAST_GAIN = 0.03  # of the time; less is noise


@dataclass(slots=True, frozen=True)
class Finding:
    """What was chosen for one class.

    Attributes:
        op: the operation.
        size_class: the class.
        chosen: the configuration.
        literal: the one that the sources name.
        gain: the literal one's time over the chosen one's, the geometric mean of the cases.
    """

    op: str
    size_class: str
    chosen: Configuration
    literal: Configuration
    gain: float

    def __str__(self) -> str:
        """Say it in a line."""
        kept = "kept" if self.chosen == self.literal else f"instead of {self.literal}, {self.gain:.2f} times as fast"
        return f"tuned  {self.op}, {self.size_class}: {self.chosen} {kept}"


def tune(survey: Survey, cases: Sequence[Case]) -> Iterator[Finding]:
    """Measure every class that the cases ask for and that has a choice, while time is left."""
    for op in tuning.OPS:
        choices = tuning.choices_of(op)
        by_class = _cases_by_class(survey, choices, [case for case in cases if case.op == op])
        for size_class, asking in by_class.items():
            if not survey.is_time_left():
                return
            if len(choices.options[size_class]) > 1:
                yield _tune_class(survey, choices, size_class, asking)


def chosen_of(findings: Sequence[Finding]) -> Chosen:
    """Return what `kernels.tuning` keeps of these findings: what differs from the sources."""
    chosen: Chosen = {}
    for finding in findings:
        if finding.chosen != finding.literal:
            chosen.setdefault(finding.op, {})[finding.size_class] = finding.chosen
    return chosen


def _cases_by_class(survey: Survey, choices: Choices, cases: Sequence[Case]) -> dict[str, list[Case]]:
    by_class: dict[str, list[Case]] = {}
    for case in cases:
        choices.asked.clear()
        if survey.seconds(case, survey.kind) < math.inf:
            for size_class in sorted(choices.asked):
                by_class.setdefault(size_class, []).append(case)
    return by_class


def _tune_class(survey: Survey, choices: Choices, size_class: str, cases: list[Case]) -> Finding:
    literal, *others = choices.options[size_class]
    choices.tuned[size_class] = literal
    base = [survey.seconds(case, survey.kind) for case in cases]
    best, best_share = literal, 1.0 - LEAST_GAIN
    for configuration in others:
        choices.tuned[size_class] = configuration
        share = _mean_share([survey.seconds(case, survey.kind) for case in cases], base)
        if share < best_share and all(result.is_correct for result in survey.check(cases)):
            best, best_share = configuration, share
    choices.tuned[size_class] = best
    return Finding(cases[0].op, size_class, best, literal, 1.0 if best == literal else 1.0 / best_share)


def _mean_share(seconds: Sequence[float], base: Sequence[float]) -> float:
    return math.exp(sum(math.log(one / other) for one, other in zip(seconds, base, strict=True)) / len(base))
