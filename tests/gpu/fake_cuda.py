"""A CUDA device made of host memory: what must not happen on a GPU cannot happen here either.

Tensors of the fake device hold a host tensor and say that they are on `cuda:0`. Every operation of torch passes through
`FakeCuda`, which refuses operations that mix host and device, counts what would make the host wait (reading a value,
operations whose shape depends on values, copies that are not from or to page-locked memory), and keeps the copies to
the host that were asked for in the background. Kernels are launched through `FakeCuda.kernel`, as a GPU's would be.

Graphs are recorded as what was launched on which memory, and replayed on the same memory.

There may be several devices, each for the thread that has entered it: no other device's tensors are taken there.
"""

import contextlib
import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from kernels import (
    draw_token,
    expert_routing,
    gated_activation,
    linear,
    paged_attention,
    quantized_experts,
    quantized_linear,
    rms_norm,
    rope_kv_store,
    stacked_experts,
)
from kernels.draw_token import Draws, Edits
from kernels.linear.reference import gated_linear_reference, streamed_linear_reference
from kernels.quantized_experts import quantized_experts_reference
from kernels.quantized_linear import Weight
from kernels.quantized_linear.reference import REFERENCES

aten = torch.ops.aten
TOTAL_BYTES = 4 << 20
FREE_BYTES = 3 << 20
HERE = threading.local()  # `fake`: the device that this thread has entered
WAITING = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.is_nonzero.default),
    *(aten.bincount.default, aten.repeat_interleave.Tensor, aten.equal.default, aten._unique2.default),
}
GUARDS, CUDA, META = "_ZN3c104impl26device_guard_impl_registryE", 1, 14
KERNELS: list[tuple[Any, Callable[..., Any]]] = [
    (paged_attention, paged_attention.paged_attention_reference),
    (rope_kv_store, rope_kv_store.rope_kv_store_reference),
    (rms_norm, rms_norm.rms_norm_reference),
    (expert_routing, expert_routing.expert_routing_reference),
    (stacked_experts, stacked_experts.stacked_experts_reference),
]


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on the GPU."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor, index: int) -> "DeviceTensor":
        looks = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        with torch.inference_mode(mode=False):  # views of what was made outside of it would be refused within
            made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
                cls, raw.shape, device=torch.device("cuda", index), **looks
            )
        made.raw = raw
        return made

    def record_stream(self, s: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do nothing: memory is never used again here."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on a device tensor outside of the fake device")


def unwrap(value: Any) -> Any:
    return value.raw if isinstance(value, DeviceTensor) else value


@dataclass
class FakeGraph:
    """What was launched while it was recorded."""

    fake: "FakeCuda"
    launches: list[Callable[[], None]] = field(default_factory=list)

    def replay(self) -> None:
        self.fake.replays += 1
        self.fake.is_inside = True
        with _disable_current_modes(), torch.inference_mode():
            for launch in self.launches:
                launch()
        self.fake.is_inside = False


