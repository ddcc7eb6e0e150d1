"""How much memory a checkpoint's weights take once an engine has loaded them.

Knows the headers of safetensors files and what an engine makes of each type: on a GPU all stay as they are, on a CPU
plain ones do, W8A8 stays 8-bit integers, and every other quantized weight is widened to fp32
(`engine/quantization/quantized_linear.py`), whether the checkpoint stores it so or it is rounded as it is loaded.
Does not know tensors.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.quantization.config import CheckpointQuantization, LoadScheme, read_checkpoint_quantization
from scripts.launcher.errors import LaunchError

FP32_BYTES = 4
LENGTH_BYTES = 8
PACKED = ("qweight", "weight_packed")  # values of some bits in 32-bit words
MXFP4_BLOCKS = "_blocks"  # two values in a byte
QUANTIZED_TYPES = ("I8", "F8_E4M3")
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
CURE = "give --model a checkpoint that can be read, or fetch it again"


def weights_bytes(files: Sequence[Path], raw_config: dict[str, Any], config: EngineConfig, on_cpu: bool) -> int:
    """Return the size of the weights of one instance, all its ranks together, in bytes.

    Raises:
        LaunchError: a file's header or the checkpoint's quantization cannot be read.
    """
    if not on_cpu:
        return sum(file.stat().st_size for file in files)
    try:
        checkpoint = read_checkpoint_quantization(raw_config)
        scheme = LoadScheme.parse(config.quantization) if config.quantization else None
    except ModelError as error:
        raise LaunchError(f"the checkpoint cannot be served: {error}", CURE) from None
    tensors = [tensor for file in files for tensor in _tensors(file)]
    needed = sum(_bytes_on_cpu(*tensor, checkpoint, scheme) for tensor in tensors)
    has_head = any(name == HEAD for name, _, _ in tensors)
    if scheme is not None and scheme.quantizes_head and not has_head:  # a tied head is rounded beside the embedding
        needed += sum(math.prod(shape) for name, _, shape in tensors if name.endswith(EMBEDDING)) * _rounded(scheme)
    return needed


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, type and shape of each tensor."""
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(LENGTH_BYTES), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, entry["dtype"], entry["shape"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LaunchError(f"{file} cannot be read as safetensors: {error!r}", CURE) from None


def _bytes_on_cpu(
    name: str, dtype: str, shape: list[int], checkpoint: CheckpointQuantization | None, scheme: LoadScheme | None
) -> int:
    module, _, kind = name.rpartition(".")
    form = checkpoint.format_of(module) if checkpoint is not None else None
    count = math.prod(shape)
    if kind in PACKED and form is not None:
        return count * 32 // form.bits * FP32_BYTES
    if name.endswith(MXFP4_BLOCKS):
        return 2 * count * _rounded(scheme)
    if kind == "weight" and dtype in QUANTIZED_TYPES:
        stays = form is not None and form.multiplies_integers
        return count * (1 if stays else FP32_BYTES)
    if scheme is not None and len(shape) > 1 and _is_rounded(name, scheme):
        return count * _rounded(scheme)
    return count * (int("".join(filter(str.isdigit, dtype.partition("_")[0]))) // 8)


def _is_rounded(name: str, scheme: LoadScheme) -> bool:
    return not name.endswith(EMBEDDING) and (scheme.quantizes_head or name != HEAD)


def _rounded(scheme: LoadScheme | None) -> int:
    """Return the bytes of a value that is rounded so on a CPU."""
    return 1 if scheme is not None and scheme.name == "int8_dynamic" else FP32_BYTES
