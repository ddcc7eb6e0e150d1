"""Low-rank updates: grouped products against one row at a time."""

import pytest
import torch

from kernels.lora import LowRankUpdate, RowGroup, UpdatePart, lora_grouped, lora_reference

SHAPES = [(1, 8, 12), (5, 123, 37), (64, 64, 96), (33, 7, 128)]  # T, C, O


def make_update(num_inputs: int, sizes: list[tuple[int, int, int]]) -> LowRankUpdate:
    """Return random parts; each of (first output, outputs, rank)."""
    parts: list[UpdatePart] = []
    first = 0
    for start, size, rank in sizes:
        parts.append(UpdatePart(start, first, torch.randn(size, rank)))
        first += rank
    return LowRankUpdate(torch.randn(first, num_inputs), tuple(parts))


@pytest.mark.parametrize(("num_rows", "num_inputs", "num_outputs"), SHAPES)
@pytest.mark.parametrize("num_groups", [0, 1, 3])
def test_grouped_products_add_what_single_rows_do(
    num_rows: int, num_inputs: int, num_outputs: int, num_groups: int
) -> None:
    torch.manual_seed(num_rows)
    third = num_outputs // 3
    updates = [
        make_update(num_inputs, [(0, num_outputs, 4)]),
        make_update(num_inputs, [(0, third, 3), (2 * third, third, 8)]),
        make_update(num_inputs, [(third, 1, 1)]),
    ]
    owners = torch.randint(0, num_groups + 1, (num_rows,))  # the last one is nobody
    groups = [RowGroup((owners == index).nonzero().flatten(), updates[index]) for index in range(num_groups)]
    inputs, out = torch.randn(num_rows, num_inputs), torch.randn(num_rows, num_outputs)
    expected = out.clone()
    lora_reference(expected, inputs, groups)
    lora_grouped(out, inputs, groups)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)


def test_one_group_of_all_rows_equals_the_product_added_to_the_weight() -> None:
    torch.manual_seed(3)
    inputs, weight, update = torch.randn(9, 20), torch.randn(14, 20), make_update(20, [(0, 14, 5)])
    out = inputs @ weight.t()
    lora_grouped(out, inputs, [RowGroup(torch.arange(9), update)])
    merged = weight + update.parts[0].up @ update.down
    torch.testing.assert_close(out, inputs @ merged.t(), rtol=1e-4, atol=1e-4)


def test_rows_of_no_group_keep_their_very_bits() -> None:
    torch.manual_seed(4)
    inputs, out = torch.randn(6, 20), torch.randn(6, 14)
    before = out.clone()
    lora_grouped(out, inputs, [RowGroup(torch.tensor([1, 4]), make_update(20, [(3, 8, 2)]))])
    untouched = torch.tensor([0, 2, 3, 5])
    assert torch.equal(out[untouched], before[untouched])
    assert torch.equal(out[:, :3], before[:, :3])
    assert not torch.equal(out[1, 3:11], before[1, 3:11])
