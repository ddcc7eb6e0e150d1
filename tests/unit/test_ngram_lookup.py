"""Drafts are what followed the last tokens the last time."""

from hypothesis import given
from hypothesis import strategies as st

from engine.ngram_lookup import LONGEST_RUN, SHORTEST_RUN, NgramIndex


def searched(token_ids: list[int], number: int) -> list[int]:
    """Look for the longest run by brute force."""
    for length in range(LONGEST_RUN, SHORTEST_RUN - 1, -1):
        tail = token_ids[-length:]
        for start in range(len(token_ids) - length - 1, -1, -1):
            if len(tail) == length and token_ids[start : start + length] == tail:
                text = list(token_ids)
                for index in range(number):
                    text.append(text[start + length + index])
                return text[len(token_ids) :]
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(1, 5), max_size=10), st.integers(1, 9))
def test_an_index_that_grows_with_the_text_finds_what_a_search_finds(
    token_ids: list[int], pieces: list[int], number: int
) -> None:
    index, end = NgramIndex(), 0
    for piece in [*pieces, len(token_ids)]:
        end = min(end + piece, len(token_ids))
        assert index.propose(token_ids[:end], number) == searched(token_ids[:end], number)


def test_the_longest_run_wins_over_a_later_one() -> None:
    text = [1, 2, 3, 4, 50, 9, 3, 4, 60, 1, 2, 3, 4]
    assert NgramIndex().propose(text, 2) == [50, 9]


def test_a_match_near_the_end_goes_on_periodically() -> None:
    assert NgramIndex().propose([7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]


def test_nothing_is_proposed_for_text_that_is_new() -> None:
    assert NgramIndex().propose([1, 2, 3, 1], 4) == []
