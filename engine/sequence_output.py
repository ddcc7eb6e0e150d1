"""What a sequence has gained since it last said something, as an output.

Knows sequences and the tokenizer. Does not know tensors, scheduling or where outputs go.
"""

from itertools import takewhile

from engine.outputs import RequestOutput
from engine.sequence import Sequence
from engine.text.tokenizer import Tokenizer

STOP_TOKEN_CONTEXT = 4


def take_output(sequence: Sequence, num_open: int) -> RequestOutput:
    """Return what may be sent on and has not been yet, which counts as sent from now on.

    Args:
        sequence: is changed.
        num_open: how many sequences of its request are open after this output.
    """
    start, end = sequence.num_emitted, sequence.num_releasable
    offset, resumed, params = sequence.num_prompt_tokens, sequence.num_resumed, sequence.params
    sequence.num_emitted = end
    knows_prompt = start == resumed and (params.prompt_logprobs or (params.echo and params.logprobs))
    return RequestOutput(
        request_id=sequence.request_id,
        token_ids=sequence.token_ids[offset + start : offset + end],
        log_probs=sequence.log_probs[start - resumed : end - resumed] if params.logprobs else None,
        top=sequence.top_tokens.places(start - resumed, end - resumed) if params.logprobs else None,
        prompt_log_probs=sequence.prompt_log_probs if knows_prompt else None,
        prompt_top=sequence.prompt_top if knows_prompt else None,
        sequence_index=sequence.index,
        num_open_sequences=num_open,
        finish_reason=sequence.finish_reason,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=min(sequence.num_cached_tokens, sequence.num_prompt_tokens),
        num_completion_tokens=sequence.num_output_tokens,
        num_preemptions=sequence.num_preemptions,
        num_draft_tokens=sequence.num_draft_tokens,
        num_accepted_tokens=sequence.num_accepted_tokens,
        trim_chars=sequence.trim_chars if sequence.is_finished else 0,
        timings=sequence.timings,
    )


def stop_token_chars(tokenizer: Tokenizer, sequence: Sequence) -> int:
    """Return how many characters the stop token at the end has a part in; they are not part of the answer."""
    end = sequence.num_known_tokens
    tail = sequence.token_ids[max(sequence.num_prompt_tokens, end - 1 - STOP_TOKEN_CONTEXT) : end]
    text, before = tokenizer.decode(tail), tokenizer.decode(tail[:-1])
    num_same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(text, before, strict=False))))
    return len(text) - num_same
