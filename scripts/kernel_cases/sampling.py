"""Cases of choosing tokens."""

from functools import partial
from typing import Any

import torch

from kernels.draw_token import Draws, Edits
from scripts.kernel_cases.case import Case, Size, normal

SHAPES: dict[Size, tuple[tuple[int, int], ...]] = {
    "tiny": ((1, 7), (2, 203)),
    "cpu": ((1, 49152), (64, 49152)),
    "gpu": ((1, 128256), (64, 128256)),
}
EDITED_WAYS = ("greedy", "drawn, top-p 0.9")  # that are also measured with penalties and a guide
WAYS: dict[str, tuple[float, int, float, float]] = {  # temperature, top-k, top-p, min-p
    "greedy": (0.0, 0, 1.0, 0.0),
    "drawn": (0.8, 0, 1.0, 0.0),
    "drawn, top-p 0.9": (0.8, 0, 0.9, 0.0),
    "drawn, top-k 50": (0.8, 50, 1.0, 0.0),
}


NUM_EDITS = 512  # most of a row
EDIT_BYTES = 16  # a token's number and what its logit is multiplied with and gains


def cases(size: Size) -> list[Case]:
    """Return the cases of that size."""
    ways = [(way, is_edited) for way in WAYS for is_edited in ((False, True) if way in EDITED_WAYS else (False,))]
    return [_case(*way, *shape) for shape in SHAPES[size] for way in ways]


def _case(way: str, is_edited: bool, num_rows: int, vocab_size: int) -> Case:
    num_edits = min(NUM_EDITS, vocab_size // 2) if is_edited else 0

    def make(device: torch.device) -> tuple[Any, ...]:
        temperature, top_k, top_p, min_p = WAYS[way]
        fill = partial(torch.full, (num_rows,), device=device)
        point = normal(2, num_rows, dtype=torch.float64, device=device).sigmoid()
        draws = Draws(
            fill(fill_value=temperature, dtype=torch.float64),
            fill(fill_value=top_k, dtype=torch.int64),
            fill(fill_value=top_p, dtype=torch.float64),
            fill(fill_value=min_p, dtype=torch.float64),
            point,
        )
        edits = make_edits(num_rows, vocab_size, num_edits, device) if is_edited else None
        return normal(1, num_rows, vocab_size, device=device, scale=2.0), draws, edits

    def run(implementation: Any, logits: torch.Tensor, draws: Draws, edits: Edits | None) -> Any:
        return implementation(logits, draws, edits)

    text = f"{num_rows} x {vocab_size} {way}{', penalised and guided' if is_edited else ''}"
    moved = num_rows * (4.0 * vocab_size + (num_edits * (EDIT_BYTES + 8) + 5.0 * vocab_size if is_edited else 0.0))
    return Case("draw_token", "draw_tokens", text, torch.float32, make, run, moved, check=_check)


def make_edits(num_rows: int, vocab_size: int, num_edits: int, device: torch.device) -> Edits:
    """Return penalties and bans of so many tokens for all rows but the first, and guides for every other row."""
    numbers = normal(3, num_rows - 1, vocab_size, device=device).argsort(dim=1)[:, :num_edits].contiguous().view(-1)
    added = normal(4, len(numbers), device=device)
    return Edits(
        torch.tensor([0, *range(0, len(numbers) + 1, max(1, num_edits))], dtype=torch.int32, device=device)[
            : num_rows + 1
        ],
        numbers,
        normal(5, len(numbers), device=device).exp(),
        added.masked_fill(added > 1.0, -torch.inf),
        torch.tensor([row // 2 if row % 2 else -1 for row in range(num_rows)], dtype=torch.int32, device=device),
        normal(6, num_rows // 2, vocab_size, device=device) > 0.0,
    )


def _check(actual: Any, expected: Any) -> None:
    """Compare tokens, of which one in fifty may lie on a border of two, and the largest logits."""
    num_different = int((actual[0] != expected[0]).sum())
    assert num_different <= max(1, len(actual[0]) // 50), f"{num_different} of {len(actual[0])} tokens differ"
    assert torch.equal(actual[1], expected[1]), "largest logits differ"
