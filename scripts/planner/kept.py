"""In which types the engine keeps a model's weights on a device, and what it multiplies them by.

Knows what `engine.quantization` does with checkpoints and schemes on GPUs and on CPUs. Does not know costs.

On a CPU all quantized weights but those whose inputs are rounded too become plain ones of fp32 as they are loaded
(`engine.quantization.quantized_linear`), and plain ones stay in their file's 16 bits, which takes what bf16 takes.
"""

from dataclasses import dataclass

from engine.models.config import ModelConfig
from engine.quantization.config import MXFP4, WeightFormat
from scripts.planner.devices import Device, PlanError

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5625}  # int4 with a scale for each group of 32
KV_TYPES = ("fp32", "bf16", "fp8", "int8")
ROUNDED = "int8", "fp8", "int4"


@dataclass(frozen=True, slots=True)
class Types:
    """The types of weights and of cached keys and values.

    Attributes:
        weights: of linear layers.
        kv_cache: of keys and values.
        head: of the LM head; None for that of `weights`.
        embedding: of the embedding, which is a table of its own where the head is of another type; None for the head's.
        rounds_inputs: whether 8-bit weights are multiplied by 8-bit inputs.
    """

    weights: str
    kv_cache: str
    head: str | None = None
    embedding: str | None = None
    rounds_inputs: bool = True

    @property
    def head_type(self) -> str:
        """That of the head."""
        return self.head or self.weights

    @property
    def embedding_type(self) -> str:
        """That of the embedding."""
        return self.embedding or self.head_type

    def activations(self, device: Device) -> str:
        """The type in between, in which ranks exchange."""
        return "bf16" if self.weights != "fp32" and "bf16" in device.compute else "fp32"

    def operands(self, device: Device) -> str:
        """The type that products are computed in: the weights' where the device has it, else that in between."""
        is_rounded = self.weights in {"int8", "fp8"}
        if self.weights in device.compute and (self.rounds_inputs or not is_rounded):
            return self.weights
        return self.activations(device)


def checkpoint_types(model: ModelConfig, device: Device, kv_cache: str) -> Types:
    """Return the types of a checkpoint that is served as it is. fp16 counts as bf16."""
    plain = plain_type(model, device)
    quantization = model.quantization
    if quantization is None or quantization.method == MXFP4:
        return Types(plain, kv_cache)
    form = quantization.formats[0][1]
    on_cpu = "int8" if form.multiplies_integers else "fp32"
    weights = on_cpu if device.is_cpu else _on_gpu(form) or plain
    return Types(weights, kv_cache, head=plain, rounds_inputs=form.quantizes_inputs or form.layout == "float")


def rounded_types(model: ModelConfig, device: Device, kv_cache: str, weights: str) -> Types:
    """Return the types of a plain checkpoint whose weights are cast, or rounded as they are loaded, to `weights`.

    Raises:
        PlanError: the device does not keep such weights.
    """
    if weights not in ROUNDED:
        return Types(weights, kv_cache)
    if device.is_cpu and weights != "int8":
        raise PlanError(f"on a CPU the engine keeps {weights} weights as fp32: give fp32, or int8 (int8_dynamic)")
    plain = plain_type(model, device)
    head = weights if weights == "int8" else plain  # as `LoadScheme.quantizes_head` says
    return Types(weights, kv_cache, head=head, embedding=plain)


def plain_type(model: ModelConfig, device: Device) -> str:
    """Return the type of weights that nobody rounds."""
    if device.is_cpu:
        return "bf16" if model.dtype in {"bfloat16", "float16"} else "fp32"
    return device.default_weights


def _on_gpu(form: WeightFormat) -> str | None:
    """Return the type of a format's weights on a GPU; None where they become plain ones."""
    if form.layout == "float":
        return "fp8"
    if form.bits == 4:
        return "int4"
    is_kept = form.layout == "int" or (form.layout == "packed" and not form.group and not form.has_zeros)
    return "int8" if is_kept else None
