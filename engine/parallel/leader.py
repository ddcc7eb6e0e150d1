"""Rank 0's side of a group of ranks: gets them started, gives each its device, tells each step, notices who is gone.

Knows links, executors and the collectives' meeting point. Does not know models, sequences or requests.

Invariants:
1. Between two messages to the other ranks rank 0 launches the step that the first one told.
2. Before the first message all ranks compute the same steps, which need not be told: see `ModelRunner.warm_up`.
3. A rank that is lost is never replaced within a group: the group ends, and its core with it.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait

import torch

from engine.batch import Batch
from engine.config import EngineConfig
from engine.errors import EngineUnavailable, ModelError, RanksFailed
from engine.kv_cache import cache_dtype, given_num_blocks, is_measured
from engine.messages import StartFailed
from engine.models.config import ModelConfig
from engine.parallel.collectives import DistributedCollectives, join_ranks, open_store
from engine.parallel.config import Place
from engine.parallel.executor import Invitation, make_executor
from engine.parallel.gpu_seats import deal_gpus
from engine.parallel.links import LinkServer
from engine.parallel.member import Member
from engine.parallel.messages import Equipment, Loaded, Seat, Welcome
from engine.parallel.placement import placements_for
from engine.parallel.step_clock import StepClock
from engine.parallel.step_message import AdapterName, encode_adapters, encode_step
from engine.placement import choose_placement, gpu_names, num_gpus
from engine.step_shapes import StepShape

ACCEPT_SECONDS = 0.2
WATCH_SECONDS = 0.5
KEY_BYTES = 32
logger = logging.getLogger(__name__)


class RankLeader:
    """The group that a core leads."""

    def __init__(self, config: EngineConfig, model_config: ModelConfig, *, is_fresh: bool = False) -> None:
        """Start the other ranks and join them; they load while the caller does.

        `config` is then rank 0's. Of a process that `is_fresh`, see `local_executor`, ranks may be copies.

        Raises:
            EngineUnavailable: not all ranks have joined in time.
            ModelError: there are fewer GPUs than ranks.
        """
        self.config = rank_config(config, model_config)
        self.executor = make_executor(self.config, is_fresh=is_fresh)
        self._links: dict[int, Connection] = {}
        self._collectives: DistributedCollectives | None = None
        try:
            self.member = self._assemble(model_config)
            self._clock = StepClock(torch.device(self.config.device))
        except BaseException:
            self.close()
            raise

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Call `on_loss`, on a thread of its own, as soon as a rank is gone or hangs; for a process that ends by that.

        Not before all have loaded. Steps that are not told, which may compile kernels, may take longer than others.
        """
        threading.Thread(target=self._watch, args=(on_loss,), name="ranks", daemon=True).start()

    def close(self) -> None:
        """End the other ranks."""
        if self._collectives is not None:
            self._collectives.leave()
        for link in self._links.values():
            link.close()
        self.executor.stop()

    def prepare(self, adapters: Sequence[AdapterName]) -> None:
        """Have all other ranks load adapters, before the step that needs them.

        Raises:
            RanksFailed: one of them is gone.
        """
        self._tell(encode_adapters(adapters))

    @contextmanager
    def _step(self, batch: Batch, graph_shape: StepShape | None) -> Iterator[None]:
        """Have all other ranks compute this batch, too, and keep an eye on the time until it is computed.

        Raises:
            RanksFailed: one of them is gone.
        """
        self._tell(encode_step(batch, graph_shape))
        with self._clock.step():
            yield

    def _tell(self, message: bytes) -> None:
        for rank, link in self._links.items():
            try:
                link.send_bytes(message)
            except OSError as error:
                raise RanksFailed(f"rank {rank} is gone: {error}") from None

    def _watch(self, on_loss: Callable[[str], None]) -> None:
        limit = self.config.rank_timeout_seconds
        while True:
            gone = wait(list(self._links.values()), WATCH_SECONDS)
            for rank, link in self._links.items():
                if link in gone:
                    on_loss(f"rank {rank} is gone; {self.executor.failure() or 'its connection has ended'}")
                    return
            if self._clock.seconds > limit:
                on_loss(f"a step has taken more than {limit:g} s: a rank hangs")
                return

    def _assemble(self, model_config: ModelConfig) -> Member:
        key = bytes.fromhex(self.config.rank_key) if self.config.rank_key else secrets.token_bytes(KEY_BYTES)
        server = LinkServer(*self.executor.address, key)
        place = Place(self.config.parallel, 0)
        try:
            host = self.executor.address[0]
            invitation = Invitation(host, server.port, key)
            self.executor.start(invitation, place.config.num_ranks)
            self._accept_all(server, place.config.num_ranks)
        finally:
            server.close()
        devices = self._deal_devices()
        self.config = replace(self.config, device=devices[0])
        store = open_store(host, place.config.num_ranks)
        for rank in self._links:
            self._send(rank, Seat(devices[rank], store.port))
        device = torch.device(self.config.device)
        self._collectives = join_ranks(place, store, invitation, device, self.config.rank_start_seconds)
        placements = placements_for(self.config, model_config)
        return Member(place, self._collectives, placements, self._step, self._wait_until_loaded)

    def _deal_devices(self) -> dict[int, str]:
        """Greet the ranks and return the device that each of them gets, this one included."""
        for rank in self._links:
            self._send(rank, Welcome(self.config))
        seen = {rank: self._receive_equipment(rank).gpus for rank in self._links}
        if self.config.device == "cpu":
            return dict.fromkeys((0, *self._links), "cpu")
        return {rank: f"cuda:{index}" for rank, index in deal_gpus({0: gpu_names()} | seen).items()}

    def _send(self, rank: int, message: Welcome | Seat) -> None:
        try:
            self._links[rank].send(message)
        except OSError as error:
            raise RanksFailed(f"rank {rank} has joined and gone: {error}") from None

    def _receive_equipment(self, rank: int) -> Equipment:
        link = self._links[rank]
        try:
            if not link.poll(self.config.rank_start_seconds):
                raise EngineUnavailable(f"rank {rank} has joined and says nothing")
            return link.recv()
        except (EOFError, OSError) as error:
            raise RanksFailed(f"rank {rank} has joined and gone: {error}") from None

    def _accept_all(self, server: LinkServer, num_ranks: int) -> None:
        deadline = time.monotonic() + self.config.rank_start_seconds
        while len(self._links) < num_ranks - 1:
            joined = server.accept(ACCEPT_SECONDS)
            if joined is not None:
                rank, link = joined
                if not 1 <= rank < num_ranks or rank in self._links:
                    raise EngineUnavailable(f"rank {rank} joined twice, or a group of {num_ranks} ranks")
                self._links[rank] = link
            elif (failure := self.executor.failure()) is not None:
                raise EngineUnavailable(f"{failure} before it had joined")
            elif time.monotonic() > deadline:
                missing = sorted(set(range(1, num_ranks)) - self._links.keys())
                raise EngineUnavailable(f"ranks {missing} have not joined in {self.config.rank_start_seconds:g} s")

    def _wait_until_loaded(self) -> None:
        """Return when every rank has its part of the model.

        Raises:
            EngineUnavailable: one of them could not load it, or died.
        """
        pending = dict(self._links)
        while pending:
            for rank, link in list(pending.items()):
                if link in wait([link], ACCEPT_SECONDS):
                    self._take_loaded(rank, link)
                    del pending[rank]

    def _take_loaded(self, rank: int, link: Connection) -> None:
        try:
            message: Loaded | StartFailed = link.recv()
        except (EOFError, OSError):
            raise EngineUnavailable(f"rank {rank} ended while it loaded the model") from None
        if isinstance(message, StartFailed):
            raise EngineUnavailable(f"rank {rank}: {message.message}")


