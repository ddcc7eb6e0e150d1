"""The HTTP port: small plain answers, and whatever routes are put before them.

Knows uvicorn and starlette. Does not know what is behind a route, nor signals: who starts it also stops it.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.address import join_address

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
BACKLOG = 1024
HEAD_SECONDS = 20.0  # that a request's head may take to arrive, and a new connection until then
IDLE_SECONDS = 75  # between two requests: longer than clients and balancers keep a connection that nobody uses
DATE_SECONDS = 1.0  # between two updates of the Date header
GRACE_SECONDS = 2  # for answers that are written but not yet read when the server stops


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Handler = Callable[[str, str, Sequence[tuple[bytes, bytes]]], Awaitable[Answer]]


class _PatientProtocol(H11Protocol):
    """Closes a connection on which no whole request head comes in time; uvicorn itself waits for its bytes for ever."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Begin to wait for the rest where a request begins."""
        if self._is_idle and self._head is None:
            self._wait()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Wait for the rest of the next request where that has begun; where not, uvicorn waits for `IDLE_SECONDS`."""
        self._stop()
        super().on_response_complete()
        if self._is_idle and self.conn.trailing_data[0]:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop()
        super().connection_lost(exc)

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self._late)

    def _stop(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _late(self) -> None:
        self._head = None
        if self._is_idle:
            self.transport.close()


class HttpServer:
    """Serves on one address within the running loop."""

    def __init__(self, host: str, port: int, app: Starlette, max_connections: int | None = None) -> None:
        """Bind and listen; requests wait until `start`. One more connection than allowed is answered with 503."""
        self._socket = _listen(host, port)
        config = uvicorn.Config(
            app,
            http=_PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=IDLE_SECONDS,
        )
        self._server = _QuietServer(config)
        self.limit(max_connections)
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """The bound address, as `host:port` or `[host]:port`."""
        host, port = self._socket.getsockname()[:2]
        return join_address(host, port)

    def limit(self, max_connections: int | None) -> None:
        """Take so many connections; those to come are counted by it."""
        limit = None if max_connections is None else max_connections + 1  # uvicorn counts the new one
        self._server.config.limit_concurrency = limit

    def start(self) -> asyncio.Task[None]:
        """Begin to answer; return the task that does, which ends with `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._socket]))
        return self._task

    async def stop(self) -> None:
        """Close the port, give open answers a moment, then cut."""
        self._server.stop()
        if self._task is not None:
            await self._task


class _QuietServer(uvicorn.Server):
    """Leaves signals to the process, and wakes an idle one once a second, where uvicorn does so 10 times."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Have `serve` close the port, wait for open answers, and return."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Keep the Date header current until it is time to stop."""
        while not await self.on_tick(0):  # 0: of every tenth the header is made anew
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self._stopped.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def make_app(handler: Handler, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """Return an application with these routes, and the handler for all else."""

    async def plain(request: Request) -> Response:
        answer = await handler(request.method, request.url.path, request.headers.raw)
        return Response(answer.body, answer.status, media_type=answer.content_type)

    return Starlette(routes=[*routes, Route("/{path:path}", plain, methods=METHODS)])


def _listen(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
