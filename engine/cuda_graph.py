"""Steps of fixed shapes, recorded once as CUDA graphs and replayed: one launch where there were hundreds.

Knows a model's forward pass over buffers that never move. Does not know plans, sampling or who is served.

A step's inputs are copied into the buffers; what is beyond them is padding: tokens 0 at position 0 of the scratch
block, which no sequence ever has. In a decode step each is a sequence of its own; in any other all belong to the last
sequence, and logits that nobody asked for are the first token's.

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
from engine.kv_cache import KVCache
from engine.layers.streamed_linear import StreamedLinear
from engine.step_shapes import StepShape, choose_shape

logger = logging.getLogger(__name__)

CAPTURE_ERRORS = "thread_local"  # NCCL's watchdog asks for events on a thread of its own, which "global" would forbid
Forward = Callable[[Batch, KVCache], torch.Tensor]


class StepGraphs:
    """The buffers, and a recording for each shape."""

    def __init__(
        self,
        forward: Forward,
        cache: KVCache,
        shapes: tuple[StepShape, ...],
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
            shapes: of the recordings, ascending.
            table_width: blocks that the longest sequence has.
            vocab_size: V; 0 on a rank that gets no logits.
            scratch_block: the block that padding reads and writes.
            head: the model's last layer, if what it answers is the logits, which can then go where they shall be.
        """
        self._forward, self._cache, self._shapes, self._head = forward, cache, shapes, head
        self._block_size = cache.keys.shape[3]
        self._scratch_block = scratch_block
        device = cache.keys.device
        tokens, seqs, logits = (max(numbers) for numbers in zip(*shapes, strict=True))
        self._order = torch.arange(seqs, device=device)  # of a decode step's tokens: whose, and whose logits
        self._owners = self._order.int()
        self._buffers = Batch(
            input_ids=torch.zeros(tokens, dtype=torch.int64, device=device),
            positions=torch.zeros(tokens, dtype=torch.int32, device=device),
            rope_rows=torch.zeros(tokens, dtype=torch.int32, device=device),
            slot_mapping=torch.full((tokens,), scratch_block * self._block_size, dtype=torch.int64, device=device),
            token_to_seq=torch.zeros(tokens, dtype=torch.int32, device=device),
            block_tables=torch.full((seqs, table_width), scratch_block, dtype=torch.int32, device=device),
            logits_indices=torch.zeros(logits, dtype=torch.int64, device=device),
            sampling=[],
            prompts=[],
            pooling=[],
            pooled_indices=self._order[:0],
        )
        self._logits = torch.empty(logits, vocab_size, dtype=torch.float32, device=device)
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}

    def shape_for(self, host: Batch) -> StepShape | None:
        """Return the shape of the recording that serves a batch, None where none does."""
        num_tokens, num_seqs, num_logits = len(host.input_ids), len(host.block_tables), len(host.logits_indices)
        is_decode = num_tokens == num_seqs == len(host.sampling) == num_logits
        if host.pooling:
            return None
        return choose_shape(self._shapes, num_tokens, num_seqs, num_logits, is_decode=is_decode)

    def padded(self, host: Batch, shape: StepShape) -> Batch:
        """Return a batch on the host with padding up to `shape`."""
        more_tokens, more_seqs = shape.num_tokens - len(host.input_ids), shape.num_seqs - len(host.block_tables)
        more_logits = shape.num_logits - len(host.logits_indices)
        slot = self._scratch_block * self._block_size
        return replace(
            host,
            input_ids=F.pad(host.input_ids, (0, more_tokens)),
            positions=F.pad(host.positions, (0, more_tokens)),
            rope_rows=F.pad(host.rope_rows, (0, more_tokens)),
            slot_mapping=F.pad(host.slot_mapping, (0, more_tokens), value=slot),
            token_to_seq=F.pad(host.token_to_seq, (0, more_tokens), value=shape.num_seqs - 1),
            block_tables=F.pad(host.block_tables, (0, 0, 0, more_seqs), value=self._scratch_block),
            logits_indices=F.pad(host.logits_indices, (0, more_logits)),
        )

    def run(self, batch: Batch, shape: StepShape) -> torch.Tensor:
        """Compute a batch padded to `shape`, on the device; return its logits, those of the padding included."""
        width = batch.block_tables.shape[1]
        rows = self._rows(shape)
        rows.input_ids.copy_(batch.input_ids)
        rows.positions.copy_(batch.positions)
        rows.rope_rows.copy_(batch.rope_rows)
        rows.slot_mapping.copy_(batch.slot_mapping)
        rows.block_tables[:, :width].copy_(batch.block_tables)
        if not shape.is_decode:
            rows.token_to_seq.copy_(batch.token_to_seq)
            rows.logits_indices.copy_(batch.logits_indices)
        if shape in self._graphs:
            self._graphs[shape].replay()
        else:
            self._compute(shape)
        return self._logits[: shape.num_logits]

    @torch.inference_mode()
    def record(self) -> None:
        """Record every shape, the largest first, so that the smaller ones fit into its memory.

        Each is computed once before, so that what is compiled, tuned or connected is so outside of the recording. Of
        several ranks all record at once, in the same order: a recording holds its rank's side of each collective.
        """
        device = self._cache.keys.device
        pool = torch.cuda.graph_pool_handle()
        for shape in reversed(self._shapes):
            self._compute(shape)
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode=CAPTURE_ERRORS):
                self._compute(shape)
            self._graphs[shape] = graph
        logger.info("%d shapes of steps are CUDA graphs, up to %s", len(self._graphs), self._shapes[-1])

    def _rows(self, shape: StepShape) -> Batch:
        """Return the parts of the buffers that a recording reads."""
        tokens, seqs, logits = shape
        buffers = self._buffers
        return replace(
            buffers,
            input_ids=buffers.input_ids[:tokens],
            positions=buffers.positions[:tokens],
            rope_rows=buffers.rope_rows[:tokens],
            slot_mapping=buffers.slot_mapping[:tokens],
            token_to_seq=self._owners[:tokens] if shape.is_decode else buffers.token_to_seq[:tokens],
            block_tables=buffers.block_tables[:seqs],
            logits_indices=self._order[:seqs] if shape.is_decode else buffers.logits_indices[:logits],
        )

    def _compute(self, shape: StepShape) -> None:
        target = self._logits[: shape.num_logits]
        logits = self._forward_into(target, self._rows(shape))
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
