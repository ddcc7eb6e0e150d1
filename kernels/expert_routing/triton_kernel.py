"""Expert routing in Triton's language; one program chooses for one token, its logits in fp32.

The largest is taken A times. Lanes past E, NaNs and what was taken already are minus infinity to the choice; only real
NaNs reach the sum, and so the weights.
"""

import torch
import triton
import triton.language as tl

from kernels.aot import Build
from kernels.dependent_launch import await_inputs, launch_options


def expert_routing_triton(
    logits: torch.Tensor, num_chosen: int, *, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose; see the contract in `kernels.expert_routing`."""
    num_tokens, num_experts = logits.shape
    weights = torch.empty(num_tokens, num_chosen, dtype=torch.float32, device=logits.device)
    expert_ids = torch.empty(num_tokens, num_chosen, dtype=torch.int64, device=logits.device)
    if num_tokens:
        sizes = _constants(num_experts, num_chosen) | launch_options(logits.device)
        _choose_kernel[(num_tokens,)](
            logits, weights, expert_ids, num_experts, RENORMALIZE=renormalize, num_warps=1, **sizes
        )
    return weights, expert_ids


def _constants(num_experts: int, num_chosen: int) -> dict[str, int]:
    block_a = 1 << (num_chosen - 1).bit_length()
    return {"CHOSEN": num_chosen, "BLOCK_A": block_a, "BLOCK_E": 1 << (num_experts - 1).bit_length()}


@triton.jit
def _choose_kernel(
    logits, weights, expert_ids, num_experts,
    CHOSEN: tl.constexpr, RENORMALIZE: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_E: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Store the weights and ids of one token's experts."""
    await_inputs(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK_E)
    places = tl.arange(0, BLOCK_A)
    x = tl.load(logits + token * num_experts + experts, mask=experts < num_experts, other=-float("inf")).to(tl.float32)
    left = tl.where(x == x, x, -float("inf"))
    top = tl.max(left, axis=0)
    chosen = tl.zeros((BLOCK_A,), tl.int64)
    values = tl.full((BLOCK_A,), -float("inf"), tl.float32)
    for place in tl.static_range(CHOSEN):
        value = tl.max(left, axis=0)
        expert = tl.min(tl.where(left == value, experts, BLOCK_E), axis=0)
        expert = tl.minimum(expert, num_experts - 1)
        chosen = tl.where(places == place, expert, chosen)
        values = tl.where(places == place, value, values)
        left = tl.where(experts == expert, -float("inf"), left)
    shares = tl.exp(values - top)
    total = tl.sum(tl.exp(x - top), axis=0)
    if RENORMALIZE:
        total = tl.sum(shares, axis=0) + total * 0.0
    mask = places < CHOSEN
    tl.store(weights + token * CHOSEN + places, shares / total, mask=mask)
    tl.store(expert_ids + token * CHOSEN + places, chosen, mask=mask)


ROUTINGS = ((8, 2, True), (60, 4, False), (128, 8, True), (32, 4, True), (128, 4, True))  # Mixtral, Qwen, gpt-oss


def shipped() -> list[Build]:
    """Return the numbers of experts and choices of the models we serve, in the types that experts come in."""
    return [
        Build(
            f"{element}, {num_chosen} of {num_experts}{', renormalized' if renormalize else ''}",
            _choose_kernel,
            {"logits": f"*{element}", "weights": "*fp32", "expert_ids": "*i64", "num_experts": "i32"},
            _constants(num_experts, num_chosen) | {"RENORMALIZE": renormalize},
            num_warps=1,
            is_sampled=element == "bf16" and num_chosen == 8 and renormalize,
        )
        for num_experts, num_chosen, renormalize in ROUTINGS
        for element in ("bf16", "fp16")
    ]
