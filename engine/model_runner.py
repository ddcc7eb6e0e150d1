"""Computing a step: plan in, one sampled token out for each sequence that reached its end, and logits behind drafts.

Knows the model, its cache and the device. Does not know queues, stopping or clients.
"""

import logging
import os
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numba.core import config as numba_config

from engine.batch import Batch, build_batch
from engine.config import EngineConfig
from engine.errors import RequestFailed
from engine.kv_cache import KVCache, num_blocks_for
from engine.layers.packed_linear import can_pack, pack_linears
from engine.log_probs import LoggedRows
from engine.lora.lora_linear import wrap_linears
from engine.lora.targets import find_targets
from engine.models.config import ModelConfig
from engine.models.registry import build_model
from engine.sampler import SampledTokens, sample
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.step_plan import ScheduledSequence, StepPlan
from engine.weights.safetensors_loader import load_weights

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepRun:
    """What a step says about the sequences whose last token it computed.

    Attributes:
        items: these sequences.
        sampled: the tokens behind their last ones, in the same order.
        draft_logits: [D, V], behind each draft token, in the same order.
        states: hidden states, [n, C], of the last n of the step's tokens, of items that pool them.
    """

    items: list[ScheduledSequence]
    sampled: SampledTokens
    draft_logits: torch.Tensor
    states: list[tuple[ScheduledSequence, np.ndarray]]

    @torch.inference_mode()
    def sample_behind(self, indexes: list[int], number: int) -> SampledTokens:
        """Sample behind draft token `number`, from 1, of some of the items; it is their sequences' last one by now."""
        starts = np.cumsum([0, *(len(item.draft_ids) for item in self.items)])
        try:
            rows = self.draft_logits[starts[indexes] + number - 1]
            return sample(rows, [self.items[index].sequence for index in indexes])
        except Exception as error:
            logger.exception("%d sequences could not be sampled behind their drafts", len(indexes))
            return SampledTokens.failed(RequestFailed(f"the next token could not be chosen: {error!r}"), len(indexes))


class ModelRunner:
    """Holds the weights and the KV cache and runs forward passes."""

    def __init__(self, config: EngineConfig, model_config: ModelConfig) -> None:
        """Load the checkpoint and reserve the cache.

        Raises:
            ModelError: the checkpoint cannot be served, or the cache holds no block.
        """
        set_threads(config.num_threads)
        self.block_size = config.block_size
        self.num_blocks = num_blocks_for(config, model_config)
        limit = config.max_model_len or model_config.max_position_embeddings
        self.max_model_len = min(limit, model_config.max_position_embeddings, self.num_blocks * config.block_size)
        self.model = build_model(model_config, self.max_model_len, torch.device("cpu"))
        views = self.model.weight_views()
        load_weights(config.model, views, self.model.is_redundant)
        self.adapter_targets = find_targets(self.model, views) if config.adapters is not None else {}
        if can_pack():
            pack_linears(self.model)
        logger.info("linear layers: %s", "oneDNN, packed weights" if can_pack() else "torch")
        paths = [target.path for target in self.adapter_targets.values()]
        self.adapter_rows = wrap_linears(self.model, paths, torch.device("cpu"))
        self.cache = KVCache.allocate(model_config, self.num_blocks, config.block_size)

    def warm_up(self) -> None:
        """Compile and touch everything a step needs, so that no request waits for it; leaves rubbish in block 0."""
        params = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=1)
        dummy = Sequence(0, [0, 0], 2, params, 3, frozenset(), block_table=[0, 0])
        self.run(StepPlan([ScheduledSequence(dummy, 2)], num_tokens=2))

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepRun:
        """Compute the plan's tokens and sample for the sequences whose last token was among them."""
        batch = build_batch(plan, self.block_size)
        self.adapter_rows.assign([item.sequence.adapter for item in plan.scheduled], batch.token_to_seq)
        logits = self.model(batch, self.cache)
        items = [item for item in plan.scheduled if item.samples]
        num_drafts = sum(len(item.draft_ids) for item in items)
        first, drafted, prompts = logits.tensor_split((len(items), len(items) + num_drafts))
        _log_prompts(prompts, batch.prompts)
        return StepRun(items, sample(first, batch.sampling), drafted, _states(batch))


def _states(batch: Batch) -> list[tuple[ScheduledSequence, np.ndarray]]:
    if batch.pooled is None:
        return []
    rows = batch.pooled.split([count for _, count in batch.pooling])
    return [(item, states.numpy()) for (item, _), states in zip(batch.pooling, rows, strict=True)]


def _log_prompts(logits: torch.Tensor, prompts: list[tuple[Sequence, int]]) -> None:
    """Add what the rows of `logits` say about the prompts' next tokens to their sequences."""
    for (sequence, count), rows in zip(prompts, logits.split([count for _, count in prompts]), strict=True):
        known = len(sequence.prompt_log_probs)
        next_ids = np.array(sequence.token_ids[known + 1 : known + 1 + count], dtype=np.int64)
        log_probs, tops = LoggedRows(rows, [sequence.params.top_logprobs] * count).read(next_ids)
        sequence.prompt_log_probs += log_probs
        for top in tops:
            sequence.prompt_top.extend(top)


def set_threads(num_threads: int) -> None:
    """Give torch and numba the same number of threads; numba's may not exceed the cores it saw at import.

    Under OpenMP they are the same threads, which do not wait for each other's to fall asleep.
    """
    count = num_threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    numba_config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]  # pyright: ignore[reportAttributeAccessIssue]
    numba.set_num_threads(min(count, os.cpu_count() or 1))
