"""A stop string never shows, not even in part, and nothing before it is lost."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.detokenizer import chunk_text
from engine.text.stop_strings import StopResult, StopStringChecker
from engine.text.tokenizer import Tokenizer

quick = settings(max_examples=300, deadline=None)
pieces = st.lists(
    st.sampled_from(["a", "b", "ab", "ba", "世", "é", "😀", "👨‍👩‍👧", " ", "STOP", "ST", "OP", "\n"]), max_size=14
)
stops = st.lists(
    st.sampled_from(["a", "ab", "aba", "bab", "b😀", "世é", "😀", "STOP", "TOP", "STOPS", "\n\n", " ", "👩‍👧"]),
    min_size=1,
    max_size=4,
)


def naive_cut(text: str, stop: list[str], deaf_until: int = 0) -> str | None:
    """Read the whole text character by character; return what comes before the first complete stop string."""
    for end in range(deaf_until + 1, len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)]
    return None


def run(tokenizer: Tokenizer, ids: list[int], stop: list[str], sizes: list[int]) -> tuple[list[StopResult], str]:
    """Push in groups; return all results and the text of everything that may be sent on."""
    checker = StopStringChecker(tokenizer, tuple(stop))
    results: list[StopResult] = []
    position = 0
    while position < len(ids):
        size = sizes[len(results) % len(sizes)]
        results.append(checker.push(ids[position : position + size]))
        position += size
        if results[-1].stopped:
            last = results[-1]
            return results, chunk_text(tokenizer, ids[: last.releasable], (), last.trim_chars)
    return results, tokenizer.decode(ids)


@quick
@given(parts=pieces, stop=stops, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_the_text_equals_what_the_naive_reading_keeps(
    tokenizer: Tokenizer, parts: list[str], stop: list[str], sizes: list[int]
):
    ids = tokenizer.encode("".join(parts), add_special_tokens=False)
    expected = naive_cut(tokenizer.decode(ids), stop)
    results, text = run(tokenizer, ids, stop, sizes)
    assert results == [] or results[-1].stopped == (expected is not None)
    assert text == (tokenizer.decode(ids) if expected is None else expected)


@quick
@given(parts=pieces, stop=stops, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5))
def test_released_tokens_never_show_what_a_stop_string_takes_back(
    tokenizer: Tokenizer, parts: list[str], stop: list[str], sizes: list[int]
):
    ids = tokenizer.encode("".join(parts), add_special_tokens=False)
    results, text = run(tokenizer, ids, stop, sizes)
    for earlier, later in pairwise(results):
        assert earlier.releasable <= later.releasable
        assert text.startswith(tokenizer.decode(ids[: earlier.releasable]))


@quick
@given(data=st.data(), stop=stops)
def test_random_tokens_stop_where_the_naive_reading_stops(byte_level: Tokenizer, data: st.DataObject, stop: list[str]):
    ids = data.draw(st.lists(st.integers(0, byte_level.vocab_size + 2), max_size=30))
    expected = naive_cut(byte_level.decode(ids), stop)
    _, text = run(byte_level, ids, stop, [1])
    assert text == (byte_level.decode(ids) if expected is None else expected)


@quick
@given(parts=pieces, stop=stops, num_deaf=st.integers(0, 10))
def test_matches_complete_before_it_is_armed_do_not_count(
    byte_level: Tokenizer, parts: list[str], stop: list[str], num_deaf: int
):
    ids = byte_level.encode("".join(parts), add_special_tokens=False)
    checker = StopStringChecker(byte_level, tuple(stop))
    deaf_text = byte_level.decode(ids[:num_deaf]).rstrip("\ufffd")
    expected = naive_cut(byte_level.decode(ids), stop, len(deaf_text))
    result = StopResult(0)
    for index, token_id in enumerate(ids):
        result = checker.push([token_id], armed=index >= num_deaf)
        if result.stopped:
            break
    assert result.stopped == (expected is not None)
    if expected is not None:
        assert chunk_text(byte_level, ids[: result.releasable], (), result.trim_chars) == expected


def test_the_token_that_completes_the_stop_string_counts_and_later_ones_do_not(byte_level: Tokenizer):
    ids = byte_level.encode("the cat sat", add_special_tokens=False)
    result = StopStringChecker(byte_level, ("cat",)).push(ids)
    needed = next(n for n in range(len(ids)) if "cat" in byte_level.decode(ids[:n]))
    assert (result.stopped, result.releasable) == (True, needed)


def test_a_mere_beginning_is_held_back_and_released_when_it_goes_on_differently(byte_level: Tokenizer):
    checker = StopStringChecker(byte_level, ("xyz",))
    x, y, q = (byte_level.encode(c, add_special_tokens=False) for c in "xyq")
    assert checker.push(q).releasable == 1
    assert checker.push(x).releasable == 1
    assert checker.push(y).releasable == 1
    assert checker.push(q).releasable == 4


def test_a_stop_string_of_one_emoji_stops_at_its_last_byte(tokenizer: Tokenizer):
    ids = tokenizer.encode("a😀", add_special_tokens=False)
    checker = StopStringChecker(tokenizer, ("😀",))
    results = [checker.push([i]) for i in ids]
    assert [r.stopped for r in results] == [False] * (len(ids) - 1) + [True]
    assert chunk_text(tokenizer, ids, (), results[-1].trim_chars) == "a"


def test_without_stop_strings_everything_is_released_at_once(byte_level: Tokenizer):
    assert StopStringChecker(byte_level, ()).push([5, 6, 7]) == StopResult(releasable=3)


def test_of_two_strings_complete_at_one_character_the_longer_one_is_taken_back(byte_level: Tokenizer):
    ids = byte_level.encode("x STOP", add_special_tokens=False)
    result = StopStringChecker(byte_level, ("TOP", " STOP")).push(ids)
    assert chunk_text(byte_level, ids[: result.releasable], (), result.trim_chars) == "x"


@pytest.mark.parametrize("length", [1, 1000])
def test_the_longest_stop_strings_allowed_are_found(byte_level: Tokenizer, length: int):
    ids = byte_level.encode("a" * (length - 1) + "b" + "a" * length + "c", add_special_tokens=False)
    result = StopStringChecker(byte_level, ("a" * length + "c",)).push(ids)
    assert chunk_text(byte_level, ids, (), result.trim_chars) == "a" * (length - 1) + "b"
