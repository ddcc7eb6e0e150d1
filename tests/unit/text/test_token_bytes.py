"""A token's bytes: joined they are the text, also where a character is spread over several tokens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.token_bytes import TokenBytes
from engine.text.tokenizer import Tokenizer, TokenKind


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_bytes_of_byte_level_tokens_joined_are_the_text(byte_level: Tokenizer, text: str) -> None:
    bytes_of = TokenBytes(byte_level)
    ids = byte_level.encode(text, add_special_tokens=False)
    if all(byte_level.kind(i) is not TokenKind.INVISIBLE for i in ids):
        assert b"".join(map(bytes_of, ids)) == text.encode()


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="▁"), max_size=40))
def test_bytes_of_byte_fallback_tokens_joined_are_the_text_behind_one_space(
    byte_fallback: Tokenizer, text: str
) -> None:
    bytes_of = TokenBytes(byte_fallback)
    ids = byte_fallback.encode(text, add_special_tokens=False)
    if text and all(byte_fallback.kind(i) is not TokenKind.INVISIBLE for i in ids):
        assert b"".join(map(bytes_of, ids)) == b" " + text.encode()


def test_special_tokens_are_their_names_and_unknown_ones_nothing(byte_level: Tokenizer) -> None:
    bytes_of = TokenBytes(byte_level)
    special = byte_level.backend.token_to_id("<|im_end|>")
    assert special is not None
    assert bytes_of(special) == b"<|im_end|>"
    assert bytes_of(10**6) == b""
