"""Drawing without sorting gives the tokens that sorting gives, for odd sizes, ties, masks and every cut."""

from typing import Any

import numpy as np
import pytest
import torch

from kernels.draw_token import Draws, DrawTokens, Edits, draw_tokens_reference
from kernels.draw_token.cpu_kernel import draw_tokens_cpu
from kernels.draw_token.reference import kept_weights
from kernels.draw_token.triton_kernel import draw_tokens_triton

NUM_ROWS = 40
FEW_ROWS = 2  # for Triton's interpreter
EVERYWHERE = [(draw_tokens_cpu, NUM_ROWS), (draw_tokens_triton, FEW_ROWS)]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered.*:RuntimeWarning")  # numpy's, in Triton's interpreter
CUTS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.05},
    {"top_k": 10**6, "top_p": 1e-9},
]
WAYS_EVERYWHERE = [(draw_tokens_cpu, NUM_ROWS, cuts) for cuts in CUTS]
WAYS_EVERYWHERE += [(draw_tokens_triton, FEW_ROWS, cuts) for cuts in (CUTS[0], CUTS[2], CUTS[7])]


def make_draws(num_rows: int = NUM_ROWS, temperature: float = 1.0, **cuts: Any) -> Draws:
    def filled(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.full((num_rows,), value, dtype=dtype)

    point = torch.rand(num_rows, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    kept = filled(cuts.get("top_k", 0), torch.int64), filled(cuts.get("top_p", 1.0)), filled(cuts.get("min_p", 0.0))
    return Draws(filled(temperature), *kept, point)


def make_logits(vocab_size: int, spread: float = 3.0, num_rows: int = NUM_ROWS) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * spread


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.draw_token.triton_kernel.CHUNK", 256)


def assert_drawn_as_by_reference(logits: torch.Tensor, draws: Draws, draw: DrawTokens) -> None:
    token_ids, maxima = draw(logits, draws)
    expected, expected_maxima = draw_tokens_reference(logits, draws)
    assert maxima.tolist() == expected_maxima.tolist() == logits.amax(dim=-1).tolist()
    kept = kept_weights(logits, draws)
    for row in np.flatnonzero((token_ids != expected).numpy()):  # the point is on a border of two
        weights = kept[row]
        shares = weights.cumsum(dim=-1) / weights.sum()
        below = float(shares[token_ids[row] - 1]) if token_ids[row] else 0.0
        assert weights[token_ids[row]] > 0
        assert below - 1e-5 < draws.point[row] < float(shares[token_ids[row]]) + 1e-5
    assert (token_ids != expected).sum() <= 1


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize(
    ("vocab_size", "draw", "num_rows"),
    [(size, draw_tokens_cpu, NUM_ROWS) for size in (1, 5, 512, 513, 5003)]
    + [(size, draw_tokens_triton, FEW_ROWS) for size in (1, 301)],
)
def test_tokens_are_those_of_the_sorted_reference(
    vocab_size: int, draw: DrawTokens, num_rows: int, cuts: dict[str, Any]
) -> None:
    assert_drawn_as_by_reference(make_logits(vocab_size, num_rows=num_rows), make_draws(num_rows, **cuts), draw)


@pytest.mark.parametrize(("draw", "num_rows"), EVERYWHERE)
@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-3, 0.5, 20.0])
def test_tokens_are_those_of_the_reference_at_every_temperature(
    draw: DrawTokens, num_rows: int, temperature: float
) -> None:
    both: dict[str, Any] = {"top_p": 0.9, "top_k": 200}
    logits = make_logits(401, num_rows=num_rows)
    for cuts in ({}, both):
        assert_drawn_as_by_reference(logits, make_draws(num_rows, temperature=temperature, **cuts), draw)


@pytest.mark.parametrize(("draw", "num_rows", "cuts"), WAYS_EVERYWHERE)
def test_equal_logits_are_kept_in_the_order_of_their_ids(draw: DrawTokens, num_rows: int, cuts: dict[str, Any]) -> None:
    few_values, draws = make_logits(300, spread=1.0, num_rows=num_rows).round(), make_draws(num_rows, **cuts)
    assert_drawn_as_by_reference(few_values, draws, draw)
    assert_drawn_as_by_reference(torch.zeros(num_rows, 300), draws, draw)


@pytest.mark.parametrize(("draw", "num_rows", "cuts"), WAYS_EVERYWHERE)
def test_a_masked_token_is_never_drawn(draw: DrawTokens, num_rows: int, cuts: dict[str, Any]) -> None:
    logits = make_logits(280, num_rows=num_rows)
    logits[:, torch.arange(280) % 35 != 4] = -torch.inf
    assert_drawn_as_by_reference(logits, make_draws(num_rows, **cuts), draw)
    assert set((draw(logits, make_draws(num_rows, **cuts))[0] % 35).tolist()) == {4}


