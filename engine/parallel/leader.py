"""Rank 0's side of a group of ranks: gets them started, tells them each step, notices when one is gone.

Knows links, executors and the collectives' meeting point. Does not know models, sequences or requests.

Invariants:
1. Between two messages to the other ranks rank 0 computes the step that the first one told.
2. A rank that is lost is never replaced within a group: the group ends, and its core with it.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait

from engine.batch import Batch
from engine.config import EngineConfig
from engine.errors import EngineUnavailable, RanksFailed
from engine.kv_cache import cache_dtype, given_num_blocks
from engine.messages import StartFailed
from engine.models.config import ModelConfig
from engine.parallel.collectives import join_ranks, leave_ranks, open_store
from engine.parallel.config import Place
from engine.parallel.executor import Invitation, make_executor
from engine.parallel.links import LinkServer
from engine.parallel.member import Member
from engine.parallel.messages import Loaded, Welcome
from engine.parallel.placement import placements_for
from engine.parallel.step_message import encode_step
from engine.placement import ON_HOST

ACCEPT_SECONDS = 0.2
WATCH_SECONDS = 0.5
KEY_BYTES = 32
logger = logging.getLogger(__name__)


class RankLeader:
    """The group that a core leads."""

    def __init__(self, config: EngineConfig, model_config: ModelConfig) -> None:
        """Start the other ranks and join them; they load while the caller does.

        Raises:
            EngineUnavailable: not all ranks have joined in time.
        """
        self.config = rank_config(config, model_config)
        self.executor = make_executor(config)
        self._links: dict[int, Connection] = {}
        self._step_started: float | None = None
        try:
            self.member = self._assemble(model_config)
        except BaseException:
            self.close()
            raise

    def wait_until_loaded(self) -> None:
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

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Call `on_loss`, on a thread of its own, as soon as a rank is gone or hangs; for a process that ends by that.

        Meant to be called behind the first step, which may compile kernels and so take longer than others.
        """
        threading.Thread(target=self._watch, args=(on_loss,), name="ranks", daemon=True).start()

    def close(self) -> None:
        """End the other ranks."""
        leave_ranks()
        for link in self._links.values():
            link.close()
        self.executor.stop()

    @contextmanager
    def _step(self, batch: Batch) -> Iterator[None]:
        """Have all other ranks compute this batch, too, and keep an eye on the time meanwhile.

        Raises:
            RanksFailed: one of them is gone.
        """
        message = encode_step(batch)
        for rank, link in self._links.items():
            try:
                link.send_bytes(message)
            except OSError as error:
                raise RanksFailed(f"rank {rank} is gone: {error}") from None
        self._step_started = time.monotonic()
        yield
        self._step_started = None

    def _watch(self, on_loss: Callable[[str], None]) -> None:
        limit = self.config.rank_timeout_seconds
        while True:
            gone = wait(list(self._links.values()), WATCH_SECONDS)
            for rank, link in self._links.items():
                if link in gone:
                    on_loss(f"rank {rank} is gone; {self.executor.failure() or 'its connection has ended'}")
                    return
            started = self._step_started
            if started is not None and time.monotonic() - started > limit:
                on_loss(f"a step has taken more than {limit:g} s: a rank hangs")
                return

    def _assemble(self, model_config: ModelConfig) -> Member:
        key = bytes.fromhex(self.config.rank_key) if self.config.rank_key else secrets.token_bytes(KEY_BYTES)
        server = LinkServer(*self.executor.address, key)
        place = Place(self.config.parallel, 0)
        try:
            host = self.executor.address[0]
            self.executor.start(Invitation(host, server.port, key), place.config.num_ranks)
            self._accept_all(server, place.config.num_ranks)
        finally:
            server.close()
        store = open_store(host, place.config.num_ranks)
        for rank, link in self._links.items():
            try:
                link.send(Welcome(self.config, store.port))
            except OSError as error:
                raise RanksFailed(f"rank {rank} has joined and gone: {error}") from None
        collectives = join_ranks(place, store, host, self.config.rank_start_seconds)
        return Member(place, collectives, placements_for(self.config, model_config), self._step)

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

    def _take_loaded(self, rank: int, link: Connection) -> None:
        try:
            message: Loaded | StartFailed = link.recv()
        except (EOFError, OSError):
            raise EngineUnavailable(f"rank {rank} ended while it loaded the model") from None
        if isinstance(message, StartFailed):
            raise EngineUnavailable(f"rank {rank}: {message.message}")


def rank_config(config: EngineConfig, model_config: ModelConfig) -> EngineConfig:
    """Return the configuration of each rank, where what depends on the group or the machine is fixed.

    `kv_cache_gib` counts for each rank, and the one with the most key/value heads decides the number of blocks.
    """
    widest = replace(model_config, num_kv_heads=config.parallel.max_kv_heads(model_config))
    num_threads = config.num_threads
    if config.rank_executor == "local" and not num_threads:
        num_threads = max(1, len(os.sched_getaffinity(0)) // config.parallel.num_ranks)
    return replace(
        config, num_blocks=given_num_blocks(config, widest, cache_dtype(config, ON_HOST)), num_threads=num_threads
    )
