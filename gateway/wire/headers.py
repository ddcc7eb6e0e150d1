"""Header blocks: HPACK through the `hpack` package, cached where that is sound.

Encoding never touches the dynamic table, so a block depends on its headers alone and can be reused on any connection.
A block that was decoded and left the dynamic table as it was means the same until another block changes the table.
"""

from functools import lru_cache

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.hpack import encode_integer

from gateway.wire.faults import ConnectionFault, ErrorCode
from gateway.wire.limits import DEFAULT_LIMITS

Headers = tuple[tuple[bytes, bytes], ...]
CACHED_BLOCKS = 256
REMEMBERED_BLOCKS, REMEMBERED_BYTES = (
    64,
    512,
)  # of one connection: most calls of a client begin with the same small block

DEFAULT_TABLE_SIZE = 4096
TABLE_SIZE_UPDATE, TABLE_SIZE_BITS = 0x20, 5

_ENCODER = Encoder()


@lru_cache(maxsize=CACHED_BLOCKS)
def encode_headers(headers: Headers) -> bytes:
    """Return the headers as one block that leaves the peer's table as it is."""
    return _ENCODER.encode([(name, value, True) for name, value in headers], huffman=False)


def table_size_update(size: int) -> bytes:
    """Return what begins a block of an encoder whose table shrinks to `size` bytes."""
    data = encode_integer(size, TABLE_SIZE_BITS)
    data[0] |= TABLE_SIZE_UPDATE
    return bytes(data)


class HeaderDecoder:
    """One direction's decoding state."""

    def __init__(self, max_list_bytes: int = DEFAULT_LIMITS.max_header_list_bytes) -> None:
        """Refuse lists that unpack to more than `max_list_bytes`."""
        self.max_list_bytes = max_list_bytes
        self._decoder = Decoder(max_header_list_size=max_list_bytes)
        self.known: dict[bytes, Headers] = {}  # blocks that mean the same as when they were decoded

    def decode(self, block: bytes) -> Headers:
        """Return the headers of a complete block.

        Raises:
            ConnectionFault: the block is malformed or unpacks to too much.
        """
        known = self.known.get(block)
        if known is not None:
            return known
        size, newest, room = self._table_state()
        try:
            headers = tuple((bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True))
        except OversizedHeaderListError as error:
            message = f"a header list of more than {self.max_list_bytes} bytes"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message) from error
        except HPACKError as error:
            raise ConnectionFault(
                ErrorCode.COMPRESSION_ERROR, f"malformed header block: {type(error).__name__}"
            ) from error
        size_now, newest_now, room_now = self._table_state()
        changed = size_now != size or newest_now is not newest or room_now != room
        if changed or len(self.known) >= REMEMBERED_BLOCKS:
            self.known.clear()
        elif len(block) <= REMEMBERED_BYTES:
            self.known[block] = headers
        return headers

    def _table_state(self) -> tuple[int, object, int]:
        """Return what differs after any change: an added entry is a new object, and comes first."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return len(entries), entries[0] if entries else None, table.maxsize
