"""gRPC's message framing: one byte of flags, four of length, then the message.

Knows where messages begin and end. Does not know protobuf.
"""

from struct import Struct

_PREFIX = Struct(">BI")
_PACK, _UNPACK = _PREFIX.pack, _PREFIX.unpack_from
PREFIX_SIZE = 5  # bytes
GATHER_BYTES = 32 * 1024  # a message up to this size goes on only when it is complete


class MessageTooLarge(Exception):
    """A message announces more bytes than are allowed."""

    def __init__(self, size: int, limit: int) -> None:
        """Name both, in bytes."""
        super().__init__(f"a message of {size} bytes; the limit is {limit}")


def frame_message(body: bytes, compressed: int = 0) -> bytes:
    """Return the message with its prefix."""
    return _PACK(compressed, len(body)) + body


def is_message(payload: bytes, stop_byte: int) -> bool:
    """Whether the bytes are just one message that has something in it and does not begin with `stop_byte`."""
    size = len(payload)
    return size > PREFIX_SIZE and payload[PREFIX_SIZE] != stop_byte and _UNPACK(payload)[1] == size - PREFIX_SIZE


def whole_message(payload: bytes, max_bytes: int) -> bytes | None:
    """Return the body if the bytes are just one message, not compressed and no larger than allowed, as most are."""
    size = len(payload) - PREFIX_SIZE
    return payload[PREFIX_SIZE:] if 0 <= size <= max_bytes and payload.startswith(_PACK(0, size)) else None


class MessageReader:
    """Collects whole messages from pieces cut anywhere."""

    def __init__(self, max_bytes: int) -> None:
        """Accept messages of up to `max_bytes`."""
        self.max_bytes = max_bytes
        self.partial = bytearray()

    def feed(self, payload: bytes) -> list[tuple[int, bytes]]:
        """Return the messages that are now complete, each as (compressed flag, body).

        Raises:
            MessageTooLarge: a prefix announces more than the limit.
        """
        self.partial += payload
        done: list[tuple[int, bytes]] = []
        pos = 0
        while len(self.partial) - pos >= PREFIX_SIZE:
            compressed, length = _UNPACK(self.partial, pos)
            if length > self.max_bytes:
                raise MessageTooLarge(length, self.max_bytes)
            end = pos + PREFIX_SIZE + length
            if end > len(self.partial):
                break
            done.append((compressed, bytes(self.partial[pos + PREFIX_SIZE : end])))
            pos = end
        del self.partial[:pos]
        return done


class MessageCutter:
    """Cuts a flow of responses into pieces that end at message boundaries, save for large messages.

    A piece marked as not ending a message belongs to one larger than `GATHER_BYTES`; the pieces after it, up to one
    that ends it, must follow it without anything between.

    A message that begins with `stop_byte` is in no piece: it is kept whole as `stopped_at`, and the rest is dropped.
    """

    def __init__(self, stop_byte: int | None = None) -> None:
        """Cut until a message begins with `stop_byte`, if that is given."""
        self.stop_byte = stop_byte
        self.stopped_at: bytes | None = None
        self.partial = b""
        self.missing = 0  # bytes of a large message that are still to come

    @property
    def at_boundary(self) -> bool:
        """Whether nothing of a message is under way."""
        return not self.partial and not self.missing

    def feed(self, payload: bytes) -> tuple[list[tuple[bytes, bool]], int]:
        """Return (pieces with whether each ends a message, number of messages ended)."""
        pieces: list[tuple[bytes, bool]] = []
        count = 0
        if self.stopped_at is not None:
            return pieces, count
        if self.missing and payload:
            part, payload = payload[: self.missing], payload[self.missing :]
            self.missing -= len(part)
            count += not self.missing
            pieces.append((part, not self.missing))
        if self.partial:
            payload, self.partial = self.partial + payload, b""
        whole, num_whole, length = self._scan(payload)
        if whole:
            pieces.append((payload[:whole], True))
        if whole == len(payload) or self.stopped_at is not None:
            return pieces, count + num_whole
        if self._goes_on_in_parts(payload, whole, length):
            pieces.append((payload[whole:], False))
            self.missing = length - (len(payload) - whole)
        else:
            self.partial = payload[whole:]
        return pieces, count + num_whole

    def _goes_on_in_parts(self, payload: bytes, start: int, length: int) -> bool:
        if length <= GATHER_BYTES or len(payload) - start < PREFIX_SIZE:
            return False
        if self.stop_byte is None:
            return True
        return len(payload) - start > PREFIX_SIZE and payload[start + PREFIX_SIZE] != self.stop_byte

    def _scan(self, payload: bytes) -> tuple[int, int, int]:
        pos = count = length = 0
        while len(payload) - pos >= PREFIX_SIZE:
            length = PREFIX_SIZE + _UNPACK(payload, pos)[1]
            if pos + length > len(payload):
                break
            if self.stop_byte is not None and length > PREFIX_SIZE and payload[pos + PREFIX_SIZE] == self.stop_byte:
                self.stopped_at = payload[pos + PREFIX_SIZE : pos + length]
                break
            pos += length
            count += 1
        return pos, count, length
