"""The option's spelling, and what quantizers write into config.json."""

from typing import Any

import pytest

from engine.errors import ModelError, UnsupportedModel
from engine.quantization.config import LoadScheme, WeightFormat, read_checkpoint_quantization


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("int8", LoadScheme("int8")),
        ("int8_dynamic", LoadScheme("int8_dynamic")),
        ("fp8", LoadScheme("fp8", grain="channel")),
        ("fp8:block", LoadScheme("fp8", grain="block")),
        ("int4", LoadScheme("int4", group=64)),
        ("int4:128", LoadScheme("int4", group=128)),
    ],
)
def test_the_option_is_read(text: str, scheme: LoadScheme) -> None:
    assert LoadScheme.parse(text) == scheme


def linear_group(**weights: Any) -> dict[str, Any]:
    return {"targets": ["Linear"], "weights": weights, "input_activations": None}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
COMPRESSED = {"quant_method": "compressed-tensors", "ignore": ["lm_head"]}
READ: list[tuple[dict[str, Any], WeightFormat]] = [
    (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "GEMM"},
        WeightFormat("awq", 4, 128, has_zeros=True),
    ),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": True, "sym": False},
        WeightFormat("gptq", 4, 0, has_zeros=True, zero_offset=1),
    ),
    (
        {"quant_method": "gptq", "bits": 8, "group_size": 32, "checkpoint_format": "gptq_v2", "dynamic": {"-:lm": {}}},
        WeightFormat("gptq", 8, 32, has_zeros=True),
    ),
    (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]},
        WeightFormat("float", block=(128, 128), quantizes_inputs=True),
    ),
    (
        COMPRESSED | {"format": "pack-quantized", "config_groups": {"group_0": linear_group(**INT4)}},
        WeightFormat("packed", 4, 128),
    ),
    (
        COMPRESSED | {"format": "float-quantized", "config_groups": {"group_0": linear_group(**FP8)}},
        WeightFormat("float"),
    ),
]


@pytest.mark.parametrize(("keys", "form"), READ)
def test_what_quantizers_write_is_read(keys: dict[str, Any], form: WeightFormat) -> None:
    found = read_checkpoint_quantization({"quantization_config": keys})
    assert found is not None
    assert found.format_of("model.layers.0.mlp.down_proj") == form


def test_formats_by_name_come_before_the_one_for_all() -> None:
    groups = {
        "rest": linear_group(**INT4) | {"format": "pack-quantized"},
        "attention": linear_group(**FP8) | {"format": "float-quantized", "targets": ["re:.*self_attn.*"]},
    }
    keys = COMPRESSED | {"format": "mixed-precision", "config_groups": groups}
    found = read_checkpoint_quantization({"quantization_config": keys})
    assert found is not None
    assert found.format_of("model.layers.0.mlp.down_proj") == WeightFormat("packed", 4, 128)
    assert found.format_of("model.layers.0.self_attn.q_proj") == WeightFormat("float")


def test_a_plain_checkpoint_has_no_quantization() -> None:
    assert read_checkpoint_quantization({}) is None


REFUSED: list[tuple[dict[str, Any], type[ModelError], str]] = [
    ({"quant_method": "bitsandbytes"}, UnsupportedModel, "quantized by 'bitsandbytes' are not loaded; .* 'gptq'"),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}, UnsupportedModel, "version 'gemv'"),
    ({"quant_method": "awq", "bits": 8, "group_size": 64}, UnsupportedModel, "awq with bits 8 is not loaded"),
    ({"quant_method": "awq", "bits": 4, "group_size": 0}, ModelError, "group_size 0"),
    ({"quant_method": "gptq", "bits": 3, "group_size": 64}, UnsupportedModel, "has bits: 4, 8"),
    ({"quant_method": "gptq", "group_size": 64}, ModelError, "lacks the key 'bits'"),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "dynamic": {"+:.*down.*": {"bits": 8}}},
        UnsupportedModel,
        "other options for some layers",
    ),
    ({"quant_method": "fp8", "fmt": "e5m2"}, UnsupportedModel, "fmt 'e5m2'"),
    ({"quant_method": "fp8", "weight_block_size": [0, 128]}, ModelError, r"weight_block_size \[0, 128\]"),
    (
        COMPRESSED | {"format": "nvfp4-pack-quantized", "config_groups": {"g": linear_group(**INT4)}},
        UnsupportedModel,
        "format 'nvfp4-pack-quantized' is not loaded; this engine has format: pack-quantized, ",
    ),
    (
        COMPRESSED | {"format": "pack-quantized", "config_groups": {"g": linear_group(**(INT4 | {"num_bits": 2}))}},
        UnsupportedModel,
        "num_bits 2",
    ),
    (
        COMPRESSED | {"config_groups": {}, "sparsity_config": {"format": "sparse-24-bitmask"}},
        UnsupportedModel,
        "sparse",
    ),
]


@pytest.mark.parametrize(("keys", "error", "text"), REFUSED)
def test_what_is_not_loaded_is_refused_by_name(keys: dict[str, Any], error: type[ModelError], text: str) -> None:
    with pytest.raises(error, match=text):
        read_checkpoint_quantization({"quantization_config": keys})
