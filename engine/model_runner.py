"""Computing a step: plan in, one sampled token out for each sequence that reached its end, and logits behind drafts.

Knows the model, its cache and the device. Does not know queues, stopping or clients.
"""

import importlib.util
import logging
import os
from dataclasses import replace

import torch

from engine.batch import Batch, build_batch, find_late_tokens
from engine.config import EngineConfig
from engine.cuda_graph import StepGraphs
from engine.device_link import link_to
from engine.dummy_steps import dummy_step, steps_of_all_classes
from engine.errors import ModelError, RanksFailed
from engine.gpu_memory import cache_bytes, measure
from engine.kv_cache import KVCache, cache_dtype, given_num_blocks, is_measured, num_blocks_in
from engine.layers.streamed_linear import StreamedLinear
from engine.lora.lora_linear import wrap_linears
from engine.model_loading import Loader, load_model
from engine.models.config import ModelConfig
from engine.parallel.member import Member
from engine.placement import choose_placement, num_gpus
from engine.sampler import start_sampling
from engine.step_plan import StepPlan
from engine.step_run import PendingStep, StepRun, log_prompts
from engine.step_shapes import StepShape, step_shapes
from kernels import tuning

logger = logging.getLogger(__name__)


class ModelRunner:
    """Holds the weights and the KV cache and runs forward passes."""

    def __init__(
        self, config: EngineConfig, model_config: ModelConfig, member: Member | None = None, load: Loader = load_model
    ) -> None:
        """Load the checkpoint, or a rank's part of it, and reserve the cache.

        Raises:
            ModelError: the checkpoint cannot be served, or the cache holds no block.
        """
        set_threads(config.num_threads)
        self.placement = choose_placement(config, model_config.dtype, num_gpus())
        device = self.placement.device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # Triton launches kernels on the current one
        self.cache_dtype = cache_dtype(config, self.placement)
        logger.info("computing on %s in %s, cache in %s", device, self.placement.dtype, self.cache_dtype)
        if device.type == "cuda":
            tuning.use(config.kernel_tuning.expanduser(), torch.cuda.get_device_name(device))
        self.link = link_to(device)
        self.block_size = config.block_size
        self.max_num_seqs, self.max_num_batched_tokens = config.max_num_seqs, config.max_num_batched_tokens
        self._model_config = model_config
        longest = model_config.max_sequence_length
        self._member = member
        self.graphs: StepGraphs | None = None
        self.max_model_len = min(config.max_model_len or longest, longest)
        if config.max_model_len > longest:
            logger.warning("max_model_len %d is above what the model takes, %d", config.max_model_len, longest)
        if not is_measured(config, self.placement):
            self.num_blocks = given_num_blocks(config, model_config, self.cache_dtype)
            self.max_model_len = min(self.max_model_len, self.num_blocks * config.block_size)
        loaded = load(config, model_config, self.max_model_len, self.placement, member)
        self.model, self.adapter_targets = loaded.model, loaded.adapter_targets
        paths = [target.path for target in self.adapter_targets.values()]
        if member is not None:
            member.meet()
        self.adapter_rows = wrap_linears(self.model, paths, device)
        if is_measured(config, self.placement):
            self.num_blocks = self._num_blocks_beside_a_step(config.gpu_memory_share)
            self.max_model_len = min(self.max_model_len, self.num_blocks * config.block_size)
        self.cache = self._allocate(self.num_blocks)
        if device.type == "cuda" and config.cuda_graphs:
            self.graphs = self.make_graphs()

    def make_graphs(self) -> StepGraphs:
        """Return buffers for steps, not yet recorded."""
        head: torch.nn.Module = self.model.lm_head
        return StepGraphs(
            self.model,
            self.cache,
            step_shapes(self.max_num_seqs, self.max_num_batched_tokens),
            table_width=-(-self.max_model_len // self.block_size),
            vocab_size=self.vocab_size if self._samples else 0,
            scratch_block=self.num_blocks,
            head=head if self._member is None and isinstance(head, StreamedLinear) else None,
        )

    def _num_blocks_beside_a_step(self, share: float) -> int:
        """Return how many blocks fit into the memory that weights and the largest step leave of the device.

        Of several ranks the one with least room decides.
        """
        self.cache = self._allocate(1)
        use = measure(self.placement.device, lambda: self._rehearse(self.largest_step()))
        num_blocks, problem = 0, None
        try:
            num_bytes = cache_bytes(use, share)
            num_blocks = num_blocks_in(num_bytes, self._local_config, self.block_size, self.cache_dtype)
            logger.info("of %d bytes a step takes %d; the KV cache may get %d", use.total, use.step_peak, num_bytes)
        except ModelError as error:
            problem = error
        if self._member is not None:
            num_blocks = self._member.collectives.smallest(num_blocks)
        if problem is not None or not num_blocks:
            raise problem or ModelError("the GPU of another rank has no room for a single block of the KV cache")
        return num_blocks

    @property
    def _local_config(self) -> ModelConfig:
        """The model's numbers, with the key/value heads that are here."""
        return replace(self._model_config, num_kv_heads=self.model.num_kv_heads)

    def _allocate(self, num_blocks: int) -> KVCache:
        """Reserve the cache, and one block more, which is nobody's."""
        device = self.placement.device
        return KVCache.allocate(self._local_config, num_blocks + 1, self.block_size, device, self.cache_dtype)

    def largest_step(self) -> StepPlan:
        """Return a step of as many tokens and sequences as there can be, all of them in block 0."""
        num_seqs = min(self.max_num_seqs, self.max_num_batched_tokens)
        return dummy_step(num_seqs, min(self.max_num_batched_tokens // num_seqs, self.max_model_len), self.block_size)

    def warm_up(self) -> None:
        """Compile and touch everything a step needs, so that no request waits for it; leaves rubbish in block 0.

        All ranks do so together, and none needs to be told which steps these are.
        """
        for plan in self._warm_up_steps():
            self._rehearse(plan)
        if self.graphs is not None:
            self.graphs.record()

    def _warm_up_steps(self) -> list[StepPlan]:
        if self.placement.device.type == "cpu":
            return [dummy_step(1, min(2, self.max_model_len), self.block_size)]
        return [*steps_of_all_classes(self.max_num_seqs, self.max_model_len, self.block_size), self.largest_step()]

    def run(self, plan: StepPlan) -> StepRun:
        """Compute the plan's tokens and sample for the sequences whose last token was among them."""
        return self.launch(plan).read()

    @torch.inference_mode()
    def _rehearse(self, plan: StepPlan) -> None:
        """Compute a step that every rank computes by itself; where there are logits, sample and wait."""
        host = build_batch(plan, self.block_size)
        logits, batch = self._forward(host, None)
        if self._samples:
            self._begin_reading(plan, logits, batch).read()

    @property
    def vocab_size(self) -> int:
        """V, of the logits."""
        return self._model_config.vocab_size

    @property
    def _samples(self) -> bool:
        """Whether logits come out here: of several ranks, on rank 0."""
        return self._member is None or self._member.place.rank == 0

    @torch.inference_mode()
    def launch(self, plan: StepPlan, before: PendingStep | None = None) -> PendingStep:
        """Begin what `run` does; on a GPU it goes on while the caller does.

        Args:
            plan: what to compute.
            before: the step in flight, which gives tokens that the plan's sequences expect.
        """
        host = build_batch(plan, self.block_size)
        if before is not None:
            sequences = [item.sequence for item in before.items]
            host.late = find_late_tokens(plan, sequences, before.tokens.token_ids)
        self.adapter_rows.assign(host.adapters, host, self.link)
        return self._begin_reading(plan, *self.compute(host, self._graph_shape(host)))

    def _begin_reading(self, plan: StepPlan, logits: torch.Tensor, batch: Batch) -> PendingStep:
        """Begin to sample, and to bring what the step gives to the host."""
        items = [item for item in plan.scheduled if item.samples]
        num_drafts = sum(len(item.draft_ids) for item in items)
        first, drafted, prompts = logits.tensor_split((len(items), len(items) + num_drafts))
        if num_drafts and self.graphs is not None:
            drafted = drafted.clone()  # is read when other steps may have been replayed since
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
    def compute(self, host: Batch, graph_shape: StepShape | None = None) -> tuple[torch.Tensor, Batch]:
        """Compute a batch, on all ranks, and return its logits, which rank 0 gets, and the batch on the device.

        Args:
            host: the batch.
            graph_shape: of the recording to replay, which rank 0 chooses for all; None to launch everything anew.

        Raises:
            RanksFailed: something went wrong on some rank, and now they are out of step.
        """
        if self._member is None:
            return self._forward(host, graph_shape)
        try:
            with self._member.step(host, graph_shape):
                return self._forward(host, graph_shape)
        except Exception as error:
            raise RanksFailed(f"rank {self._member.place.rank} failed in a step: {error!r}") from error

    def meet_ranks(self) -> None:
        """Return once all ranks have come as far as this call."""
        if self._member is not None:
            self._member.collectives.smallest(0)

    def _graph_shape(self, host: Batch) -> StepShape | None:
        """Return the shape of the recording that serves a batch, None where none does."""
        return None if self.graphs is None or self.adapter_rows.groups else self.graphs.shape_for(host)

    def _forward(self, host: Batch, graph_shape: StepShape | None) -> tuple[torch.Tensor, Batch]:
        if graph_shape is None:
            batch = host.moved(self.link)
            return self.model(batch, self.cache), batch
        assert self.graphs is not None
        batch = self.graphs.padded(host, graph_shape).moved(self.link)
        return self.graphs.run(batch, graph_shape)[: len(host.logits_indices)], batch


def set_threads(num_threads: int) -> None:
    """Give torch and numba the same number of threads; numba's may not exceed the cores it saw at import.

    Under OpenMP they are the same threads, which do not wait for each other's to fall asleep. numba, starting them, has
    OpenMP, and so torch, use as many as there are cores; so torch is told last.
    """
    count = num_threads or len(os.sched_getaffinity(0))
    if importlib.util.find_spec("numba") is not None:  # a machine whose models are on a GPU may lack it
        _set_numba_threads(count)
    torch.set_num_threads(count)


def _set_numba_threads(count: int) -> None:
    import numba
    from numba.core import config as numba_config

    numba_config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]  # pyright: ignore[reportAttributeAccessIssue]
    numba.set_num_threads(min(count, os.cpu_count() or 1))
