"""Why sequences end, and what may be sent on while they run."""

from dataclasses import dataclass

from engine.outputs import FinishReason
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.stopping import append_token


@dataclass
class Verdict:
    releasable: int
    stopped: bool = False
    trim_chars: int = 0


class ScriptedChecker:
    """Says what it was told to say, and remembers when it was armed."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.armed: list[bool] = []

    def push(self, token_ids: list[int], *, armed: bool = True) -> Verdict:
        self.armed.append(armed)
        return self.verdicts.pop(0)


def make_sequence(params: SamplingParams, max_total: int = 10, checker: ScriptedChecker | None = None) -> Sequence:
    return Sequence(1, [1, 2], 2, params, max_total, frozenset({0}), stop_checker=checker)


def test_a_stop_token_ends_the_sequence() -> None:
    sequence = make_sequence(SamplingParams())
    assert append_token(sequence, 5) is None
    assert append_token(sequence, 0) is FinishReason.STOP
    assert sequence.num_releasable == 2


def test_the_length_limit_ends_the_sequence_and_a_stop_on_the_last_token_is_a_stop() -> None:
    assert append_token(make_sequence(SamplingParams(), max_total=3), 5) is FinishReason.LENGTH
    assert append_token(make_sequence(SamplingParams(), max_total=3), 0) is FinishReason.STOP


def test_text_that_may_become_a_stop_string_is_held_back_and_released_at_the_end() -> None:
    sequence = make_sequence(
        SamplingParams(stop=("x",)), max_total=5, checker=ScriptedChecker(Verdict(1), Verdict(1), Verdict(1))
    )
    assert append_token(sequence, 5) is None
    assert append_token(sequence, 6) is None
    assert sequence.num_releasable == 1
    assert append_token(sequence, 7) is FinishReason.LENGTH
    assert sequence.num_releasable == 3


def test_a_stop_string_ends_the_sequence_and_trims_its_text() -> None:
    sequence = make_sequence(
        SamplingParams(stop=("x",)), checker=ScriptedChecker(Verdict(1, stopped=True, trim_chars=4))
    )
    assert append_token(sequence, 5) is FinishReason.STOP
    assert sequence.trim_chars == 4


def test_stop_strings_count_from_min_tokens_on() -> None:
    checker = ScriptedChecker(Verdict(1), Verdict(2), Verdict(3))
    sequence = make_sequence(SamplingParams(stop=("x",), min_tokens=2), checker=checker)
    for token in (5, 6, 7):
        append_token(sequence, token)
    assert checker.armed == [False, True, True]
