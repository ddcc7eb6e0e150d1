"""Making a model's linear layers quantized while its checkpoint is read: rounded from plain weights, or as stored.

Knows which layers are meant. Does not know how formats pack numbers or how files are read. The functions here are
passes over a model that is laid out and has no memory yet: they put a slot in each such layer's place and return what
takes the checkpoint's tensors for it. A model in memory is never twice there: beyond it loading needs one projection's
tensors, and some MiB of plain weights where they are rounded row by row (all schemes but `fp8:tensor` and `fp8:block`).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from engine.errors import WeightMismatch
from engine.models.decoder import HEAD
from engine.placement import Placement
from engine.quantization.awq import AwqLayout
from engine.quantization.compressed_tensors import IntLayout, PackedLayout
from engine.quantization.config import CheckpointQuantization, LoadScheme, WeightFormat
from engine.quantization.float8 import Float8Layout
from engine.quantization.gptq import GptqLayout
from engine.quantization.layout import Cut, Layout, PlainLayout
from engine.quantization.mxfp4 import Mxfp4Layout
from engine.quantization.quantized_linear import make_linear
from engine.quantization.schemes import Quantizer, make_quantizer, round_cut
from engine.quantization.sinks import PartReader, RawSink, RoundingSink, ZeroSink
from engine.quantization.slots import Part, Slot, SlotFiller, replace_module
from engine.weights.safetensors_file import TensorEntry
from engine.weights.safetensors_loader import Sink

logger = logging.getLogger(__name__)

STAY_PLAIN = ("router", "shared_gate")  # a few outputs that decide much
SCALE_NAMES = ("weight_scale_inv", "weight_scale")
UNREAD = (".input_scale", ".output_scale", ".input_zero_point", ".k_scale", ".v_scale", ".kv_scale")
QUANTIZED_TYPES = ("I8", "F8_E4M3")
Parts = Mapping[str, list[Part]]


@dataclass(slots=True)
class StoredWeights:
    """Quantized weights of a checkpoint.

    Attributes:
        sinks: what takes their tensors, by name.
        names: what they would be called if they were plain.
    """

    sinks: dict[str, Sink]
    names: set[str]

    def add(self, part: Part, sinks: Mapping[str, Sink]) -> None:
        """Take those of a part."""
        self.sinks.update(sinks)
        self.names.add(part.weight_name)


def round_on_load(
    model: nn.Module,
    parts: Parts,
    scheme: LoadScheme,
    entries: Mapping[str, TensorEntry],
    device: torch.device,
    *,
    unwanted: Sequence[Part] = (),
) -> StoredWeights:
    """Put slots where the scheme quantizes, and return what rounds the checkpoint's weights for them.

    Weights are plain, or MXFP4 where `entries` has tensors that only this format has. For `unwanted` see
    `read_as_stored`.
    A part that is wanted, on a rank, is rounded as in the whole weight: what shares its scales is read too.
    """
    quantizer, filler = make_quantizer(scheme), SlotFiller(model, device)
    chosen = {path: named for path, named in parts.items() if _is_rounded(path, scheme)}
    targets: dict[str, list[tuple[Slot, Part]]] = {}
    for path, named in chosen.items():
        slot = _put_slot(model, path, named)
        for part in named:
            targets.setdefault(part.weight_name, []).append((slot, part))
    stored = StoredWeights({}, set())
    for name, ones in targets.items():
        part = ones[0][1]
        is_mxfp4 = part.expert is not None and _is_mxfp4(name, entries)
        sinks = _mxfp4_sinks(filler, ones, quantizer) if is_mxfp4 else {name: RoundingSink(filler, ones, quantizer)}
        stored.add(part, sinks)
    _pass_over_stacks(stored, unwanted, entries)
    logger.info("%d linear layers are rounded to %s as they are loaded", len(chosen), scheme.name)
    return stored


def round_tied_head(model: nn.Module, scheme: LoadScheme, placement: Placement) -> None:
    """Round the output matrix of a loaded model that shares it with its embedding, which stays as it is."""
    if scheme.quantizes_head and type(model.get_submodule(HEAD)) is nn.Linear:
        _round_linear(model, HEAD, make_quantizer(scheme), placement)


def read_as_stored(
    model: nn.Module,
    parts: Parts,
    checkpoint: CheckpointQuantization,
    entries: Mapping[str, TensorEntry],
    device: torch.device,
    *,
    unwanted: Sequence[Part] = (),
) -> StoredWeights:
    """Put slots where the checkpoint is quantized, and return what reads its tensors for them.

    Tensors of `unwanted` parts, which the model has not, are checked and not read.

    A module is quantized where the checkpoint has a tensor that only quantized ones have. A projection some of whose
    parts are quantized becomes plain as a whole.

    Raises:
        WeightMismatch: a module's shape does not suit its format.
    """
    filler = SlotFiller(model, device)
    stored = StoredWeights({}, set())
    stacked: dict[str, list[tuple[Slot, Part]]] = {}
    for path, named in parts.items():
        if named[0].expert is not None:
            if _is_mxfp4(named[0].name, entries):
                slot = _put_slot(model, path, named)
                stacked.setdefault(named[0].name, []).extend((slot, part) for part in named)
            continue
        layouts = {part: _layout_of(part, checkpoint, entries) for part in named}
        if not any(layouts.values()):
            continue
        fill = partial(PartReader, filler, _put_slot(model, path, named))
        for part, layout in layouts.items():
            same = [other for other in named if other.name == part.name]
            stored.add(part, _part_sinks(part, layout or PlainLayout(), entries, [partial(fill, one) for one in same]))
    for targets in stacked.values():
        stored.add(targets[0][1], _mxfp4_sinks(filler, targets, None))
    _pass_over_stacks(stored, unwanted, entries)
    for part in unwanted:
        if part.expert is None and (layout := _layout_of(part, checkpoint, entries)) is not None:
            stored.add(part, _part_sinks(part, layout, entries, []))
    logger.info("%s: quantized tensors %d", checkpoint.method, len(stored.sinks))
    return stored


def is_unread(name: str) -> bool:
    """Whether a tensor of a quantized checkpoint may be passed over: scales of activations, which ours find anew."""
    return name.endswith(UNREAD)


def _round_linear(model: nn.Module, path: str, quantizer: Quantizer, placement: Placement) -> None:
    linear = model.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.detach()
    rounded = round_cut(quantizer, Cut.whole(*weight.shape), lambda _: [weight])
    replace_module(model, path, make_linear(rounded, linear.bias, placement.device, placement.dtype))


def _is_rounded(path: str, scheme: LoadScheme) -> bool:
    return not path.endswith(STAY_PLAIN) and (scheme.quantizes_head or path != HEAD)


def _put_slot(model: nn.Module, path: str, named: list[Part]) -> Slot:
    linear = model.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    slot = Slot(linear, path, named)
    replace_module(model, path, slot)
    return slot


def _layout_of(part: Part, checkpoint: CheckpointQuantization, entries: Mapping[str, TensorEntry]) -> Layout | None:
    """Return how the part is stored, None where it is plain."""
    form = checkpoint.format_of(part.name)
    if form is None:
        return None
    scale_name = next((name for name in SCALE_NAMES if f"{part.name}.{name}" in entries), SCALE_NAMES[0])
    layout = _make_layout(form, scale_name)
    weight = entries.get(f"{part.name}.weight")
    if weight is not None:
        return layout if weight.dtype in QUANTIZED_TYPES else None
    return layout if any(f"{part.name}.{name}" in entries for name in layout.names) else None


def _make_layout(form: WeightFormat, scale_name: str) -> Layout:
    if form.layout == "float":
        return Float8Layout(form, scale_name)
    layouts = {"awq": AwqLayout, "gptq": GptqLayout, "packed": PackedLayout, "int": IntLayout}
    return layouts[form.layout](form)


def _is_mxfp4(name: str, entries: Mapping[str, TensorEntry]) -> bool:
    """Whether the stacked weights of that name are stored as MXFP4; other formats have none for stacks."""
    return any(f"{name}_{kind}" in entries for kind in Mxfp4Layout.names)


def _mxfp4_sinks(
    filler: SlotFiller, targets: Sequence[tuple[Slot, Part]], quantizer: Quantizer | None
) -> dict[str, Sink]:
    layout = Mxfp4Layout()
    readers = [PartReader(filler, slot, part, layout, layout.names, quantizer=quantizer) for slot, part in targets]
    return _stack_sinks(targets[0][1], readers)


def _pass_over_stacks(stored: StoredWeights, unwanted: Sequence[Part], entries: Mapping[str, TensorEntry]) -> None:
    """Check MXFP4 tensors of experts none of which is wanted, and do not read them."""
    for part in unwanted:
        if part.expert is not None and part.name not in stored.names and _is_mxfp4(part.name, entries):
            stored.add(part, _stack_sinks(part, []))


def _stack_sinks(part: Part, readers: Sequence[PartReader]) -> dict[str, Sink]:
    """Return what takes the tensors that stack this part of all experts, for the readers of some of them."""
    try:
        expected = Mxfp4Layout().tensors(*part.cut.shape)
    except ValueError as error:
        raise WeightMismatch(f"{part.name!r} cannot be quantized so: {error}") from None
    stacked = {kind: one.stacked(part.num_experts) for kind, one in expected.items()}
    return {f"{part.name}_{kind}": RawSink(readers, kind, one) for kind, one in stacked.items()}


def _part_sinks(
    part: Part,
    layout: Layout,
    entries: Mapping[str, TensorEntry],
    makers: Sequence[Callable[[Layout, Sequence[str]], PartReader]],
) -> dict[str, Sink]:
    """Return what takes the tensors of the part's name, for the readers that `makers` make."""
    try:
        expected = layout.tensors(*part.cut.shape)
    except ValueError as error:
        raise WeightMismatch(f"{part.name!r} cannot be quantized so: {error}") from None
    there = {name: one for name, one in expected.items() if not one.is_optional or f"{part.name}.{name}" in entries}
    readers = [make(layout, list(there)) for make in makers]
    sinks: dict[str, Sink] = {f"{part.name}.{name}": RawSink(readers, name, one) for name, one in there.items()}
    bias = f"{part.name}.bias"
    if not part.has_bias and bias in entries:
        sinks[bias] = ZeroSink(bias, part.cut.shape[0])
    return sinks
