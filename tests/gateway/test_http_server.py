"""The HTTP port waits for nobody for ever."""

import asyncio

import pytest
from starlette.requests import Request

from gateway import http_server, openai_reading
from gateway.http_server import Answer, HttpServer, make_app
from gateway.openai_errors import ApiError

WHOLE = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def here(*_: object) -> Answer:
    return Answer(200, b"here\n")


async def connect(server: HttpServer, *pieces: bytes) -> bytes:
    """Send pieces, then read until the other side closes."""
    reader, writer = await asyncio.open_connection(*server.address.split(":"))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


@pytest.mark.parametrize("sent", [b"", WHOLE[:10], WHOLE + WHOLE[:10]])
def test_a_request_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.05)

    async def run() -> bytes:
        server = HttpServer("127.0.0.1", 0, make_app(here))
        server.start()
        answer = await connect(server, sent)
        await server.stop()
        return answer

    assert asyncio.run(run()).endswith(b"here\n" if sent.startswith(WHOLE) else b"")


def test_a_connection_without_a_request_is_kept_longer_than_a_head_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.05)

    async def run() -> bytes:
        server = HttpServer("127.0.0.1", 0, make_app(here))
        server.start()
        reader, writer = await asyncio.open_connection(*server.address.split(":"))
        answer = b""
        for _ in range(2):
            writer.write(WHOLE)
            answer = await reader.readuntil(b"here\n")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.2)
        writer.close()
        await server.stop()
        return answer

    assert asyncio.run(run()).startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.05)

    async def run() -> bytes:
        server = HttpServer("127.0.0.1", 0, make_app(here))
        server.start()
        answer = await connect(server, WHOLE)
        await server.stop()
        return answer

    assert asyncio.run(run()).endswith(b"here\n")


def test_more_connections_than_allowed_are_answered_with_503() -> None:
    async def run() -> bytes:
        server = HttpServer("127.0.0.1", 0, make_app(here), max_connections=2)
        server.start()
        idle = [await asyncio.open_connection(*server.address.split(":")) for _ in range(2)]
        answer = await connect(server, WHOLE)
        for _, writer in idle:
            writer.close()
        await server.stop()
        return answer

    assert asyncio.run(run()).startswith(b"HTTP/1.1 503 ")


def test_a_body_that_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_reading, "BODY_SECONDS", 0.01)

    async def run() -> None:
        nothing = asyncio.get_running_loop().create_future()
        await openai_reading.read_body(Request({"type": "http", "headers": []}, receive=lambda: nothing))

    with pytest.raises(ApiError, match=r"did not come within 0.01 s") as refused:
        asyncio.run(run())
    assert refused.value.status == 408


def test_a_body_that_announces_too_much_is_refused_before_it_comes() -> None:
    scope = {"type": "http", "headers": [(b"content-length", b"99999999")]}
    with pytest.raises(ApiError, match="more than 16777216 bytes") as refused:
        asyncio.run(openai_reading.read_body(Request(scope)))
    assert refused.value.status == 413
