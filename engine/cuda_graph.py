"""Decode steps of fixed sizes, recorded once as CUDA graphs and replayed: one launch where there were hundreds.

Knows a model's forward pass over buffers that never move. Does not know plans, sampling or who is served.

A step qualifies if each of its sequences computes one token and samples behind it. Its inputs are copied into the
buffers; rows beyond them are padding: token 0 at position 0 of the scratch block, which no sequence ever has.

Invariants:
1. What a graph reads and writes lies in the buffers, the weights, the cache or the graphs' own memory pool.
2. A row's result does not depend on the padding beside it, as far as the kernels' results do not depend on the batch.
3. The logits of a step are valid until the next one is replayed; all happens in the order of one stream.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional as F

from engine.batch import Batch
from engine.graph_sizes import smallest_fitting
from engine.kv_cache import KVCache
from engine.layers.streamed_linear import StreamedLinear

logger = logging.getLogger(__name__)

CAPTURE_ERRORS = "thread_local"  # NCCL's watchdog asks for events on a thread of its own, which "global" would forbid
Forward = Callable[[Batch, KVCache], torch.Tensor]


class DecodeGraphs:
    """The buffers, and a recording for each size."""

    def __init__(
        self,
        forward: Forward,
        cache: KVCache,
        sizes: tuple[int, ...],
        *,
        table_width: int,
        vocab_size: int,
        scratch_block: int,
        head: StreamedLinear | None = None,
    ) -> None:
        """Reserve buffers on the cache's device; until `record` steps are computed as they are called.

        Args:
            forward: the model.
            cache: where it keeps keys and values.
            sizes: numbers of sequences, ascending.
            table_width: blocks that the longest sequence has.
            vocab_size: V; 0 on a rank that gets no logits.
            scratch_block: the block that padding reads and writes.
            head: the model's last layer, if what it answers is the logits, which can then go where they shall be.
        """
        self._forward, self._cache, self._sizes, self._head = forward, cache, sizes, head
        self._block_size = cache.keys.shape[3]
        self._scratch_block = scratch_block
        device, most = cache.keys.device, sizes[-1]
        rows = torch.arange(most, device=device)
        self._buffers = Batch(
            input_ids=torch.zeros(most, dtype=torch.int64, device=device),
            positions=torch.zeros(most, dtype=torch.int32, device=device),
            rope_rows=torch.zeros(most, dtype=torch.int32, device=device),
            slot_mapping=torch.full((most,), scratch_block * self._block_size, dtype=torch.int64, device=device),
            token_to_seq=rows.int(),
            block_tables=torch.full((most, table_width), scratch_block, dtype=torch.int32, device=device),
            logits_indices=rows,
            sampling=[],
            prompts=[],
            pooling=[],
            pooled_indices=rows[:0],
        )
        self._logits = torch.empty(most, vocab_size, dtype=torch.float32, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def size_for(self, host: Batch) -> int | None:
        """Return the size of the recording that serves a batch, None where none does."""
        num_tokens, num_seqs = len(host.input_ids), len(host.block_tables)
        is_decode = num_tokens == num_seqs == len(host.sampling) == len(host.logits_indices)
        return smallest_fitting(num_seqs, self._sizes) if is_decode and not host.pooling else None

    def padded(self, host: Batch, size: int) -> Batch:
        """Return a batch on the host with rows of padding up to `size`."""
        num_more = size - len(host.input_ids)
        slot = self._scratch_block * self._block_size
        return replace(
            host,
            input_ids=F.pad(host.input_ids, (0, num_more)),
            positions=F.pad(host.positions, (0, num_more)),
            rope_rows=F.pad(host.rope_rows, (0, num_more)),
            slot_mapping=F.pad(host.slot_mapping, (0, num_more), value=slot),
            block_tables=F.pad(host.block_tables, (0, 0, 0, num_more), value=self._scratch_block),
        )

    def run(self, batch: Batch) -> torch.Tensor:
        """Compute a padded batch, on the device, and return its logits, those of the padding included."""
        size, width = batch.block_tables.shape
        buffers = self._buffers
        buffers.input_ids[:size].copy_(batch.input_ids)
        buffers.positions[:size].copy_(batch.positions)
        buffers.rope_rows[:size].copy_(batch.rope_rows)
        buffers.slot_mapping[:size].copy_(batch.slot_mapping)
        buffers.block_tables[:size, :width].copy_(batch.block_tables)
        if size in self._graphs:
            self._graphs[size].replay()
        else:
            self._compute(size)
        return self._logits[:size]

    @torch.inference_mode()
    def record(self) -> None:
        """Record every size, the largest first, so that the smaller ones fit into its memory.

        Each is computed once before, so that what is compiled, tuned or connected is so outside of the recording. Of
        several ranks all record at once, in the same order: a recording holds its rank's side of each collective.
        """
        device = self._cache.keys.device
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            self._compute(size)
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode=CAPTURE_ERRORS):
                self._compute(size)
            self._graphs[size] = graph
        logger.info("decode steps are CUDA graphs of up to %s sequences", ", ".join(map(str, self._sizes)))

    def _compute(self, size: int) -> None:
        rows = replace(
            self._buffers,
            input_ids=self._buffers.input_ids[:size],
            positions=self._buffers.positions[:size],
            rope_rows=self._buffers.rope_rows[:size],
            slot_mapping=self._buffers.slot_mapping[:size],
            token_to_seq=self._buffers.token_to_seq[:size],
            block_tables=self._buffers.block_tables[:size],
            logits_indices=self._buffers.logits_indices[:size],
        )
        target = self._logits[:size]
        logits = self._forward_into(target, rows)
        if logits is not target:
            target.copy_(logits)

    def _forward_into(self, target: torch.Tensor, rows: Batch) -> torch.Tensor:
        if self._head is None:
            return self._forward(rows, self._cache)
        self._head.into = target
        try:
            return self._forward(rows, self._cache)
        finally:
            self._head.into = None
