"""Which recorded decode step serves how many sequences."""

import pytest

from engine.graph_sizes import graph_sizes, smallest_fitting


@pytest.mark.parametrize(
    ("max_num_seqs", "expected"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (9, (1, 2, 4, 8, 9)),
        (64, (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)),
        (100, (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 100)),
    ],
)
def test_sizes_are_close_where_a_row_costs_most_and_end_at_the_largest_step(max_num_seqs: int, expected: tuple) -> None:
    assert graph_sizes(max_num_seqs) == expected


def test_large_sizes_lie_further_apart() -> None:
    assert graph_sizes(512)[-6:] == (240, 256, 320, 384, 448, 512)


@pytest.mark.parametrize(("num_seqs", "expected"), [(1, 1), (3, 4), (4, 4), (5, 8), (8, 8), (9, None)])
def test_a_step_is_served_by_the_smallest_recording_that_holds_it(num_seqs: int, expected: int | None) -> None:
    assert smallest_fitting(num_seqs, (1, 2, 4, 8)) == expected
