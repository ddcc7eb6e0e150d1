"""A rank other than rank 0: joins, loads its part of the model and computes each step that it is told.

Knows links and a runner. Does not know requests, sequences or sampling.

Run as `python -m engine.parallel.rank_process HOST PORT [RANK]` with the group's key in SCALELLM_RANK_KEY, by the local
executor or, without RANK, by torchrun: its ranks, from 0, are our ranks from 1.

Invariants:
1. The process ends when its link to rank 0 does, and when its parent does, even if it is stopped.
2. It ends with a code other than 0, so that torchrun starts it again.
"""

import ctypes
import logging
import os
import signal
import sys

from engine.errors import EngineError
from engine.messages import StartFailed
from engine.model_runner import ModelRunner
from engine.models.config import ModelConfig
from engine.parallel.collectives import connect_store, join_ranks
from engine.parallel.config import Place
from engine.parallel.executor import KEY_VARIABLE, Invitation
from engine.parallel.links import join_leader
from engine.parallel.member import Member
from engine.parallel.messages import Loaded, Welcome
from engine.parallel.placement import placements_for
from engine.parallel.step_message import decode_step

PATIENCE_SECONDS = 600.0
PR_SET_PDEATHSIG = 1
logger = logging.getLogger(__name__)


def serve_rank(invitation: Invitation, rank: int) -> None:
    """Compute what rank 0 tells until it leaves.

    Raises:
        EngineError: there is no rank 0, the part of the model cannot be loaded, or another rank is lost.
    """
    link = join_leader(invitation.host, invitation.port, invitation.key, rank, PATIENCE_SECONDS)
    welcome: Welcome = link.recv()
    config = welcome.config
    place = Place(config.parallel, rank)
    try:
        model_config = ModelConfig.from_dir(config.model)
        store = connect_store(invitation.host, welcome.store_port, place.config.num_ranks)
        collectives = join_ranks(place, store, invitation.host, config.rank_start_seconds)
        runner = ModelRunner(config, model_config, Member(place, collectives, placements_for(config, model_config)))
    except EngineError as error:
        link.send(StartFailed(str(error)))
        raise
    link.send(Loaded())
    while True:
        try:
            message = link.recv_bytes()
        except (EOFError, OSError):
            return
        runner.compute(decode_step(message))


def main() -> int:
    """Serve as the rank that the arguments say."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the core decides when to end
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended just before
        return 1
    host, port, *given = sys.argv[1:]
    rank = int(given[0]) if given else int(os.environ["RANK"]) + 1
    try:
        serve_rank(Invitation(host, int(port), bytes.fromhex(os.environ[KEY_VARIABLE])), rank)
    except EngineError as error:
        logger.error("rank %d: %s", rank, error)
    return 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # no waiting for collectives that will never end
