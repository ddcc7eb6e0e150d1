"""The metrics page of one instance, read again and again over one connection.

Knows HTTP/1.1 through h11. Does not know what the page says.
"""

import asyncio

import h11

from gateway.address import split_address

READ_TIMEOUT = 1.0  # seconds, for all of one page
READ_BYTES = 2**16
MAX_PAGE_BYTES = 4 * 2**20


class ScrapeError(Exception):
    """A metrics port that did not answer as it should."""


class MetricsPage:
    """The page at `host:port`; it is read by one at a time."""

    def __init__(self, address: str) -> None:
        """Connect with the first reading."""
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def read(self) -> str:
        """Return the page; where the server has ended the connection meanwhile, over another one.

        Raises:
            ScrapeError: it cannot be had.
        """
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                if self._streams is not None:
                    try:
                        return await self._ask(*self._streams)
                    except (OSError, h11.ProtocolError):
                        self.close()
                return await self._ask(*await self._connect())
        except (OSError, TimeoutError, h11.ProtocolError, ScrapeError) as error:
            self.close()
            raise ScrapeError(f"{self._address}: {str(error) or 'no answer'}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._http = h11.Connection(h11.CLIENT)
        self._streams = await asyncio.open_connection(*split_address(self._address))
        return self._streams

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        http = self._http
        request = h11.Request(method="GET", target="/metrics", headers=[("host", self._address)])
        writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        parts: list[bytes] = []
        size = 0
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.Response) and event.status_code != 200:
                raise ScrapeError(f"status {event.status_code}")
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                size += len(event.data)
                if size > MAX_PAGE_BYTES:
                    raise ScrapeError(f"more than {MAX_PAGE_BYTES} bytes of metrics")
        if http.our_state is http.their_state is h11.DONE:
            http.start_next_cycle()
        else:
            self.close()
        return b"".join(parts).decode("utf-8", "replace")
