"""What a model's linear layers see of a text: token ids, and the second moments of the layers' inputs.

Knows a model's layers one after the other. Does not know rounding.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from engine.batch import Batch, build_batch
from engine.core import EngineCore
from engine.kv_cache import KVCache
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder
from engine.offline import generate
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.step_plan import ScheduledSequence, StepPlan

BLOCK_SIZE = 16
SEQUENCE_TOKENS = 256


def own_text(core: EngineCore, num_sequences: int) -> list[list[int]]:
    """Return token ids that the model writes by itself, at temperature 1, the same each time."""
    start = core.tokenizer.encode("") or [core.info.eos_token_ids[0] if core.info.eos_token_ids else 0]
    length = min(SEQUENCE_TOKENS, core.info.max_model_len)
    params = [
        SamplingParams(max_tokens=length - len(start), temperature=1.0, seed=seed, ignore_eos=True)
        for seed in range(num_sequences)
    ]
    completions = generate(core, [start] * num_sequences, params)
    return [start + completion.token_ids for completion in completions]


def cut(token_ids: list[int], length: int, most: int) -> list[list[int]]:
    """Return at most `most` pieces of a text's tokens, each `length` long but the last."""
    pieces = [token_ids[start : start + length] for start in range(0, len(token_ids), length)]
    return [piece for piece in pieces if len(piece) > 1][:most]


class LayerWalk:
    """Takes sequences through a model layer by layer; a layer may be changed before its answers go on."""

    def __init__(self, model: Decoder, config: ModelConfig, sequences: list[list[int]]) -> None:
        """Embed the sequences."""
        self._model, self._batch = model, _one_step(sequences)
        num_blocks = sum(-(-len(ids) // BLOCK_SIZE) for ids in sequences)
        one_layer = replace(config, num_layers=1)
        self._cache = KVCache.allocate(one_layer, num_blocks, BLOCK_SIZE, torch.device("cpu"), torch.float32)
        self._hidden = model.embed(self._batch.input_ids)

    def layers(self) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield each layer's index, and for its linear modules, by their names in the model, the moments of inputs.

        Moments are sums of x x^T, [C, C].
        """
        for index, layer in enumerate(self._model.layers):
            moments: dict[str, torch.Tensor] = {}
            hooks = [
                module.register_forward_pre_hook(_adder(moments, f"layers.{index}.{name}"))
                for name, module in layer.named_modules()
                if isinstance(module, nn.Linear)
            ]
            self._run(index, self._hidden.clone())
            for hook in hooks:
                hook.remove()
            yield index, moments
            self._run(index, self._hidden)

    def _run(self, index: int, residual: torch.Tensor) -> None:
        """Add what the layer answers to the residual [T, C]."""
        cos_sin, cache = self._model.cos_sin[index], self._cache.layers[0]
        residual += self._model.layers[index](residual, None, self._batch, cos_sin, cache)


def _adder(moments: dict[str, torch.Tensor], name: str):  # noqa: ANN202 - torch's own type of a hook
    def add(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0]
        moments[name] = moments.get(name, 0) + rows.t() @ rows

    return add


def _one_step(sequences: list[list[int]]) -> Batch:
    """Return a step that computes all sequences whole."""
    scheduled, first = [], 0
    for number, ids in enumerate(sequences):
        blocks = list(range(first, first + -(-len(ids) // BLOCK_SIZE)))
        first += len(blocks)
        params = SamplingParams(max_tokens=1)
        sequence = Sequence(number, ids, len(ids), params, len(ids) + 1, frozenset(), block_table=blocks)
        scheduled.append(ScheduledSequence(sequence, len(ids)))
    return build_batch(StepPlan(scheduled, sum(map(len, sequences))), BLOCK_SIZE)
