"""One GET whose answer is read line by line as it comes.

Knows HTTP/1.1 through h11, over TCP or TLS. Does not know what the lines mean.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from urllib.parse import urlsplit

import h11

READ_BYTES = 64 * 1024
IDLE_SECONDS = 300.0  # a watch that is silent for longer is given up
MAX_LINE_BYTES = 16 * 2**20
PORTS = {"http": 80, "https": 443}


class HttpError(Exception):
    """An answer that cannot be used."""


async def read_lines(url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None) -> AsyncGenerator[bytes, None]:
    """Yield the lines of the answer's body, the last one also without an end of line.

    Raises:
        HttpError: the status is not 200, the answer is no HTTP, or a line is too long.
        OSError: the server cannot be reached.
        TimeoutError: nothing came for too long.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        connection = h11.Connection(h11.CLIENT)
        fields = [("host", parts.netloc), ("accept", "application/json"), *headers.items()]
        target = f"{parts.path}?{parts.query}"
        writer.write(connection.send(h11.Request(method="GET", target=target, headers=fields)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        rest = b""
        async for data in _body(connection, reader):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line
            if len(rest) > MAX_LINE_BYTES:
                raise HttpError(f"a line of more than {MAX_LINE_BYTES} bytes")
        if rest:
            yield rest
    except h11.RemoteProtocolError as error:
        raise HttpError(f"no HTTP: {error}") from error
    finally:
        writer.close()


async def _body(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            async with asyncio.timeout(IDLE_SECONDS):
                connection.receive_data(await reader.read(READ_BYTES))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise HttpError(f"status {event.status_code}")
        elif isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return
