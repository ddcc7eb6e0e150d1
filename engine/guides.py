"""Keeps a completion to a grammar: which tokens may come next, and whether the text is complete.

Knows the tokenizer's file, grammars and token ids, through llguidance (no torch). Does not know logits or requests.

Invariants:
1. A token that a guide allows can be followed by others up to a complete text.
2. Tokens that end sequences are allowed where the text is complete, and nowhere else.
3. A grammar that cannot be compiled within llguidance's limits is refused; the message says where it is wrong.
"""

import json
import threading
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import InvalidRequest, RequestFailed
from engine.guided_options import Guided
from engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance


class Guide:
    """Where one completion is in its grammar."""

    def __init__(self, matcher: "llguidance.LLMatcher", num_words: int, eos_ids: list[int]) -> None:
        """Begin at the empty text; a mask of the vocabulary has `num_words` words of 32 bits."""
        self._matcher = matcher
        self._num_words = num_words
        self._eos_ids = eos_ids

    @property
    def is_over(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def accept(self, token_id: int) -> None:
        """Take the token that came next.

        Raises:
            RequestFailed: it is not allowed here, or the grammar has become too costly to follow.
        """
        if not self._matcher.consume_token(token_id):
            raise RequestFailed(f"the guide does not allow token {token_id}: {_first_line(self._matcher.get_error())}")

    def allowed(self, vocab_size: int, stop_token_ids: frozenset[int]) -> np.ndarray:
        """Return which tokens may come next, bool [vocab_size].

        Raises:
            RequestFailed: the grammar has become too costly to follow.
        """
        words = np.zeros(self._num_words, dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            raise RequestFailed(f"the guide cannot go on: {_first_line(self._matcher.get_error())}")
        found = np.unpackbits(words.view(np.uint8), bitorder="little")[:vocab_size].view(np.bool_)
        mask = np.zeros(vocab_size, dtype=np.bool_)
        mask[: len(found)] = found
        mask[self._eos_ids] = False
        mask[list(stop_token_ids)] = self._matcher.is_accepting()
        return mask

    def copy(self) -> "Guide":
        """Return another guide at the same place."""
        return Guide(self._matcher.deep_copy(), self._num_words, self._eos_ids)


class GuideFactory:
    """Compiles guides for one tokenizer; safe to use from several threads, and costs nothing until it is used."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare; the tokenizer's vocabulary is read when the first guide is made."""
        self._source = tokenizer
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def make(self, guided: Guided) -> Guide:
        """Compile a guide; other threads run meanwhile.

        Raises:
            InvalidRequest: the grammar is not valid, or too large.
        """
        import llguidance  # here, so that an engine that guides nothing starts without it

        with self._lock:
            if self._tokenizer is None:
                eos_ids = sorted(self._source.eos_ids) or None
                self._tokenizer = llguidance.LLTokenizer(self._source.backend.to_str(), eos_token=eos_ids)
        try:
            grammar = _grammar(guided)
        except ValueError as error:
            raise InvalidRequest(f"guided.{guided.kind} is not valid: {error}") from error
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise InvalidRequest(f"guided.{guided.kind} is not valid: {_first_line(matcher.get_error())}")
        num_words = -(-self._tokenizer.vocab_size // 32)
        return Guide(matcher, num_words, list(self._tokenizer.eos_tokens))


def _grammar(guided: Guided) -> str:
    import llguidance

    if guided.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(guided.source)
    if guided.kind == "ebnf":
        return llguidance.grammar_from("ebnf", guided.source)
    if guided.kind == "choice":
        choices = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(guided.source))
        return llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(choices))
    schema = {"type": "object"} if guided.kind == "json_object" else json.loads(guided.source)  # says where it is wrong
    return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))


def _first_line(message: str) -> str:
    """Return an error without the parser's state and without the arrows that point into the source."""
    lines = [line.strip() for line in message.partition("<state>")[0].splitlines() if line.strip()]
    return " ".join(line for line in lines if set(line) - set("^ |"))[:500]
