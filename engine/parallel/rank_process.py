"""A rank other than rank 0: joins, takes its device, loads its part of the model and computes the steps it is told.

Knows links and a runner. Does not know requests, sequences or sampling.

Run as `python -m engine.parallel.rank_process HOST PORT [RANK [PARENT]]` with the group's key in SCALELLM_RANK_KEY, by
the local executor, whose process id is PARENT, or, without RANK, by torchrun: its ranks, from 0, are ours from 1.

Invariants:
1. The process ends when its link to rank 0 does, even if it waits for a device that will never be done, and when its
   parent does, even if it is stopped.
2. It ends with a code other than 0, so that torchrun starts it again.
"""

import ctypes
import logging
import os
import select
import signal
import sys
import threading
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from engine.config import EngineConfig
from engine.errors import EngineError, EngineUnavailable
from engine.messages import StartFailed
from engine.model_runner import ModelRunner
from engine.models.config import ModelConfig
from engine.parallel.collectives import connect_store, join_ranks
from engine.parallel.config import Place
from engine.parallel.executor import KEY_VARIABLE, Invitation
from engine.parallel.follower import Follower
from engine.parallel.links import join_leader
from engine.parallel.member import Member
from engine.parallel.messages import Equipment, Loaded, Seat, Welcome
from engine.parallel.placement import placements_for
from engine.placement import gpu_names

PATIENCE_SECONDS = 600.0
LEAVE_SECONDS = 5.0
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
logger = logging.getLogger(__name__)


def serve_rank(invitation: Invitation, rank: int) -> None:
    """Compute what rank 0 tells until it leaves.

    Raises:
        EngineError: there is no rank 0, the part of the model cannot be loaded, or another rank is lost.
    """
    link = join_leader(invitation.host, invitation.port, invitation.key, rank, PATIENCE_SECONDS)
    with closing(LinkWatch(link)):
        try:
            config, runner = join_and_load(invitation, link, rank)
        except EngineError as error:
            link.send(StartFailed(str(error)))
            raise
        except (EOFError, OSError):
            raise EngineUnavailable("rank 0 has left before it told what to load") from None
        runner.warm_up()
        follower = Follower(config, runner)
        while True:
            try:
                message = link.recv_bytes()
            except (EOFError, OSError):
                return
            follower.take(message)


def join_and_load(invitation: Invitation, link: Connection, rank: int) -> tuple[EngineConfig, ModelRunner]:
    """Take what rank 0 says this rank is to be, join the others and load."""
    welcome: Welcome = link.recv()
    link.send(Equipment(gpu_names() if welcome.config.device == "cuda" else ()))
    seat: Seat = link.recv()
    config = replace(welcome.config, device=seat.device)
    place = Place(config.parallel, rank)
    model_config = ModelConfig.from_dir(config.model)
    store = connect_store(invitation.host, seat.store_port, place.config.num_ranks)
    collectives = join_ranks(place, store, invitation, torch.device(seat.device), config.rank_start_seconds)
    placements = placements_for(config, model_config)
    member = Member(place, collectives, placements, meet=lambda: link.send(Loaded()))
    return config, ModelRunner(config, model_config, member)


class LinkWatch:
    """Ends this process where its link has ended and it does not notice, since it waits for something else."""

    def __init__(self, link: Connection) -> None:
        """Watch on a thread of its own."""
        self._link = link
        self._has_left = threading.Event()
        threading.Thread(target=self._watch, name="link", daemon=True).start()

    def close(self) -> None:
        """Say that the process leaves by itself."""
        self._has_left.set()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLRDHUP)
        poll.poll()
        if not self._has_left.wait(LEAVE_SECONDS):
            os._exit(1)


def main() -> int:
    """Serve as the rank that the arguments say."""
    host, port, *given = sys.argv[1:]
    rank = int(given[0]) if given else int(os.environ["RANK"]) + 1
    parent = int(given[1]) if given[1:] else os.getppid()
    return serve(Invitation(host, int(port), bytes.fromhex(os.environ[KEY_VARIABLE])), rank, parent)


def serve(invitation: Invitation, rank: int, parent: int) -> int:
    """Serve as a rank in a process of its own, and return the code to end it with."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the core decides when to end
    library = ctypes.CDLL(None)
    library.prctl(PR_SET_NAME, f"rank {rank}".encode())  # a copy of the core has its command line
    library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before, while this process imported
        return 1
    try:
        serve_rank(invitation, rank)
    except EngineError as error:
        logger.error("rank %d: %s", rank, error)
    return 1


def leave(code: int) -> None:
    """End the process at once, without waiting for collectives that will never end."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
