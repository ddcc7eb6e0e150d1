"""Rotation and KV store: every implementation against complex multiplication; quantized rows against their own size."""

import pytest
import torch

from kernels.cache_quantization import LARGEST, dequantize_rows, quantize_rows
from kernels.rope_kv_store import RopeKVStore, rope_kv_store_reference
from kernels.rope_kv_store.cpu_kernel import rope_kv_store_cpu
from kernels.rope_kv_store.triton_kernel import rope_kv_store_triton
from tests.kernels.accuracy import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered.*:RuntimeWarning")  # numpy's, in Triton's interpreter
SHAPES = [(1, 1, 2, 1, 2), (4, 2, 16, 4, 16), (9, 3, 64, 16, 48), (5, 5, 10, 7, 10), (4, 2, 12, 4, 2)]  # H, K, D, B, R
EVERYWHERE = [(rope, torch.float32) for rope in (rope_kv_store_reference, rope_kv_store_cpu, rope_kv_store_triton)]
IN_HALVES = [
    (rope, dtype)
    for rope in (rope_kv_store_reference, rope_kv_store_triton)
    for dtype in (torch.float16, torch.bfloat16)
]


class Case:
    """Five tokens' heads at scattered positions and slots."""

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(3)
        self.num_heads, self.num_kv_heads, self.head_dim, block_size, rotary_dim = shape
        num_tokens, num_blocks = 5, 6
        heads = torch.randn(num_tokens, self.num_heads + 2 * self.num_kv_heads, self.head_dim, generator=generator)
        self.heads = heads.to(dtype)
        self.angles = torch.rand(50, rotary_dim // 2, generator=generator) * 6
        self.cos_sin = torch.stack((self.angles.cos(), self.angles.sin()), dim=1)
        self.positions = torch.tensor([0, 49, 7, 7, 23], dtype=torch.int32)
        self.slots = torch.randperm(num_blocks * block_size, generator=generator)[:num_tokens]
        self.cache_shape = (2, num_blocks, self.num_kv_heads, block_size, self.head_dim)
        self.untouched = torch.ones(num_blocks * block_size, dtype=torch.bool)
        self.untouched[self.slots] = False

    def rotated(self) -> torch.Tensor:
        """All heads turned, [T, H + 2 K, D]."""
        wide, turned_dim = self.heads.double(), 2 * self.angles.shape[1]
        turn = torch.polar(torch.tensor(1.0).double(), self.angles[self.positions].double()).unsqueeze(1)
        turned = torch.complex(*wide[..., :turned_dim].chunk(2, dim=-1)) * turn
        return torch.cat((turned.real, turned.imag, wide[..., turned_dim:]), dim=-1)


def by_slot(caches: torch.Tensor) -> torch.Tensor:
    """[2, N, K, B, ...] as [2, N B, K, ...]."""
    return caches.transpose(2, 3).flatten(1, 2)


@pytest.mark.parametrize(("rotate_and_store", "dtype"), EVERYWHERE + IN_HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rotates_like_complex_numbers_and_writes_only_its_slots(
    rotate_and_store: RopeKVStore, dtype: torch.dtype, shape: tuple[int, int, int, int, int]
) -> None:
    case = Case(shape, dtype)
    caches = torch.full(case.cache_shape, float("nan"), dtype=dtype)
    qkv = case.heads.flatten(1).clone()
    rotate_and_store(qkv, case.cos_sin, case.positions, case.slots, caches[0], caches[1])
    rotated, h, k = case.rotated(), case.num_heads, case.num_kv_heads
    flat = by_slot(caches)
    assert_close(qkv.view_as(case.heads)[:, :h], rotated[:, :h])
    assert_close(flat[0, case.slots], rotated[:, h : h + k])
    assert torch.equal(flat[1, case.slots], case.heads[:, h + k :])
    assert flat[:, case.untouched].isnan().all()


@pytest.mark.parametrize("rotate_and_store", [rope_kv_store_reference, rope_kv_store_cpu, rope_kv_store_triton])
@pytest.mark.parametrize("stored", LARGEST)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_quantized_cache_holds_rows_of_their_own_scale(
    rotate_and_store: RopeKVStore, stored: torch.dtype, shape: tuple[int, int, int, int, int]
) -> None:
    case = Case(shape, torch.float32)
    case.heads *= torch.logspace(-4, 3, case.heads.shape[1]).unsqueeze(1)  # each head of another size
    case.heads[2] = 0.0
    caches = torch.full(case.cache_shape, 77.0).to(stored)
    scales = torch.full(case.cache_shape[:-1], float("nan"))
    rotate_and_store(
        case.heads.flatten(1).clone(),
        case.cos_sin,
        case.positions,
        case.slots,
        caches[0],
        caches[1],
        key_scales=scales[0],
        value_scales=scales[1],
    )
    rotated, h, k = case.rotated(), case.num_heads, case.num_kv_heads
    restored = dequantize_rows(by_slot(caches)[:, case.slots], by_slot(scales)[:, case.slots])
    step = 0.5 / 127 if stored == torch.int8 else 2**-4  # half of what one more step adds, of the row's largest or of x
    for kind, expected in enumerate((rotated[:, h : h + k], case.heads[:, h + k :].double())):
        size = expected.abs().amax(dim=-1, keepdim=True) if stored == torch.int8 else expected.abs()
        floor = expected.abs().amax(dim=-1, keepdim=True) * 2**-18  # float8's smallest step is 2^-9 of 448
        assert ((restored[kind] - expected).abs() <= (size * step).maximum(floor) * 1.001).all()
    assert by_slot(scales)[:, case.untouched].isnan().all()
    assert (by_slot(caches)[:, case.untouched].float() == torch.tensor(77.0).to(stored).float()).all()


@pytest.mark.parametrize("rotate_and_store", [rope_kv_store_cpu, rope_kv_store_triton])
@pytest.mark.parametrize("stored", LARGEST)
def test_values_are_stored_to_the_references_very_bits(rotate_and_store: RopeKVStore, stored: torch.dtype) -> None:
    torch.manual_seed(1)
    spread = torch.randn(60, 64) * torch.logspace(-6, 0, 64)  # float8's subnormal numbers and zero among them
    halves = torch.arange(64.0) * 7  # of a step of int8, and of float8
    values = torch.cat((torch.randn(1, 64), spread, torch.randn(3, 64) * 1e-30, halves.view(1, 64)))
    qkv = torch.cat((torch.zeros(65, 128), values), dim=1)  # one head each; only the values matter
    cache, scales = torch.zeros(2, 5, 1, 13, 64).to(stored), torch.zeros(2, 5, 1, 13)
    still = torch.tensor([[[1.0], [0.0]]])
    rotate_and_store(
        qkv, still, torch.zeros(65).int(), torch.arange(65), *cache, key_scales=scales[0], value_scales=scales[1]
    )
    expected, expected_scales = quantize_rows(values, stored)
    assert torch.equal(cache[1].view(65, 64).float(), expected.float())
    assert torch.equal(scales[1].view(65), expected_scales)


@pytest.mark.parametrize("rotate_and_store", [rope_kv_store_reference, rope_kv_store_cpu, rope_kv_store_triton])
@pytest.mark.parametrize("stored", LARGEST)
def test_a_nan_is_still_there_when_a_quantized_row_is_read(rotate_and_store: RopeKVStore, stored: torch.dtype) -> None:
    qkv = torch.ones(2, 12)
    qkv[1, [5, 10]] = float("nan")
    cache, scales = torch.zeros(2, 1, 1, 2, 4).to(stored), torch.zeros(2, 1, 1, 2)
    rotate_and_store(
        qkv,
        torch.tensor([[[1.0], [0.0]]]),
        torch.zeros(2).int(),
        torch.arange(2),
        *cache,
        key_scales=scales[0],
        value_scales=scales[1],
    )
    restored = dequantize_rows(cache, scales)
    assert restored[:, :, :, 1].isnan().all()
    assert (restored[:, :, :, 0] == 1.0).all()
