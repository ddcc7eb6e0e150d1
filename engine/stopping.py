"""When a sequence ends, and how much of it may be sent on.

Knows token ids, limits and the verdicts of a stop checker. Does not know tensors, tokenizers or other sequences.

Invariant: of several reasons that fall on one token, `stop` wins over `length`.
"""

from engine.outputs import FinishReason
from engine.sequence import Sequence


def append_token(sequence: Sequence, token_id: int) -> FinishReason | None:
    """Append one generated token, update what may be sent on, and return why the sequence ends here, if it does.

    Stop tokens are masked out before `min_tokens`, so that one that arrives counts; stop strings count from there on.
    """
    sequence.token_ids.append(token_id)
    num_output = sequence.num_output_tokens
    stopped = token_id in sequence.stop_token_ids and num_output > sequence.params.min_tokens
    if sequence.stop_checker is None:
        sequence.num_releasable = num_output
    elif not stopped:
        stopped = _check_stop_strings(sequence, token_id)
    reason = _finish_reason(sequence, stopped=stopped)
    if reason is not None:
        sequence.num_releasable = num_output
    return reason


def _check_stop_strings(sequence: Sequence, token_id: int) -> bool:
    assert sequence.stop_checker is not None
    armed = sequence.num_output_tokens >= sequence.params.min_tokens
    result = sequence.stop_checker.push([token_id], armed=armed)
    sequence.num_releasable = result.releasable
    if result.stopped:
        sequence.trim_chars = result.trim_chars
    return result.stopped


def _finish_reason(sequence: Sequence, *, stopped: bool) -> FinishReason | None:
    if stopped:
        return FinishReason.STOP
    return FinishReason.LENGTH if sequence.num_tokens >= sequence.max_total_tokens else None
