"""An instance behind a proxy that says it is ready and answers every other call with a page of HTML."""

import socket
import threading

from gateway.wire.connection import Connection
from gateway.wire.events import DataReceived, HeadersReceived
from gateway.wire.headers import Headers, encode_headers
from gateway.wire.limits import DEFAULT_LIMITS
from gateway.wire.messages import frame_message
from gateway.wire.stream import Stream
from gateway.wire.table import Role

GRPC: Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
PAGE: Headers = ((b":status", b"503"), (b"content-type", b"text/html"))
OK: Headers = ((b"grpc-status", b"0"),)


class ProxyPage:
    """Listens until it is closed."""

    def __init__(self) -> None:
        self.num_pages = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        connection, paths = Connection(Role.SERVER, [], limits=DEFAULT_LIMITS), {}
        with peer:
            while data := peer.recv(65536):
                for event in connection.feed(data):
                    if isinstance(event, HeadersReceived):
                        paths[event.stream] = dict(event.headers)[b":path"]
                    if isinstance(event, HeadersReceived | DataReceived) and event.end_stream:
                        self._answer(connection, event.stream, paths[event.stream])
                if connection.outbox.chunks:
                    peer.sendall(connection.outbox.take())
                connection.outbox.dirty.clear()

    def _answer(self, connection: Connection, stream: Stream, path: bytes) -> None:
        if path.endswith(b"/ServerReady"):
            connection.outbox.send_headers(stream, encode_headers(GRPC))
            connection.outbox.send_data(stream, frame_message(b"\x08\x01"))
            connection.outbox.send_headers(stream, encode_headers(OK), end_stream=True)
        else:
            self.num_pages += 1
            connection.outbox.send_headers(stream, encode_headers(PAGE))
            connection.outbox.send_data(stream, b"<html>later</html>", end_stream=True)
