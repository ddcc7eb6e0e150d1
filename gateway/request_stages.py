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


TRANSITIONS: dict[tuple[Stage, Step], Stage] = {
    (Stage.WAITING, Step.SEND): Stage.SENT,
    (Stage.WAITING, Step.END): Stage.DONE,
    (Stage.SENT, Step.ANSWER): Stage.ANSWERING,
    (Stage.SENT, Step.RETRY): Stage.WAITING,
    (Stage.SENT, Step.END): Stage.DONE,
    (Stage.ANSWERING, Step.RETRY): Stage.WAITING,
    (Stage.ANSWERING, Step.END): Stage.DONE,
}
