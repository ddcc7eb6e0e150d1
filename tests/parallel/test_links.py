"""Who may join a group of ranks."""

import socket
import threading

import pytest

from engine.errors import EngineUnavailable
from engine.parallel.links import LinkServer, join_leader

KEY = bytes(32)


def join_in_thread(server: LinkServer, key: bytes, rank: int) -> threading.Thread:
    thread = threading.Thread(target=join_leader, args=("127.0.0.1", server.port, key, rank, 1.0))
    thread.start()
    return thread


def test_a_rank_with_the_key_is_linked() -> None:
    server = LinkServer("127.0.0.1", 0, KEY)
    thread = join_in_thread(server, KEY, 3)
    joined = server.accept(10.0)
    thread.join()
    server.close()
    assert joined is not None
    rank, link = joined
    assert rank == 3
    link.close()


def test_nobody_else_is() -> None:
    server = LinkServer("127.0.0.1", 0, KEY)
    thread = join_in_thread(server, b"\1" * 32, 1)
    assert server.accept(10.0) is None
    thread.join()
    with socket.create_connection(("127.0.0.1", server.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(40))
        assert server.accept(10.0) is None
    with socket.create_connection(("127.0.0.1", server.port)):
        pass
    assert server.accept(10.0) is None
    assert server.accept(0.01) is None
    server.close()


def test_a_rank_without_a_leader_gives_up() -> None:
    server = LinkServer("127.0.0.1", 0, KEY)
    port = server.port
    server.close()
    with pytest.raises(EngineUnavailable, match=f"rank 2 found nobody at 127.0.0.1:{port}"):
        join_leader("127.0.0.1", port, KEY, 2, 0.2)


def test_an_address_of_others_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match=r"ranks cannot join at 192\.0\.2\.1:0"):
        LinkServer("192.0.2.1", 0, KEY)
