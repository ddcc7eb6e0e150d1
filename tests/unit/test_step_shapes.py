"""Which recorded step serves which step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.step_shapes import MIXED_TOKENS, StepShape, choose_shape, decode_sizes, step_shapes


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
    assert decode_sizes(max_num_seqs) == expected


def test_large_sizes_lie_further_apart() -> None:
    assert decode_sizes(512)[-6:] == (240, 256, 320, 384, 448, 512)


@pytest.mark.parametrize(("num_seqs", "expected"), [(1, 1), (3, 4), (4, 4), (5, 8), (8, 8), (9, None)])
def test_a_decode_step_is_served_by_the_smallest_recording_that_holds_it(num_seqs: int, expected: int | None) -> None:
    shape = choose_shape(step_shapes(8, 512), num_seqs, num_seqs, num_seqs, is_decode=True)
    assert shape == (expected and StepShape(expected, expected, expected))


@pytest.mark.parametrize(
    ("tokens", "seqs", "logits", "expected"),
    [
        (16, 1, 1, StepShape(16, 2, 2)),  # nothing is padded
        (16, 3, 3, StepShape(16, 15, 16)),
        (100, 1, 1, StepShape(128, 9, 9)),
        (100, 9, 9, StepShape(128, 65, 128)),  # the padding needs a sequence of its own
        (100, 64, 64, StepShape(128, 65, 128)),
        (256, 64, 256, StepShape(256, 65, 256)),  # drafts
        (300, 64, 300, None),
        (1024, 64, 64, StepShape(1024, 65, 65)),
        (1025, 64, 64, None),
    ],
)
def test_a_step_with_prompts_or_drafts_is_served_likewise(
    tokens: int, seqs: int, logits: int, expected: StepShape | None
) -> None:
    assert choose_shape(step_shapes(64, 2048), tokens, seqs, logits, is_decode=False) == expected


@given(st.data(), st.integers(1, 300), st.integers(16, 4096))
def test_what_is_chosen_holds_the_step_and_a_sequence_of_padding(
    data: st.DataObject, max_num_seqs: int, max_num_tokens: int
) -> None:
    shapes = step_shapes(max_num_seqs, max_num_tokens)
    assert all(shape.num_tokens > shape.num_seqs for shape in shapes if not shape.is_decode)
    assert all(shape.num_tokens <= max_num_tokens for shape in shapes if not shape.is_decode)
    tokens = data.draw(st.integers(1, min(max_num_tokens, MIXED_TOKENS[-1])))
    seqs = data.draw(st.integers(1, min(tokens, max_num_seqs)))
    shape = choose_shape(shapes, tokens, seqs, seqs, is_decode=False)
    if shape is None:
        largest = max((size for size in MIXED_TOKENS if size <= max_num_tokens), default=0)
        assert tokens > largest or seqs >= tokens - 1
    else:
        assert shape.num_tokens >= tokens
        assert shape.num_seqs >= seqs + (shape.num_tokens > tokens)
        assert shape.num_logits >= seqs
