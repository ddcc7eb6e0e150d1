"""Computing a step: plan in, one sampled token out for each sequence that reached its end, and logits behind drafts.

Knows the model, its cache and the device. Does not know queues, stopping or clients.
"""

import logging
import os
from dataclasses import replace

import numba
import torch
from numba.core import config as numba_config

from engine.batch import Batch, build_batch
from engine.config import EngineConfig
from engine.device_link import link_to
from engine.errors import RanksFailed
from engine.kv_cache import KVCache, num_blocks_for
from engine.lora.lora_linear import wrap_linears
from engine.model_loading import load_model
from engine.models.config import ModelConfig
from engine.parallel.member import Member
from engine.sampler import start_sampling
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.step_plan import ScheduledSequence, StepPlan
from engine.step_run import PendingStep, StepRun, log_prompts

logger = logging.getLogger(__name__)


class ModelRunner:
    """Holds the weights and the KV cache and runs forward passes."""

    def __init__(self, config: EngineConfig, model_config: ModelConfig, member: Member | None = None) -> None:
        """Load the checkpoint, or a rank's part of it, and reserve the cache.

        Raises:
            ModelError: the checkpoint cannot be served, or the cache holds no block.
        """
        set_threads(config.num_threads)
        self.link = link_to(torch.device("cpu"))
        self.block_size = config.block_size
        self.num_blocks = num_blocks_for(config, model_config)
        limit = config.max_model_len or model_config.max_position_embeddings
        self.max_model_len = min(limit, model_config.max_position_embeddings, self.num_blocks * config.block_size)
        self._member = member
        loaded = load_model(config, model_config, self.max_model_len, torch.device("cpu"), member)
        self.model, self.adapter_targets = loaded.model, loaded.adapter_targets
        paths = [target.path for target in self.adapter_targets.values()]
        self.adapter_rows = wrap_linears(self.model, paths, torch.device("cpu"))
        local = replace(model_config, num_kv_heads=self.model.num_kv_heads)
        self.cache = KVCache.allocate(local, self.num_blocks, config.block_size)

    def warm_up(self) -> None:
        """Compile and touch everything a step needs, so that no request waits for it; leaves rubbish in block 0."""
        params = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=1)
        dummy = Sequence(0, [0, 0], 2, params, 3, frozenset(), block_table=[0, 0])
        self.run(StepPlan([ScheduledSequence(dummy, 2)], num_tokens=2))

    def run(self, plan: StepPlan) -> StepRun:
        """Compute the plan's tokens and sample for the sequences whose last token was among them."""
        return self.launch(plan).read()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Begin what `run` does; on a GPU it goes on while the caller does."""
        host = build_batch(plan, self.block_size)
        self.adapter_rows.assign([item.sequence.adapter for item in plan.scheduled], host.token_to_seq, self.link)
        logits, batch = self.compute(host)
        items = [item for item in plan.scheduled if item.samples]
        num_drafts = sum(len(item.draft_ids) for item in items)
        first, drafted, prompts = logits.tensor_split((len(items), len(items) + num_drafts))
        return PendingStep(
            items,
            start_sampling(first, batch.sampling, self.link),
            drafted,
            log_prompts(prompts, batch.prompts, self.link),
            batch.pooling,
            self.link.download([] if batch.pooled is None else [batch.pooled.float()]),
            self.link,
        )

    @torch.inference_mode()
    def compute(self, host: Batch) -> tuple[torch.Tensor, Batch]:
        """Compute a batch and return its logits, which of several ranks rank 0 gets, and the batch on the device.

        Raises:
            RanksFailed: something went wrong on some rank, and now they are out of step.
        """
        if self._member is None:
            batch = host.moved(self.link)
            return self.model(batch, self.cache), batch
        try:
            with self._member.step(host):
                batch = host.moved(self.link)
                return self.model(batch, self.cache), batch
        except Exception as error:
            raise RanksFailed(f"rank {self._member.place.rank} failed in a step: {error!r}") from error


def set_threads(num_threads: int) -> None:
    """Give torch and numba the same number of threads; numba's may not exceed the cores it saw at import.

    Under OpenMP they are the same threads, which do not wait for each other's to fall asleep.
    """
    count = num_threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    numba_config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]  # pyright: ignore[reportAttributeAccessIssue]
    numba.set_num_threads(min(count, os.cpu_count() or 1))
