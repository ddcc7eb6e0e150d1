"""Where a server listens: `host:port`, or `unix:/path` for a Unix socket.

Knows how addresses are written and how asyncio listens at and connects to them. Does not know who speaks.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

BACKLOG = 1024
UNIX = "unix:"
ANY_IPV6 = "::"
PATTERN = r"^(unix:/\S+|(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]+):\d{1,5})$"


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[host]:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def unix_path(address: str) -> Path | None:
    """Return the socket's path of `unix:/path`, None for `host:port`."""
    return Path(address.removeprefix(UNIX)) if address.startswith(UNIX) else None


def authority(address: str) -> str:
    """Return what stands in `:authority` for a server at this address."""
    return "localhost" if address.startswith(UNIX) else address


async def listen(
    address: str,
    make_protocol: Callable[[], Any],
    tls: ssl.SSLContext | None = None,
    tls_timeout: float | None = None,
    *,
    share_port: bool = False,
    listener: socket.socket | None = None,
) -> asyncio.Server:
    """Listen at the address.

    Args:
        address: where.
        make_protocol: called for every connection; what it returns has the methods of a `BufferedProtocol`.
        tls: speak TLS, with this context.
        tls_timeout: seconds for a handshake, with TLS only.
        share_port: let other processes listen at the same port; connections are spread over them.
        listener: a bound Unix socket that other processes accept at too; it stays open.

    Raises:
        OSError: the address is taken or cannot be used.
    """
    loop = asyncio.get_running_loop()
    timeout = tls_timeout if tls is not None else None
    path = unix_path(address)
    if path is not None:
        return await loop.create_unix_server(
            make_protocol,
            sock=listener.dup() if listener is not None else bind_unix(path),
            ssl=tls,
            ssl_handshake_timeout=timeout,
            backlog=BACKLOG,
        )
    host, port = split_address(address)
    make = partial(loop.create_server, make_protocol, ssl=tls, ssl_handshake_timeout=timeout, backlog=BACKLOG)
    if host == ANY_IPV6:
        return await make(sock=_bind_both(port, share_port))
    return await make(host=host, port=port, reuse_port=share_port or None)


async def connect(
    address: str,
    make_protocol: Callable[[], Any],
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
) -> None:
    """Connect to the address.

    Raises:
        OSError: nobody answers there, or not in TLS where that is asked for.
    """
    loop = asyncio.get_running_loop()
    path = unix_path(address)
    if path is not None:
        await loop.create_unix_connection(
            make_protocol, str(path), ssl=tls, server_hostname=(server_name or "localhost") if tls else None
        )
        return
    host, port = split_address(address)
    await loop.create_connection(
        make_protocol, host, port, ssl=tls, server_hostname=(server_name or host) if tls else None
    )


def bound_address(server: asyncio.Server) -> str:
    """Return where a server listens, with the port that it was given."""
    name = server.sockets[0].getsockname()
    return UNIX + name if isinstance(name, str) else join_address(*name[:2])


def join_address(host: str, port: int) -> str:
    """Return `host:port`, or `[host]:port` for IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def remove_socket(address: str) -> None:
    """Remove the file that a Unix socket leaves behind."""
    path = unix_path(address)
    if path is not None:
        path.unlink(missing_ok=True)


def bind_unix(path: Path) -> socket.socket:
    """Return a bound socket; a socket file whose server is gone is replaced, one that is served is not.

    Raises:
        OSError: the path is taken or cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_stale(path):
            path.unlink()
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    return listener


def _bind_both(port: int, share_port: bool) -> socket.socket:
    """Return a socket bound for every address of IPv6 and IPv4; by itself asyncio takes IPv6 alone there."""
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((ANY_IPV6, port))
    except OSError:
        listener.close()
        raise
    return listener


def _is_stale(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                return True
    return False
