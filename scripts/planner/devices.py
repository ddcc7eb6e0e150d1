"""What a device can do: published peak rates, or rates that were measured and written to a file.

Knows rates, sizes and where each number comes from. Does not know models or layouts.

Published rates are of dense arithmetic (no sparsity), one direction of a link, from the vendors' data sheets. No kernel
reaches them, so a published device also has shares of them that kernels are *assumed* to reach. A measured device has
shares of 1: its rates were reached.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

GB = 1e9
TERA = 1e12


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
        source: `published`, or when and on what it was measured.
        memory: bytes for weights and KV cache.
        bandwidth: bytes/s that weights are read at.
        compute: FLOP/s of matrix products by the type of their operands.
        attention: FLOP/s of attention whose keys and values are at hand.
        kv_bandwidth: bytes/s that attention reads these at from memory, block by block; 0 is as fast as weights.
        near, far: links within a node and between nodes.
        devices_per_node: devices that share the near link.
        layer_s: seconds of a layer that depend on nothing: launches.
        step_s: seconds of a step that depend on nothing: scheduling, one synchronisation.
        sequence_s: seconds that each sequence adds to a step: sampling, bookkeeping.
        tell_s: seconds that telling other ranks of a step adds to it.
        compute_share, bandwidth_share, link_share: what of the rates kernels reach.
        is_cpu: whether expert groups may exchange tokens; see `engine.parallel.experts`.
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
    devices_per_node: int = 8
    layer_s: float = 20e-6
    step_s: float = 1e-3
    sequence_s: float = 2e-6
    compute_share: float = 1.0
    bandwidth_share: float = 1.0
    link_share: float = 1.0
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
        link = self.near if num_ranks <= self.devices_per_node else self.far
        return replace(link, bandwidth=link.bandwidth * self.link_share)


def _published(
    name: str, memory_gb: float, bandwidth_gb: float, near_gb: float, far_gb: float, **tera: float
) -> Device:
    """Return a GPU: data-sheet rates, assumed shares and latencies."""
    return Device(
        name=name,
        source="published",
        memory=memory_gb * GB,
        bandwidth=bandwidth_gb * GB,
        compute={dtype: rate * TERA for dtype, rate in tera.items()},
        attention=tera["bf16"] * TERA,
        near=Link(start_s=5e-6, hop_s=1e-6, bandwidth=near_gb * GB),
        far=Link(start_s=10e-6, hop_s=5e-6, bandwidth=far_gb * GB),
        compute_share=0.6,
        bandwidth_share=0.75,
        link_share=0.75,
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
