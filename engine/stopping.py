"""When a sequence ends, and how much of it may be sent on.

Knows token ids, limits and the verdicts of a stop checker. Does not know tensors, tokenizers or other sequences.

Invariant: of several reasons that fall on one token, `stop` wins over `length`.
"""

from collections.abc import Iterable

from engine.outputs import FinishReason
from engine.sequence import Sequence, StopChecker


def append_token(sequence: Sequence, token_id: int) -> FinishReason | None:
    """Append one generated token, update what may be sent on, and return why the sequence ends here, if it does.

    Stop tokens are masked out before `min_tokens`, so that one that arrives counts; stop strings count from there on.
    A guide whose text is complete ends the sequence however short it is, since no token could follow.

    Raises:
        RequestFailed: the guide cannot follow the token.
    """
    sequence.add_token(token_id)
    num_output = sequence.num_output_tokens
    stopped = token_id in sequence.stop_token_ids and num_output > sequence.params.min_tokens
    if not stopped:
        stopped = _follow_guide(sequence, token_id)
        if sequence.stop_checker is not None:
            stopped = _check_stop_strings(sequence, sequence.stop_checker, token_id) or stopped
    if sequence.stop_checker is None:
        sequence.num_releasable = num_output
    reason = _finish_reason(sequence, stopped=stopped)
    if reason is not None:
        sequence.num_releasable = num_output
    return reason


def resume(sequence: Sequence, token_ids: Iterable[int]) -> FinishReason | None:
    """Append tokens that another engine made and that have been delivered; return why the sequence is over, if it is.

    Tokens behind one that ends the sequence are kept as well: they have been delivered.
    """
    first_reason = None
    for token_id in token_ids:
        reason = append_token(sequence, token_id)
        first_reason = first_reason or reason
    sequence.num_resumed = sequence.num_emitted = sequence.num_output_tokens
    sequence.num_releasable = max(sequence.num_releasable, sequence.num_emitted)
    sequence.trim_chars = 0
    return first_reason


def _follow_guide(sequence: Sequence, token_id: int) -> bool:
    if sequence.guide is None:
        return False
    sequence.guide.accept(token_id)
    return sequence.guide.is_over


def _check_stop_strings(sequence: Sequence, checker: StopChecker, token_id: int) -> bool:
    armed = sequence.num_output_tokens >= sequence.params.min_tokens
    result = checker.push([token_id], armed=armed)
    sequence.num_releasable = result.releasable
    if result.stopped:
        sequence.trim_chars = result.trim_chars
    return result.stopped


def _finish_reason(sequence: Sequence, *, stopped: bool) -> FinishReason | None:
    if stopped:
        return FinishReason.STOP
    return FinishReason.LENGTH if sequence.num_known_tokens >= sequence.max_total_tokens else None
