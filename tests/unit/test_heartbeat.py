"""A heart beats until it is stopped, and survives a failed beat; a dead parent is noticed."""

import threading

import pytest

from engine.heartbeat import Heartbeat, watch_parent

WAIT = 10.0


def test_it_beats_again_and_again_until_it_is_stopped():
    beats: list[int] = []
    third = threading.Event()

    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            third.set()

    heart = Heartbeat(beat, seconds=0.001)
    assert third.wait(WAIT)
    heart.stop()
    number = len(beats)
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
    assert len(beats) == number


def test_a_beat_that_fails_is_missed_and_the_next_one_comes(caplog: pytest.LogCaptureFixture):
    calls: list[int] = []
    again = threading.Event()

    def beat() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("metrics are gone")
        again.set()

    heart = Heartbeat(beat, seconds=0.001)
    assert again.wait(WAIT)
    heart.stop()
    assert "a heartbeat failed" in caplog.text


def test_a_process_whose_parent_died_is_told_once():
    parents = iter([7, 7, 7, 1])
    told: list[str] = []
    thread = watch_parent(seconds=0.001, parent=lambda: next(parents), on_orphaned=lambda: told.append("orphan"))
    thread.join(WAIT)
    assert told == ["orphan"]
    assert not thread.is_alive()
