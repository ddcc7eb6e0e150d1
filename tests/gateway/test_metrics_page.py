"""An instance's metrics are read over one connection for as long as it lives."""

import asyncio

import pytest

from gateway import metrics_page
from gateway.metrics_page import MetricsPage, ScrapeError

KEPT = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na 1\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\na 1\n\r\n0\r\n\r\n"
CLOSED = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\na 1\n"
OLD = b"HTTP/1.0 200 OK\r\n\r\na 1\n"


def read_thrice(answer: bytes, answers_a_connection: int = 10) -> tuple[list[str], int]:
    """Return what three readings gave, and over how many connections; the server ends each after so many answers."""
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        for _ in range(1 if answer in {CLOSED, OLD} else answers_a_connection):
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async def run() -> list[str]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        page = MetricsPage("127.0.0.1:" + str(server.sockets[0].getsockname()[1]))
        try:
            return [await page.read() for _ in range(3)]
        finally:
            page.close()
            server.close()
            await asyncio.gather(*filter(None, serving))

    return asyncio.run(run()), len(serving)


@pytest.mark.parametrize(
    ("answer", "answers_a_connection", "connections"),
    [(KEPT, 10, 1), (CHUNKED, 10, 1), (KEPT, 1, 3), (KEPT, 2, 2), (CLOSED, 1, 3), (OLD, 1, 3)],
)
def test_a_connection_is_kept_until_the_server_ends_it(
    answer: bytes, answers_a_connection: int, connections: int
) -> None:
    assert read_thrice(answer, answers_a_connection) == (["a 1\n"] * 3, connections)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "status 503"),
        (b"what?\r\n\r\n", "illegal status line"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n", "no answer"),
    ],
)
def test_an_answer_that_is_no_page_is_an_error(monkeypatch: pytest.MonkeyPatch, answer: bytes, reason: str) -> None:
    monkeypatch.setattr(metrics_page, "READ_TIMEOUT", 0.2 if reason == "no answer" else 60.0)
    with pytest.raises(ScrapeError, match=reason):
        read_thrice(answer)