def rank_config(config: EngineConfig, model_config: ModelConfig) -> EngineConfig:
    """Return the configuration of each rank, where what depends on the group or the machine is fixed.

    `device` becomes `cpu` or `cuda`, for GPUs that are yet to be dealt out. `kv_cache_gib` counts for each rank, and
    the one with the most key/value heads decides the number of blocks; where that is measured, it stays 0.

    Raises:
        ModelError: the ranks cannot compute on that device, or on this machine.
    """
    placement = choose_placement(config, model_config.dtype, num_gpus())
    if placement.device.type == "cuda":
        _check_gpus(config)
    num_blocks = 0
    if not is_measured(config, placement):
        widest = replace(model_config, num_kv_heads=config.parallel.max_kv_heads(model_config))
        num_blocks = given_num_blocks(config, widest, cache_dtype(config, placement))
    num_threads = config.num_threads
    if config.rank_executor == "local" and not num_threads:
        num_threads = max(1, len(os.sched_getaffinity(0)) // config.parallel.num_ranks)
    return replace(
        config,
        device=placement.device.type,
        dtype=str(placement.dtype).removeprefix("torch."),
        num_blocks=num_blocks,
        num_threads=num_threads,
    )


def _check_gpus(config: EngineConfig) -> None:
    num_ranks, gpus = config.parallel.num_ranks, num_gpus()
    if config.device.startswith("cuda:"):
        raise ModelError(f"device {config.device} is one GPU, and {num_ranks} ranks need one each; give device cuda")
    if config.rank_executor == "local" and gpus < num_ranks:
        raise ModelError(
            f"tensor_parallel x expert_parallel is {num_ranks}, and each rank needs a GPU of its own; this process "
            f"sees {gpus} (device cpu computes on the CPU)"
        )
