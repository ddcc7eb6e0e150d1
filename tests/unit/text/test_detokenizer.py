"""Chunks cut anywhere the cutter allows, joined, are the text decoded at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.detokenizer import MAX_HELD, MIN_CONTEXT, ChunkCutter, chunk_text
from engine.text.tokenizer import Tokenizer

HARD_TEXTS = [
    "Hello world,  two  spaces\nand lines\n\n",
    "👨‍👩‍👧‍👦🏳️‍🌈👩🏽‍🚀" * 4,
    "你好世界。日本語のテキスト ทดสอบ မြန်မာ",
    "😀 a😀b 😀\n😀",
    "".join(chr(c) for c in (*range(1, 300), 0x7FF, 0x800, 0xFFFD, 0xFFFF, 0x10000, 0x10FFFF)),
]
quick = settings(max_examples=150, deadline=None)
texts = st.one_of(
    st.sampled_from(HARD_TEXTS),
    st.text(max_size=60),
    st.lists(st.sampled_from(["👨‍👩‍👧", "é", "世", " ", "a", "\n", "the", "🏳️‍🌈"])).map("".join),
)


def stream(tokenizer: Tokenizer, token_ids: list[int], sizes: list[int]) -> list[str]:
    """Push the tokens in groups of the given sizes, cutting after each, and return the chunks' texts."""
    cutter = ChunkCutter(tokenizer)
    chunks: list[str] = []
    position = 0
    for size in [*sizes, len(token_ids)]:
        group = token_ids[position : position + size]
        position += len(group)
        cutter.push(group)
        chunk = cutter.cut(final=position >= len(token_ids))
        assert len(chunk.context_ids) <= MAX_HELD + MIN_CONTEXT
        chunks.append(chunk_text(tokenizer, chunk.token_ids, chunk.context_ids))
        if position >= len(token_ids):
            break
    return chunks


@quick
@given(text=texts, sizes=st.lists(st.integers(1, 9), max_size=40))
def test_chunks_of_any_text_join_to_its_full_decode(tokenizer: Tokenizer, text: str, sizes: list[int]):
    ids = tokenizer.encode(text, add_special_tokens=False)
    chunks = stream(tokenizer, ids, sizes or [1] * len(ids))
    assert "".join(chunks) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_one_token_at_a_time_joins_to_the_full_decode_for_every_hard_text(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text, add_special_tokens=False)
    chunks = stream(tokenizer, ids, [1] * len(ids))
    assert "".join(chunks) == tokenizer.decode(ids)
    assert tokenizer.decode(ids) == text or tokenizer.joins_runs


@quick
@given(data=st.data())
def test_chunks_of_random_tokens_join_to_their_full_decode(tokenizer: Tokenizer, data: st.DataObject):
    known = tokenizer.vocab_size
    ids = data.draw(st.lists(st.integers(0, known + 3), max_size=MAX_HELD))
    sizes = data.draw(st.lists(st.integers(1, 9), max_size=MAX_HELD))
    assert "".join(stream(tokenizer, ids, sizes or [1] * len(ids))) == tokenizer.decode(ids)


@quick
@given(data=st.data())
def test_every_byte_at_any_place_joins_to_the_full_decode(tokenizer: Tokenizer, data: st.DataObject):
    singles = [i for i in range(tokenizer.vocab_size) if len(tokenizer.backend.id_to_token(i) or "") in (1, 6)]
    ids = data.draw(st.lists(st.sampled_from(singles), max_size=MAX_HELD))
    assert "".join(stream(tokenizer, ids, [1] * len(ids))) == tokenizer.decode(ids)


def test_a_chunk_never_shows_half_a_character_while_more_may_come(tokenizer: Tokenizer):
    ids = tokenizer.encode("ab😀cd世界", add_special_tokens=False)
    assert not any("\ufffd" in chunk for chunk in stream(tokenizer, ids, [1] * len(ids)))


def test_wrong_bytes_for_ever_still_stream(tokenizer: Tokenizer):
    wrong = next(i for i in range(tokenizer.vocab_size) if tokenizer.backend.id_to_token(i) in ("<0xFF>", "ÿ"))
    chunks = stream(tokenizer, [wrong] * 400, [1] * 400)
    assert sum(map(bool, chunks)) >= 400 // (MAX_HELD + 1)
    assert "".join(chunks) == "\ufffd" * 400


def test_a_byte_run_longer_than_the_bound_streams_whole_characters(byte_fallback: Tokenizer):
    text = "a" + "世" * 100
    ids = byte_fallback.encode(text, add_special_tokens=False)
    chunks = stream(byte_fallback, ids, [1] * len(ids))
    assert "".join(chunks) == text
    assert sum(map(bool, chunks)) > 5


def test_incomplete_bytes_at_the_end_are_shown_as_replacement_characters(byte_level: Tokenizer):
    ids = byte_level.encode("xမ", add_special_tokens=False)[:-1]
    assert "".join(stream(byte_level, ids, [1] * len(ids))) == byte_level.decode(ids)
    assert byte_level.decode(ids).endswith("\ufffd")


def test_spaces_before_words_survive_chunking_after_special_tokens(byte_fallback: Tokenizer):
    word = byte_fallback.encode("the", add_special_tokens=False)
    end = next(iter(byte_fallback.eos_ids))
    ids = [*word, *[end] * 10, *word, *word]
    assert "".join(stream(byte_fallback, ids, [1] * len(ids))) == "the the the"


def test_context_of_plain_words_is_short(byte_level: Tokenizer):
    cutter = ChunkCutter(byte_level)
    cutter.push(byte_level.encode("the cat sat on the mat and the dog said hello", add_special_tokens=False))
    cutter.cut()
    cutter.push(byte_level.encode(" the", add_special_tokens=False))
    assert len(cutter.cut().context_ids) == MIN_CONTEXT


def test_trimming_drops_characters_from_the_end_only(byte_level: Tokenizer):
    ids = byte_level.encode("hello STOP", add_special_tokens=False)
    assert chunk_text(byte_level, ids, [], 5) == "hello"
    assert chunk_text(byte_level, ids, [], 10) == ""
