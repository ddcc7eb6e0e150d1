"""One reply as the arrays that docs/protocol.md names.

Knows names, types and which of them a reply needs. Does not know Triton or text.

Invariant: a sequence's first and last reply hold every fact about it; those in between hold its tokens, where they
stand and the counts, and what the request asked for. Each array of a response costs 20 us of CPU on its way through an
ensemble (measured with Triton 2.51: 458 us with 11, 350 us with 5 of them), and long answers are mostly middle.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from engine.reply_stream import Reply
from engine.text.text_window import pack_window


@dataclass(slots=True)
class ReplyTensors:
    """Makes the arrays of one request's replies.

    Attributes:
        bytes_of: the bytes that a token stands for.
        received_ns: when pre-processing had the request, in ns since 1970; 0 where it was not so.
        num_sequences: how many sequences the request has.
    """

    bytes_of: Callable[[int], bytes]
    received_ns: int = 0
    num_sequences: int = 1
    _begun: set[int] = field(default_factory=set)

    def arrays(self, reply: Reply) -> dict[str, np.ndarray]:
        """Return a reply's arrays by name; to be called once for each reply, in order."""
        index = reply.last.sequence_index
        arrays = _tokens(reply) | _extras(reply, self.bytes_of)
        if self.num_sequences > 1:
            arrays["sequence_index"] = _ints(index)
        if index not in self._begun or reply.last.finish_reason is not None:
            arrays |= _facts(reply)
            arrays["clock_ns"] = np.array([self.received_ns, _wall_ns(reply.last.timings.arrived)], dtype=np.int64)
        self._begun.add(index)
        return arrays


def _tokens(reply: Reply) -> dict[str, np.ndarray]:
    return {
        "text_window": _ints(*pack_window(reply.chunk, reply.last.trim_chars)),
        "token_ids": _ints(*reply.chunk.token_ids),
        "finish_reason": _texts((reply.last.finish_reason or "").encode()),
        "token_index": _ints(reply.token_index),
        "prompt_tokens": _ints(reply.last.num_prompt_tokens),
        "completion_tokens": _ints(reply.num_completion_tokens),
    }


def _extras(reply: Reply, bytes_of: Callable[[int], bytes]) -> dict[str, np.ndarray]:
    """Return what only some requests ask for, where there is any of it."""
    made = {
        "log_probs": _floats(*reply.log_probs),
        "token_bytes": _texts(*map(bytes_of, reply.chunk.token_ids if reply.log_probs else ())),
        "top_token_bytes": _texts(*map(bytes_of, reply.top.token_ids)),
        "top_token_ids": _ints(*reply.top.token_ids),
        "top_log_probs": _floats(*reply.top.log_probs),
        "prompt_log_probs": _floats(*reply.prompt_log_probs),
    }
    if reply.last.embedding is not None:
        made["embedding"] = reply.last.embedding
    if reply.last.adapters is not None:
        made["adapters"] = _texts(reply.last.adapters.encode())
    return {name: array for name, array in made.items() if array.size}


def _facts(reply: Reply) -> dict[str, np.ndarray]:
    last, times = reply.last, reply.last.timings
    drafts = {"draft_tokens": _ints(last.num_draft_tokens, last.num_accepted_tokens)} if last.num_draft_tokens else {}
    return drafts | {
        "cached_tokens": _ints(last.num_cached_tokens),
        "preemptions": _ints(last.num_preemptions),
        "queue_seconds": _floats(times.scheduled - times.arrived if times.scheduled else 0.0),
        "ttft_seconds": _floats(times.first_token - times.arrived if times.first_token else 0.0),
        "e2e_seconds": _floats(times.finished - times.arrived if times.finished else 0.0),
        "detokenize_seconds": _floats(reply.detokenize_seconds),
    }


def _ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def _texts(*values: bytes) -> np.ndarray:
    return np.array(values, dtype=np.object_)


def _floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def _wall_ns(monotonic: float) -> int:
    """Return an instant of the monotonic clock, in seconds, on the wall clock that other processes know; 0 for none."""
    return time.time_ns() - time.monotonic_ns() + round(1e9 * monotonic) if monotonic else 0
