"""The bytes that a token stands for, whatever its neighbours are.

Knows how decoders of tokenizer.json spell bytes. Does not know requests.

Invariant: the bytes of a text's visible tokens, joined, are the text, save for what a decoder strips at a text's begin.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from engine.text.tokenizer import Tokenizer

BYTE_TOKEN_CHARS = 6  # <0xE4>
Step = Callable[[str], bytes | str]


class TokenBytes:
    """Looks tokens up, and remembers them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read how this tokenizer decodes."""
        self._backend = tokenizer.backend
        self._added = {index: token.content for index, token in self._backend.get_added_tokens_decoder().items()}
        decoder = json.loads(self._backend.to_str()).get("decoder") or {}
        self._steps = [step for part in _parts(decoder) if (step := _step(part)) is not None]
        self._known: dict[int, bytes] = {}

    def __call__(self, token_id: int) -> bytes:
        """Return the bytes of a token, those of its name where it is a special one; none of an unknown one."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        spelled: bytes | str = self._backend.id_to_token(token_id) or ""
        for step in self._steps:
            if isinstance(spelled, str):
                spelled = step(spelled)
        return spelled if isinstance(spelled, bytes) else spelled.encode()


def _parts(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]


def _step(part: dict[str, Any]) -> Step | None:
    """Return what one decoder does to a single token; None where that is nothing."""
    match part.get("type"):
        case "ByteLevel":
            return _from_byte_level
        case "ByteFallback":
            return _from_byte_token
        case "Metaspace":
            return lambda text: text.replace(part["replacement"], " ")
        case "Replace" if "String" in part["pattern"]:
            return lambda text: text.replace(part["pattern"]["String"], part["content"])
    return None


def _from_byte_token(text: str) -> bytes | str:
    if len(text) == BYTE_TOKEN_CHARS and text.startswith("<0x") and text.endswith(">"):
        return bytes.fromhex(text[3:5])
    return text


def _from_byte_level(text: str) -> bytes | str:
    table = _byte_level_table()
    return bytes(table[char] for char in text) if all(char in table for char in text) else text


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """Return the byte of each character: printable ones of Latin-1 are themselves, the others follow from U+0100 on.

    Source: `bytes_to_unicode` of GPT-2 (Radford et al. 2019).
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
