"""Cases of choosing tokens."""

from functools import partial
from typing import Any

import torch

from kernels.draw_token import Draws
from scripts.kernel_cases.case import Case, Size, normal

SHAPES: dict[Size, tuple[tuple[int, int], ...]] = {
    "tiny": ((1, 7), (2, 203)),
    "cpu": ((1, 49152), (64, 49152)),
    "gpu": ((1, 128256), (64, 128256)),
}
WAYS: dict[str, tuple[float, int, float, float]] = {  # temperature, top-k, top-p, min-p
    "greedy": (0.0, 0, 1.0, 0.0),
    "drawn": (0.8, 0, 1.0, 0.0),
    "drawn, top-p 0.9": (0.8, 0, 0.9, 0.0),
    "drawn, top-k 50": (0.8, 50, 1.0, 0.0),
}


def cases(size: Size) -> list[Case]:
    """Return the cases of that size."""
    return [_case(way, rows, vocab_size) for rows, vocab_size in SHAPES[size] for way in WAYS]


def _case(way: str, num_rows: int, vocab_size: int) -> Case:
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
        return normal(1, num_rows, vocab_size, device=device, scale=2.0), draws

    def run(implementation: Any, logits: torch.Tensor, draws: Draws) -> Any:
        return implementation(logits, draws)

    text = f"{num_rows} x {vocab_size} {way}"
    return Case("draw_token", "draw_tokens", text, torch.float32, make, run, 4.0 * num_rows * vocab_size, check=_check)


def _check(actual: Any, expected: Any) -> None:
    """Compare tokens, of which one in fifty may lie on a border of two, and the largest logits."""
    num_different = int((actual[0] != expected[0]).sum())
    assert num_different <= max(1, len(actual[0]) // 50), f"{num_different} of {len(actual[0])} tokens differ"
    assert torch.equal(actual[1], expected[1]), "largest logits differ"
