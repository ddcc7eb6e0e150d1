"""Checkpoints as quantizers write them, against transformers with the weights that they mean."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.errors import ModelError, WeightMismatch
from tests.conftest import TinyModel
from tests.models import rounding
from tests.models.adapters import load, make_adapter
from tests.models.checks import TOLERANCE, check_logits, core_for, engine_logits, random_prompts
from tests.models.rounding import Rounding

ORDERS: dict[str, int] = {"q_proj": 1, "k_proj": 1, "v_proj": 1}  # seeds of act-order; other projections: their own
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 128}
Change = Callable[[dict[str, torch.Tensor]], None]


def quantize(
    model: TinyModel,
    path: Path,
    config: dict[str, Any],
    choose: Callable[[str], Rounding | None],
    change: Change | None = None,
) -> TinyModel:
    """Write the model as a checkpoint whose linear modules are quantized as `choose` says of their names.

    Returns:
        The new checkpoint, and transformers' model with what it means.
    """
    tensors = load_file(model.path / "model.safetensors")
    means = dict(tensors)
    for name in [name for name, tensor in tensors.items() if tensor.ndim == 2 and "embed" not in name]:
        module = name.removesuffix(".weight")
        if (rounding_of := choose(module)) is not None:
            rounded = rounding_of(tensors.pop(name))
            means[name] = rounded.meaning
            tensors |= {f"{module}.{kind}": tensor.contiguous() for kind, tensor in rounded.tensors.items()}
    if change is not None:
        change(tensors)
    oracle = write(model, path.with_name(f"{path.name}-meaning"), means)
    write(model, path, tensors, quantization_config=config)
    oracle_class = type(model.oracle)
    loaded = oracle_class.from_pretrained(oracle, dtype=torch.float32, attn_implementation="eager")
    return TinyModel(path, loaded.eval())


def write(model: TinyModel, path: Path, tensors: dict[str, torch.Tensor], **keys: Any) -> Path:
    shutil.copytree(model.path, path)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | keys))
    return path


def layers_only(rounding_of: Rounding) -> Callable[[str], Rounding | None]:
    return lambda name: rounding_of if name != "lm_head" else None


def group(**weights: Any) -> dict[str, Any]:
    return {"targets": ["Linear"], "weights": weights, "input_activations": None}


def compressed(name: str, inputs: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": group(**weights) | {"input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "format": name, "config_groups": groups, "ignore": ["lm_head"]}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True}
INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
ROWS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}


def act_ordered(name: str) -> Rounding | None:
    """Projections that share inputs share their order, as they do where GPTQ made it."""
    seed = ORDERS.get(name.rsplit(".", maxsplit=1)[-1], sum(map(ord, name)) if "down" in name else 7)
    return None if name == "lm_head" else partial(rounding.gptq, symmetric=False, act_order=seed)


CHECKPOINTS: dict[str, tuple[dict[str, Any], Callable[[str], Rounding | None]]] = {
    "awq": (AWQ, layers_only(rounding.awq)),
    "gptq": (GPTQ, layers_only(rounding.gptq)),
    "gptq, not symmetric, act-order": (GPTQ | {"sym": False, "desc_act": True}, act_ordered),
    "gptq of version 2, rows whole": (
        GPTQ | {"group_size": -1, "checkpoint_format": "gptq_v2"},
        layers_only(partial(rounding.gptq, group=48, symmetric=False, offset=0)),
    ),
    "gptq of 8 bits with biases that are zero": (
        GPTQ | {"bits": 8},
        layers_only(partial(rounding.gptq, bits=8, zero_bias=True)),
    ),
    "compressed int4": (compressed("pack-quantized", **INT4), layers_only(rounding.packed)),
    "compressed int4 with zero points": (
        compressed("pack-quantized", None, **(INT4 | {"symmetric": False})),
        layers_only(partial(rounding.packed, symmetric=False)),
    ),
    "compressed int8": (
        compressed("pack-quantized", num_bits=8, type="int", strategy="channel", symmetric=True),
        layers_only(partial(rounding.packed, bits=8, group=0)),
    ),
    "fp8 of one scale": (FP8, layers_only(rounding.float8)),
    "fp8 in blocks": (
        FP8 | {"weight_block_size": [16, 16]},
        layers_only(partial(rounding.float8, block=(16, 16), name="weight_scale_inv")),
    ),
    "fp8 in blocks that the parts do not fill": (
        FP8 | {"weight_block_size": [24, 20]},
        layers_only(partial(rounding.float8, block=(24, 20), name="weight_scale_inv")),
    ),
    "compressed fp8": (
        compressed("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True),
        layers_only(lambda weight: rounding.float8(weight, block=(1, weight.shape[1]))),
    ),
    "the head too": (AWQ, lambda _: rounding.awq),
    "values plain, queries and keys not": (AWQ, lambda name: None if "v_proj" in name else rounding.awq),
}


@pytest.fixture(scope="module")
def llama(make_llama: Callable[..., TinyModel]) -> TinyModel:
    return make_llama(**SIZES, seed=21)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_quantized_checkpoint_says_what_transformers_says_with_what_it_means(
    llama: TinyModel, tmp_path: Path, kind: str
) -> None:
    config, choose = CHECKPOINTS[kind]
    check_logits(quantize(llama, tmp_path / "m", config, choose), length=20)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT reads it
@pytest.mark.parametrize("kind", ["awq", "gptq, not symmetric, act-order", "values plain, queries and keys not"])
def test_adapters_are_added_to_what_a_quantized_checkpoint_means(llama: TinyModel, tmp_path: Path, kind: str) -> None:
    model = quantize(llama, tmp_path / "m", *CHECKPOINTS[kind])
    adapter = make_adapter(model, tmp_path, "a", target_modules=["k_proj", "v_proj", "up_proj", "down_proj"])
    core = core_for(model.path, adapters=tmp_path)
    (token_ids,) = random_prompts([20], vocab_size=SIZES["vocab_size"])
    theirs = adapter.merged.logits(token_ids)
    ours = engine_logits(core, token_ids, load(core, adapter))
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=TOLERANCE * float(theirs.abs().max()))


def round_rows(_module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    scales = inputs[0].abs().amax(dim=-1, keepdim=True) / 127
    return (inputs[0] / scales).round() * scales


def test_compressed_int8_with_rounded_inputs(llama: TinyModel, tmp_path: Path) -> None:
    config = compressed("int-quantized", ROWS, num_bits=8, type="int", strategy="channel", symmetric=True)
    model = quantize(llama, tmp_path / "m", config, layers_only(rounding.int8))
    for name, module in model.oracle.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(round_rows)
    check_logits(model, length=20, tolerance=0.02)  # an input near a half may round the other way


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
        ("Qwen3Moe", {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
        ("Qwen2", {}),
        ("Phi3", {"tie_word_embeddings": True}),
    ],
)
def test_other_families_load_too(
    make_model: Callable[..., TinyModel], tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    model = make_model(family, **(SIZES | options))
    stay = "gate", "lm_head"
    check_logits(quantize(model, tmp_path / "m", AWQ, lambda n: None if n.endswith(stay) else rounding.awq), length=20)


def remove(*names: str) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in names:
            del tensors[name]

    return change


def put(name: str, tensor: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({name: tensor})


LAYER = "model.layers.1.mlp.down_proj"
BROKEN: list[tuple[str, Change, str]] = [
    ("awq", remove(f"{LAYER}.qzeros"), rf"1 tensors are missing, the first is '{LAYER}\.qzeros'"),
    ("awq", remove(f"{LAYER}.qweight"), rf"the first is '{LAYER}\.qweight'"),
    ("awq", put(f"{LAYER}.scales", torch.zeros(3, 31).half()), r"scales' has shape \[3, 31\], expected \[3, 32\]"),
    ("awq", put(f"{LAYER}.qweight", torch.zeros(48, 4)), "qweight' has the type F32, expected I32"),
    ("awq", put(f"{LAYER}.weight", torch.zeros(32, 48)), "unexpected tensor"),
    ("gptq", put(f"{LAYER}.g_idx", torch.zeros(48, dtype=torch.int32)), "g_idx does not give 16 inputs"),
    (
        "gptq",
        put("model.layers.0.self_attn.q_proj.bias", torch.ones(32)),
        "unexpected tensor .*: the model has no bias there",
    ),
    ("compressed int4", put(f"{LAYER}.weight_shape", torch.tensor([48, 32])), r"weight_shape says \[48, 32\]"),
    ("fp8 of one scale", remove(f"{LAYER}.weight_scale"), rf"the first is '{LAYER}\.weight_scale"),
    ("fp8 in blocks", put(f"{LAYER}.weight_scale_inv", torch.zeros(2, 2)), r"\[2, 2\], expected \[2, 3\]"),
]


@pytest.mark.parametrize(("kind", "change", "text"), BROKEN)
def test_a_broken_checkpoint_is_refused_by_the_tensor(
    llama: TinyModel, tmp_path: Path, kind: str, change: Change, text: str
) -> None:
    config, choose = CHECKPOINTS[kind]
    quantize(llama, tmp_path / "m", config, choose, change)
    with pytest.raises(WeightMismatch, match=text):
        core_for(tmp_path / "m")


def test_a_shape_that_groups_do_not_divide_is_refused(llama: TinyModel, tmp_path: Path) -> None:
    quantize(llama, tmp_path / "m", AWQ | {"group_size": 20}, layers_only(rounding.awq))
    with pytest.raises(WeightMismatch, match="cannot be quantized so: groups of 20 do not divide 32 inputs"):
        core_for(tmp_path / "m")


def test_a_quantized_checkpoint_is_not_rounded_once_more(llama: TinyModel, tmp_path: Path) -> None:
    quantize(llama, tmp_path / "m", *CHECKPOINTS["awq"])
    with pytest.raises(ModelError, match=r"quantization 'int8' is for plain checkpoints; .* by awq already"):
        core_for(tmp_path / "m", quantization="int8")