@pytest.mark.parametrize(("draw", "num_rows"), EVERYWHERE)
def test_a_row_is_the_same_alone_and_among_others(draw: DrawTokens, num_rows: int) -> None:
    logits, draws = make_logits(601, num_rows=num_rows), make_draws(num_rows, top_p=0.9, temperature=0.7)
    together = draw(logits, draws)[0]
    for row in range(num_rows):
        one = Draws(*(getattr(draws, name)[row : row + 1] for name in Draws.__slots__))
        assert draw(logits[row : row + 1], one)[0][0] == together[row]


@pytest.mark.parametrize("draw", [draw_tokens_cpu, draw_tokens_reference, draw_tokens_triton])
def test_rows_without_a_finite_maximum_are_marked_and_the_others_drawn(draw: Any) -> None:
    logits = make_logits(100, num_rows=5)
    logits[0, 5], logits[1, 99], logits[2] = torch.nan, torch.inf, -torch.inf
    token_ids, maxima = draw(logits, make_draws(5, temperature=0.0))
    assert maxima.isfinite().tolist() == [False, False, False, True, True]
    assert ((token_ids >= 0) & (token_ids < 100)).all()
    assert token_ids[3:].tolist() == logits[3:].argmax(dim=-1).tolist()


def test_weights_sum_to_the_softmax() -> None:
    """Over an even grid of points each token is drawn as often as it is likely."""
    logits = make_logits(40, num_rows=1).expand(20000, -1).contiguous()
    draws = make_draws(20000, temperature=0.8)
    points = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    even = Draws(draws.temperature, draws.top_k, draws.top_p, draws.min_p, points)
    shares = np.bincount(draw_tokens_cpu(logits, even)[0].numpy(), minlength=40) / 20000
    np.testing.assert_allclose(shares, (logits[0] / 0.8).double().softmax(-1).numpy(), atol=1.1e-4)


def make_edits(*changes: list[tuple[int, float, float]], guided: dict[int, torch.Tensor], vocab_size: int) -> Edits:
    """Return for each row a list of token, penalty and what is added, and the masks of some rows."""
    ids, penalties, added = zip(*(change for row in changes for change in row), strict=True)
    starts = np.cumsum([0, *map(len, changes)])
    guides = [list(guided).index(row) if row in guided else -1 for row in range(len(changes))]
    masks = torch.stack([*guided.values()]) if guided else torch.empty(0, vocab_size, dtype=torch.bool)
    floats = torch.tensor(penalties), torch.tensor(added)
    return Edits(torch.tensor(starts, dtype=torch.int32), torch.tensor(ids), *floats, torch.tensor(guides).int(), masks)


@pytest.mark.parametrize("draw", [draw_tokens_cpu, draw_tokens_reference, draw_tokens_triton])
def test_edits_are_a_plain_loop_over_their_tokens_in_place(draw: DrawTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens on both sides of a chunk's border, more of them than a program looks at together, rows without any."""
    monkeypatch.setattr("kernels.draw_token.triton_kernel.EDITS", 4)
    logits = make_logits(601, num_rows=4)
    logits[0, 3], logits[0, 255], logits[0, 256] = 2.0, -2.0, 0.0
    some = [(3, 1.5, -0.25), (255, 1.3, 0.5), (256, 2.0, -1.0), (600, 1.0, -torch.inf), (0, 0.7, 4.0), (511, 1.0, 1.0)]
    mask = torch.arange(601) % 7 == 3
    edits = make_edits(some, [], [(599, 1.1, 50.0)], [(9, 1.0, 60.0)], guided={1: mask, 3: mask}, vocab_size=601)
    expected = logits.clone()
    for token, penalty, added in some:
        x = float(logits[0, token])
        expected[0, token] = (x / penalty if x > 0 else x * penalty) + added
    expected[1, ~mask] = expected[3, ~mask] = -torch.inf
    expected[2, 599] = logits[2, 599] * (1.1 if logits[2, 599] < 0 else 1 / 1.1) + 50.0
    token_ids, maxima = draw(logits, make_draws(4, temperature=0.0), edits)
    torch.testing.assert_close(logits, expected)
    assert token_ids.tolist() == expected.argmax(dim=-1).tolist()
    assert token_ids[2] == 599
    assert maxima.tolist() == logits.amax(dim=-1).tolist()


@pytest.mark.parametrize("draw", [draw_tokens_cpu, draw_tokens_triton])
def test_cuts_and_draws_are_those_of_the_edited_logits(draw: DrawTokens) -> None:
    logits, draws = make_logits(300, num_rows=2), make_draws(2, top_p=0.9, top_k=40)
    edits = make_edits([(t, 1.4, -0.5) for t in range(0, 300, 2)], [(7, 1.0, -torch.inf)], guided={}, vocab_size=300)
    edited = logits.clone()
    expected = draw_tokens_reference(edited, draws, edits)
    assert draw(logits, draws, edits)[0].tolist() == expected[0].tolist()
