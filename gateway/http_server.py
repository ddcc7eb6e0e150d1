"""The HTTP port: a few small answers, nothing on the data path.

Knows one request per connection. Does not know what is behind a route.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

MAX_HEAD_BYTES = 16 * 1024
READ_TIMEOUT = 10.0
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Handler = Callable[[str, str], Answer]


async def serve_http(host: str, port: int, handler: Handler) -> asyncio.Server:
    """Listen; `handler` gets method and path and returns an answer."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_encode(_answer(head, handler)))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a peer that does not speak or goes away gets nothing
        finally:
            writer.close()

    return await asyncio.start_server(connected, host, port, limit=MAX_HEAD_BYTES)


def _answer(head: bytes, handler: Handler) -> Answer:
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3:
        return Answer(400, b"not an HTTP request\n")
    return handler(words[0], words[1].partition("?")[0])


def _encode(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {REASONS[answer.status]}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + answer.body