class FakeCuda(TorchDispatchMode):
    """The device of that index, while it is entered."""

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index = index
        self.free_bytes = FREE_BYTES
        self.is_done = True  # with all that was launched, as far as events tell
        self.waits: Counter[str] = Counter()
        self.downloads = 0
        self.uploads = 0
        self.reads = 0
        self.kernels = 0
        self.is_inside = False
        self.replays = 0
        self.pinned: set[int] = set()
        self.recording: FakeGraph | None = None

    def __enter__(self) -> Self:
        HERE.fake = self
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        with self:
            decomposed = func.decompose(*args, **kwargs)
        if decomposed is not NotImplemented:
            return decomposed
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if isinstance(x, DeviceTensor)]
        target = kwargs.get("device")
        to_device = target is not None and torch.device(target).type == "cuda"
        if not on_device and not to_device:
            return self._on_host(func, args, kwargs)
        devices = {x.device.index for x in on_device}
        if target is not None and to_device:
            devices.add(torch.device(target).index)
        assert devices <= {self.index, None}, f"{func} on device {self.index} reaches for {devices}"
        if func is aten.copy_.default and len(on_device) == 1:
            return self._copy(*args, **kwargs)
        self._count(func, args, kwargs, target, to_device=to_device)
        hosts = [x for x in tensors if not isinstance(x, DeviceTensor) and x.dim() and x.device.type != "meta"]
        assert not hosts or func is aten._to_copy.default, f"{func} mixes host and device: {hosts[0].shape}"
        if target is not None:
            kwargs["device"] = "cpu" if torch.device(target).type == "cuda" else target
        kwargs.pop("pin_memory", None)
        leaves_device = bool(on_device) and target is not None and not to_device
        return self.launch(func, args, kwargs, wrap=not leaves_device)

    def launch(self, func: Callable[..., Any], args: Any, kwargs: Any, *, wrap: bool = True) -> Any:
        """Run something on the host memory of device tensors."""
        owners = {id(x.raw): x for x in tree_flatten((args, kwargs))[0] if isinstance(x, DeviceTensor)}
        raw_args, raw_kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
        with _disable_current_modes(), torch.inference_mode(torch.is_inference_mode_enabled()):
            out = func(*raw_args, **raw_kwargs)
        if self.recording is not None:
            self.recording.launches.append(lambda: again(func, raw_args, raw_kwargs, out, set(owners)))

        def wrapped(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not wrap:
                return value
            return owners[id(value)] if id(value) in owners else DeviceTensor(value, self.index)

        return tree_map(wrapped, out)

    def kernel(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of device tensors that runs one of host tensors."""

        @wraps(function)
        def launched(*args: Any, **kwargs: Any) -> Any:
            if self.is_inside:
                return function(*args, **kwargs)
            flat = tree_flatten((args, kwargs))[0]
            hosts = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor)]
            assert not hosts, f"{function} was given host tensors"
            self.kernels += 1
            self.is_inside = True
            try:
                return self.launch(function, args, kwargs)
            finally:
                self.is_inside = False

        return launched

    def _on_host(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        is_pinned = kwargs.pop("pin_memory", False)
        out = func(*args, **kwargs)
        if is_pinned:
            self.pinned.add(out.untyped_storage().data_ptr())
        return out

    def _copy(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        host = source if isinstance(to, DeviceTensor) else to
        is_pinned = host.untyped_storage().data_ptr() in self.pinned
        if not (non_blocking and is_pinned):
            self.waits[f"a copy, non_blocking={non_blocking}, page-locked={is_pinned}"] += 1
        elif host is to:
            self.downloads += 1
        else:
            self.uploads += 1
        with _disable_current_modes():
            unwrap(to).copy_(unwrap(source))
        return to

    def _count(self, func: Any, args: Any, kwargs: Any, target: Any, *, to_device: bool) -> None:
        if func in WAITING:
            self.waits[str(func)] += 1
        if func in {aten.index.Tensor, aten.index_put_.default}:
            assert not any(x is not None and x.dtype in {torch.bool, torch.uint8} for x in args[1]), "a mask as index"
        if func is aten._to_copy.default and target is not None:
            is_there = isinstance(args[0], DeviceTensor)
            if is_there != to_device:
                self.waits["a copy to the device" if to_device else "a copy to the host"] += 1


def again(func: Callable[..., Any], args: Any, kwargs: Any, out: Any, given: set[int]) -> None:
    """Launch what was recorded; results go where they went the first time."""
    fresh = func(*args, **kwargs)
    places = {x.untyped_storage().data_ptr() for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)}
    for old, new in zip(tree_flatten(out)[0], tree_flatten(fresh)[0], strict=True):
        is_tensor = isinstance(old, torch.Tensor)
        if is_tensor and id(old) not in given and old.untyped_storage().data_ptr() not in places:
            old.copy_(new)


class FakeStream:
    """Everything happens at once, so that order is kept by itself."""

    def __init__(self, *_given: Any, **_options: Any) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, stream: Any) -> None:
        self.waited.append(stream)

    def synchronize(self) -> None: ...


class FakeEvent:
    """Must be recorded before anybody waits for it; waiting is what a read is counted by."""

    def __init__(self, fake: FakeCuda) -> None:
        self.fake = fake
        self.is_recorded = False

    def record(self, _stream: Any = None) -> None:
        self.is_recorded = True

    def synchronize(self) -> None:
        assert self.is_recorded
        self.fake.reads += 1

    def query(self) -> bool:
        assert self.is_recorded
        return self.fake.is_done


def here() -> FakeCuda:
    """Return the device that this thread has entered."""
    return HERE.fake


def set_device(device: torch.device) -> None:
    assert torch.device(device).index == here().index


def draw(logits: torch.Tensor, draws: Draws, edits: Edits | None = None) -> Any:
    """Choose tokens by the reference: the device knows plain tensors only."""

    def reference(logits: torch.Tensor, *fields: torch.Tensor) -> Any:
        return draw_token.draw_tokens_reference(logits, Draws(*fields[:5]), Edits(*fields[5:]) if fields[5:] else None)

    fields = [getattr(part, name) for part in (draws, edits) if part is not None for name in part.__slots__]
    return here().kernel(reference)(logits, *fields)


def quantized_linear_of(_device: torch.device, scheme: str) -> Callable[..., Any]:
    """Return the product with a quantized weight, whose tensors are taken apart: the device knows plain ones only."""

    def multiply(inputs: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> Any:
        def reference(inputs: torch.Tensor, bias: torch.Tensor | None, *parts: Any) -> torch.Tensor:
            return REFERENCES[scheme](inputs, type(weight)(*parts), bias)

        return here().kernel(reference)(inputs, bias, *_parts(weight))

    return multiply


def quantized_experts_of(_device: torch.device, scheme: str) -> Callable[..., Any]:
    """Return quantized experts, whose weights are taken apart."""

    def compute(
        hidden: Any, expert_ids: Any, weights: Any, gate_up: Weight, down: Weight, activate: Any, **biases: Any
    ) -> Any:
        def reference(hidden: Any, expert_ids: Any, weights: Any, *parts: Any, **biases: Any) -> torch.Tensor:
            count = len(fields(gate_up))
            both = type(gate_up)(*parts[:count]), type(down)(*parts[count:])
            return quantized_experts_reference(scheme, hidden, expert_ids, weights, *both, activate, **biases)

        return here().kernel(reference)(hidden, expert_ids, weights, *_parts(gate_up), *_parts(down), **biases)

    return compute


def _parts(weight: Weight) -> list[Any]:
    return [getattr(weight, part.name) for part in fields(weight)]


@contextlib.contextmanager
def record(graph: FakeGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "") -> Iterator[None]:
    """Record what this thread launches."""
    assert capture_error_mode == "thread_local"  # others would be broken off by NCCL's watchdog
    graph.fake.recording = graph
    yield
    graph.fake.recording = None


@contextlib.contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch, num_devices: int = 1) -> Iterator[FakeCuda]:
    """Put CUDA devices into this process, and this thread into the first one."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 22).in_dll(library, GUARDS)
    before, guards[CUDA] = guards[CUDA], guards[META]  # does nothing, as that of the meta device
    current = FakeStream()
    for name, value in {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: num_devices,
        "get_device_properties": lambda index: SimpleNamespace(uuid=f"GPU-{index}"),
        "set_device": set_device,
        "get_device_name": lambda _device=None: "no GPU",
        "Stream": FakeStream,
        "Event": lambda: FakeEvent(here()),
        "current_stream": lambda _device=None: current,
        "stream": lambda _stream: contextlib.nullcontext(),
        "synchronize": lambda _device=None: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _device=None: (here().free_bytes, TOTAL_BYTES),
        "memory_allocated": lambda _device=None: 1000,
        "max_memory_allocated": lambda _device=None: 501_000,
        "reset_peak_memory_stats": lambda _device=None: None,
        "CUDAGraph": lambda: FakeGraph(here()),
        "graph": record,
        "graph_pool_handle": object,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for package, function in KERNELS:
        monkeypatch.setattr(package, "select", lambda _device, function=function: here().kernel(function))
    monkeypatch.setattr(rms_norm, "select_adding", lambda _device: here().kernel(rms_norm.add_rms_norm_reference))
    monkeypatch.setattr(draw_token, "select", lambda _device: draw)
    monkeypatch.setattr(quantized_linear, "select", quantized_linear_of)
    monkeypatch.setattr(quantized_experts, "select", quantized_experts_of)
    monkeypatch.setattr(linear, "select_streamed", lambda _device: here().kernel(streamed_linear_reference))
    monkeypatch.setattr(linear, "select_gated", lambda _device: here().kernel(gated_linear_reference))
    monkeypatch.setattr(
        gated_activation,
        "select",
        lambda _device, name: here().kernel(lambda x: gated_activation.gated_activation_reference(name, x)),
    )
    try:
        with FakeCuda() as fake:
            yield fake
    finally:
        guards[CUDA] = before or guards[META]  # tensors of the fake device may still be about
