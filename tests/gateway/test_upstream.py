"""Connections to an instance without sockets: which are used, and what is left of a stream that the instance ends."""

import asyncio
from typing import Any

from gateway.link import Hub
from gateway.patience import Patience
from gateway.status import Code, Failure
from gateway.upstream import Pool, Route, UpstreamLink
from gateway.wire import frames
from gateway.wire.frames import FrameType, Setting
from gateway.wire.headers import encode_headers
from tests.gateway.wires import REQUEST, data_frame, open_frame, written

BLOCK = encode_headers(REQUEST)
ANSWER = open_frame(1, headers=((b":status", b"200"), (b"content-type", b"application/grpc")))


class Asker:
    """Who stands behind a stream; leaves it at the first data if asked to."""

    def __init__(self, leaves: bool = False) -> None:
        self.told: list[object] = []
        self.leaves = leaves

    def on_headers(self, event: Any) -> None:
        pass

    def on_data(self, event: Any) -> None:
        self.told.append(event.payload)
        if self.leaves:
            event.stream.owner = None

    def on_lost(self, failure: Failure, code: int | None = None) -> None:
        self.told.append((failure.code, failure.message, code))


class Transport:
    """Notes that it is closed."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def make_pool() -> Pool:
    return Pool(Hub(), "one", Route("unix:/nowhere", Patience()), lambda _reason: None)


def connected(pool: Pool, **settings: int) -> UpstreamLink:
    """Return a new connection of the pool, on which the instance has said so much."""
    link = pool.acquire()
    transport: Any = Transport()
    link.transport = transport
    receive(link, frames.pack_settings({Setting[name]: value for name, value in settings.items()}))
    return link


def receive(link: UpstreamLink, data: bytes) -> None:
    for event in link.connection.feed(data):
        link.handle(event)


def test_connections_that_take_no_streams_do_not_pile_up() -> None:
    async def check() -> None:
        pool = make_pool()
        busy = connected(pool, MAX_CONCURRENT_STREAMS=1)
        busy.open(BLOCK, Asker())  # type: ignore[arg-type]
        spent = [connected(pool, MAX_CONCURRENT_STREAMS=0) for _ in range(3)]
        assert pool.acquire() not in {busy, *spent}
        transports: list[Any] = [link.transport for link in (busy, *spent)]
        assert [transport.closed for transport in transports] == [False, True, True, True]

    asyncio.run(check())


def test_nothing_is_left_of_a_stream_that_ends_without_trailers() -> None:
    async def check() -> None:
        for ends, leaves in ((False, False), (True, False), (False, True), (True, True)):
            link, asker = connected(make_pool()), Asker(leaves)
            stream = link.open(BLOCK, asker)  # type: ignore[arg-type]
            link.connection.outbox.send_data(stream, b"question", end_stream=ends)
            written(link.connection)
            receive(link, ANSWER + data_frame(1, b"part", frames.END_STREAM))
            end = (Code.INTERNAL, "instance one: it ended its answer without trailers", None)
            assert asker.told == [b"part", *([] if leaves else [end])]
            assert not link.connection.streams
            assert [kind for kind, *_ in written(link.connection)] == ([] if ends else [FrameType.RST_STREAM])

    asyncio.run(check())


def test_a_malformed_answer_is_called_the_instances_fault_and_its_stream_reset() -> None:
    async def check() -> None:
        link, asker = connected(make_pool()), Asker()
        link.open(BLOCK, asker)  # type: ignore[arg-type]
        written(link.connection)
        receive(link, open_frame(1, headers=((b":status", b"200"), (b"connection", b"close"))))
        message = "instance one: the header connection is not allowed in HTTP/2"
        assert asker.told == [(Code.INTERNAL, message, None)]
        assert [kind for kind, *_ in written(link.connection)] == [FrameType.RST_STREAM]

    asyncio.run(check())


def test_a_pool_that_is_retired_opens_nothing_and_says_so() -> None:
    async def check() -> None:
        pool = make_pool()
        asker: Any = Asker()
        assert pool.retire() == []
        pool.acquire().open(BLOCK, asker)
        await asyncio.sleep(0)
        assert asker.told == [(Code.UNAVAILABLE, "instance one: it is not used any more", None)]
        assert not pool.links
        assert not pool._connecting

    asyncio.run(check())
