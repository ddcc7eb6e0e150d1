"""How far a request has come, as a table of stages and steps.

Knows names. Does not know requests.
"""

from enum import IntEnum, auto


class Stage(IntEnum):
    """How far a request has come."""

    WAITING = auto()  # for an instance
    SENT = auto()  # to an instance, no answer yet
    ANSWERING = auto()
    DONE = auto()


class Step(IntEnum):
    """What moves a request."""

    SEND = auto()
    ANSWER = auto()
    RETRY = auto()  # from the beginning or, after an answer, from where it is
    END = auto()


WAITING, SENT, ANSWERING, DONE = map(int, Stage)  # by names of their own, as in `wire.stream`
SEND, ANSWER, RETRY, END = map(int, Step)

TRANSITIONS: dict[tuple[int, int], int] = {
    (WAITING, SEND): SENT,
    (WAITING, END): DONE,
    (SENT, ANSWER): ANSWERING,
    (SENT, RETRY): WAITING,
    (SENT, END): DONE,
    (ANSWERING, RETRY): WAITING,
    (ANSWERING, END): DONE,
}

NEXT = [[], *([0, *(TRANSITIONS.get((stage, step), 0) for step in Step)] for stage in Stage)]  # 0 where there is none
