"""What a device can do: published peak rates, or rates that were measured and written to a file.

Knows rates, sizes and where each number comes from. Does not know models or layouts.

All rates of a device are such as kernels reach. Published ones are peaks of dense arithmetic (no sparsity) and one
direction of a link, from the vendors' data sheets, times the shares of them that were measured on one H200
(docs/planning.md says by which rows); that other GPUs reach the same shares, and links theirs, is *assumed*.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

GB = 1e9
TERA = 1e12

# Shares of published peaks, on an H200 with Llama 3 8B and Mixtral 8x7B in bf16.
READING = 0.88  # a copy
COMPUTING = {"bf16": 0.65, "fp32": 0.65, "int8": 0.58, "fp8": 0.38}  # a prefill's linear layers; 8 bits: kernels alone
ATTENDING = 0.275  # of the 16-bit peak: 8,192 tokens of a prompt
EXPERTS = 0.78  # of what linear layers reach: 4,096 tokens of Mixtral
LINKS = 0.75  # assumed
LAYER_S = 18e-6  # a decode step's nine kernels a layer, each filling and draining the GPU
HOST_S, HOST_SEQUENCE_S = 0.8e-3, 3e-6  # a step of a model of two tiny layers, at 1 and at 4 sequences


class PlanError(Exception):
    """Something that cannot be planned, with the value and what would do."""


@dataclass(frozen=True, slots=True)
class Link:
    """How ranks reach each other.

    Attributes:
        start_s: seconds until a collective begins on all ranks.
        hop_s: seconds of one message, however small.
        bandwidth: bytes/s out of one device.
    """

    start_s: float
    hop_s: float
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, or a process of CPU threads.

    Attributes:
        source: where the rates are from, and when they were measured.
        memory: bytes for weights and KV cache.
        bandwidth: bytes/s that weights are read at.
        compute: FLOP/s of matrix products by the type of their operands.
        attention: FLOP/s of attention whose keys and values are at hand.
        kv_bandwidth: bytes/s that attention reads these at from memory, block by block; 0 is as fast as weights.
        near, far: links within a node and between nodes.
        devices_per_node: devices that share the near link.
        experts: what of `compute` the products of experts reach.
        layer_s: seconds of a layer that depend on nothing: kernels starting and ending.
        step_s: seconds of a step that depend on nothing, on the host: scheduling, laying out, one synchronisation.
        sequence_s: seconds that each sequence adds to a step there: sampling, bookkeeping.
        tell_s: seconds that telling other ranks of a step adds to it.
        is_cpu: whether the host computes the model too, and whether expert groups may exchange tokens
            (`engine.parallel.experts`).
        overlap: what of the lesser of computing and reading weights hides behind the other; 1 is the roofline.
    """

    name: str
    source: str
    memory: float
    bandwidth: float
    compute: Mapping[str, float]
    attention: float
    near: Link
    far: Link
    layer_s: float
    step_s: float
    sequence_s: float
    devices_per_node: int = 8
    experts: float = 1.0
    overlap: float = 1.0
    kv_bandwidth: float = 0.0
    is_cpu: bool = False
    tell_s: float = 0.0

    @property
    def default_weights(self) -> str:
        """The type that weights have where nobody says."""
        return "bf16" if "bf16" in self.compute else "fp32"

    def link(self, num_ranks: int) -> Link:
        """Return the link that a group of neighbouring ranks is bound by."""
        return self.near if num_ranks <= self.devices_per_node else self.far


def _published(
    name: str, memory_gb: float, bandwidth_gb: float, near_gb: float, far_gb: float, **tera: float
) -> Device:
    """Return a GPU, from its data sheet; links' latencies are assumed."""
    return Device(
        name=name,
        source="published peaks, of which kernels are taken to reach what they did on one H200",
        memory=memory_gb * GB,
        bandwidth=READING * bandwidth_gb * GB,
        compute={dtype: COMPUTING[dtype] * rate * TERA for dtype, rate in tera.items()},
        attention=ATTENDING * tera["bf16"] * TERA,
        near=Link(start_s=5e-6, hop_s=1e-6, bandwidth=LINKS * near_gb * GB),
        far=Link(start_s=10e-6, hop_s=5e-6, bandwidth=LINKS * far_gb * GB),
        experts=EXPERTS,
        layer_s=LAYER_S,
        step_s=HOST_S,
        sequence_s=HOST_SEQUENCE_S,
    )


PUBLISHED = {
    device.name: device
    for device in (
        _published("A10", 24, 600, 32, 12.5, bf16=125, fp32=31.2, int8=250),
        _published("L4", 24, 300, 32, 12.5, bf16=121, fp32=30.3, int8=242, fp8=242),
        _published("L40S", 48, 864, 32, 25, bf16=362, fp32=91.6, int8=733, fp8=733),
        _published("A100", 80, 2039, 300, 25, bf16=312, fp32=19.5, int8=624),
        _published("H100-PCIe", 80, 2000, 64, 50, bf16=756, fp32=51, int8=1513, fp8=1513),
        _published("H100", 80, 3350, 450, 50, bf16=989, fp32=67, int8=1979, fp8=1979),
        _published("H200", 141, 4800, 450, 50, bf16=989, fp32=67, int8=1979, fp8=1979),
        _published("B200", 180, 7700, 900, 50, bf16=2250, fp32=75, int8=4500, fp8=4500),
    )
}


def find_device(name: str) -> Device:
    """Return the published device of that name, or the measured one in that file.

    Raises:
        PlanError: there is neither.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    path = Path(name)
    if not path.is_file():
        raise PlanError(f"there is no device {name!r}: give one of {', '.join(PUBLISHED)}, or a file of measured rates")
    return read_device(path)


def read_device(path: Path) -> Device:
    """Return the device that `scripts/bench device --json` has written.

    Raises:
        PlanError: the file is not of that form.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        given = document["device"]
        links = {name: Link(**given[name]) for name in ("near", "far")}
        device = Device(**{**given, **links})
        numbers = [getattr(device, item.name) for item in fields(Device) if item.type is float]
        numbers += [*device.compute.values(), *asdict(device.near).values(), *asdict(device.far).values()]
        if not numbers or any(not number >= 0 for number in numbers) or not device.compute:
            raise PlanError(f"{path}: rates must be numbers of at least 0")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path} holds no device as `scripts/bench device --json` writes it: {error!r}") from error
    return device


def device_fields(device: Device) -> dict[str, Any]:
    """Return what `read_device` reads."""
    return asdict(replace(device, compute=dict(device.compute)))
