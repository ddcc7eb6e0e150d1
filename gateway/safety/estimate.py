"""How many tokens a request will take, before anybody has counted them.

Knows the sizes of tensors. Does not know a tokenizer: text is taken as four bytes a token, and what was really used is
charged when the request has ended.
"""

import json
from typing import Any

from gateway.tensors import int_of, read_inputs, texts_of
from gateway.wire.protobuf import MalformedMessage

BYTES_PER_TOKEN = 4
BYTES_PER_ID = 4


def estimate_tokens(request: bytes, assumed_completion: int) -> int:
    """Return prompt and completion tokens of an encoded request, of which what it does not say is assumed."""
    try:
        inputs = read_inputs(request)
    except MalformedMessage:
        return assumed_completion  # the instance will refuse it
    text = len(inputs.get("text_input", b"")) + len(inputs.get("messages", b""))
    prompt = -(-text // BYTES_PER_TOKEN) + len(inputs.get("input_ids", b"")) // BYTES_PER_ID
    options = _options(inputs.get("sampling_parameters", b""))
    completion = int_of(inputs, "max_tokens") or _positive(options.get("max_tokens")) or assumed_completion
    sequences = int_of(inputs, "num_return_sequences") or _positive(options.get("n")) or 1
    return prompt + max(1, completion) * max(1, sequences)


def _options(raw: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(texts_of(raw)[0]) if raw else {}
    except (ValueError, MalformedMessage, IndexError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
