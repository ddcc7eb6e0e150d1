"""Compressed gRPC messages, made plain so that fields can be appended to them.

Knows gzip and deflate. Does not know streams.
"""

import zlib

from gateway.wire.messages import MessageTooLarge

WINDOW_BITS = {b"gzip": 31, b"deflate": 15}


class UnknownEncoding(Exception):
    """A message compressed in a way that cannot be undone here, or not compressed as it says."""


def decompress(encoding: bytes, body: bytes, max_bytes: int) -> bytes:
    """Return the plain message.

    Raises:
        UnknownEncoding: the encoding is not supported or the bytes are not of it.
        MessageTooLarge: the plain message exceeds `max_bytes`.
    """
    bits = WINDOW_BITS.get(encoding)
    if bits is None:
        raise UnknownEncoding(f"messages compressed with {encoding.decode('latin-1')!r} are not supported")
    inflater = zlib.decompressobj(bits)
    try:
        plain = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise UnknownEncoding(f"a message is not valid {encoding.decode('latin-1')}: {error}") from error
    if len(plain) > max_bytes:
        raise MessageTooLarge(len(plain), max_bytes)
    return plain
