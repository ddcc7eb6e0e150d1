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
from engine.text.token_bytes import TokenBytes
from engine.text.tokenizer import Tokenizer, TokenKind

if TYPE_CHECKING:
    import llguidance

BETWEEN_TOKENS = r"[ ]?|\n[ \t]{0,40}"  # of JSON: a space, or a new line and its indentation, but not blanks for ever


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
                self._tokenizer = _read_tokenizer(self._source)
        try:
            grammar = _grammar(guided)
        except ValueError as error:
            raise InvalidRequest(f"guided.{guided.kind} is not valid: {error}") from error
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise InvalidRequest(f"guided.{guided.kind} is not valid: {_first_line(matcher.get_error())}")
        num_words = -(-self._tokenizer.vocab_size // 32)
        guide = Guide(matcher, num_words, list(self._tokenizer.eos_tokens))
        try:
            self._try_one_token(guide.copy(), self._tokenizer.vocab_size)
        except RequestFailed as error:
            raise InvalidRequest(f"guided.{guided.kind} is not valid: {error}") from error
        return guide

    @staticmethod
    def _try_one_token(guide: Guide, vocab_size: int) -> None:
        """Let the guide take some token: a grammar that is far too large fails here, after a second, and not in a step.

        Raises:
            RequestFailed: it is too costly to follow.
        """
        allowed = guide.allowed(vocab_size, frozenset())
        if allowed.any():
            guide.accept(int(allowed.argmax()))


class _SpelledTokenizer:
    """What llguidance asks of a tokenizer whose file it cannot read, in its names: each token's bytes."""

    def __init__(self, source: Tokenizer) -> None:
        spell = TokenBytes(source)
        self.tokens = [spell(token_id) for token_id in range(source.vocab_size)]
        self.special_token_ids = [i for i in range(source.vocab_size) if source.kind(i) is TokenKind.INVISIBLE]
        self.bos_token_id = source.bos_id
        self.eos_token_id = min(source.eos_ids, default=len(self.tokens))
        if not source.eos_ids:
            self.tokens.append(b"")  # stands for an end that no model says
        ordinary = [i for i in range(source.vocab_size) if source.kind(i) is not TokenKind.INVISIBLE]
        self._ids = {self.tokens[token_id]: token_id for token_id in reversed(ordinary)}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes) -> list[int]:
        """Return ids for what a grammar forces, the longest token first: `encode` would put a space before it."""
        ids: list[int] = []
        while text:
            lengths = range(min(self._longest, len(text)), 0, -1)
            length = next((n for n in lengths if text[:n] in self._ids), 0)
            if not length:
                break
            ids.append(self._ids[text[:length]])
            text = text[length:]
        return ids


def _read_tokenizer(source: Tokenizer) -> "llguidance.LLTokenizer":
    """Return the vocabulary as guides want it; of some decoders (Metaspace alone) llguidance cannot make it itself."""
    import llguidance

    eos_ids = sorted(source.eos_ids) or None
    try:
        return llguidance.LLTokenizer(source.backend.to_str(), eos_token=eos_ids)
    except ValueError:
        wrapper = llguidance.TokenizerWrapper(_SpelledTokenizer(source))
        return llguidance.LLTokenizer(wrapper, eos_token=eos_ids)


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
    schema = {} if schema is True else schema  # which llguidance gives no options
    return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), {"whitespace_pattern": BETWEEN_TOKENS})


def _first_line(message: str) -> str:
    """Return an error without the parser's state and without the arrows that point into the source."""
    lines = [line.strip() for line in message.partition("<state>")[0].splitlines() if line.strip()]
    return " ".join(line for line in lines if set(line) - set("^ |"))[:500]
