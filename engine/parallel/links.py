"""Connections between ranks, on which no bytes are believed before a key is proven.

Knows sockets and a shared key. Does not know what is said. Objects travel pickled: the key keeps strangers out, and
ranks trust each other as `torch.distributed` does.
"""

import hashlib
import hmac
import os
import socket
import struct
import time
from multiprocessing.connection import Connection

from engine.errors import EngineUnavailable

NONCE_BYTES = 32
PROOF = struct.Struct("!32sI")  # HMAC-SHA256 of the nonce and the rank, then the rank
HANDSHAKE_SECONDS = 5.0
CONNECT_PAUSE_SECONDS = 0.1


class LinkServer:
    """Where the other ranks come in."""

    def __init__(self, host: str, port: int, key: bytes) -> None:
        """Listen; port 0 takes a free one.

        Raises:
            EngineUnavailable: the address cannot be listened at.
        """
        self._key = key
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise EngineUnavailable(f"ranks cannot join at {host}:{port}: {error}") from None

    @property
    def port(self) -> int:
        """The port listened at."""
        return self._socket.getsockname()[1]

    def accept(self, timeout: float) -> tuple[int, Connection] | None:
        """Return the next rank and its link; None where nobody with the key has come in that many seconds."""
        joined = self.accept_socket(timeout)
        return None if joined is None else (joined[0], Connection(joined[1].detach()))

    def accept_socket(self, timeout: float) -> tuple[int, socket.socket] | None:
        """Return the next rank and the socket to it, as `accept` does."""
        self._socket.settimeout(timeout)
        try:
            peer, _ = self._socket.accept()
        except TimeoutError:
            return None
        rank = self._prove(peer)
        if rank is None:
            peer.close()
            return None
        return rank, _prepared(peer)

    def close(self) -> None:
        """Listen no more; links stay."""
        self._socket.close()

    def _prove(self, peer: socket.socket) -> int | None:
        nonce = os.urandom(NONCE_BYTES)
        peer.settimeout(HANDSHAKE_SECONDS)
        try:
            peer.sendall(nonce)
            proof, rank = PROOF.unpack(_receive(peer, PROOF.size))
        except OSError:
            return None
        return rank if hmac.compare_digest(proof, _proof(self._key, nonce, rank)) else None


def join_leader(host: str, port: int, key: bytes, rank: int, patience: float) -> Connection:
    """Return this rank's link to rank 0, which may come up only within `patience` seconds.

    Raises:
        EngineUnavailable: nobody listens there.
    """
    return Connection(connect_to(host, port, key, rank, patience).detach())


def connect_to(host: str, port: int, key: bytes, rank: int, patience: float) -> socket.socket:
    """Return this rank's socket to the `LinkServer` at an address, which may come up only within `patience` seconds.

    Raises:
        EngineUnavailable: nobody listens there.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            peer = socket.create_connection((host, port), timeout=HANDSHAKE_SECONDS)
            nonce = _receive(peer, NONCE_BYTES)
            peer.sendall(PROOF.pack(_proof(key, nonce, rank), rank))
            return _prepared(peer)
        except OSError as error:
            if time.monotonic() > deadline:
                raise EngineUnavailable(f"rank {rank} found nobody at {host}:{port}: {error}") from None
            time.sleep(CONNECT_PAUSE_SECONDS)


def _proof(key: bytes, nonce: bytes, rank: int) -> bytes:
    return hmac.digest(key, nonce + struct.pack("!I", rank), hashlib.sha256)


def _receive(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = peer.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("closed during the handshake")
        data += piece
    return data


def _prepared(peer: socket.socket) -> socket.socket:
    """Return a socket that sends at once; a machine that vanishes is noticed within some 10 s, a process at once."""
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return peer
