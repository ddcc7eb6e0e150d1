"""What one stream has passed on, kept in little memory so that it can be read again.

Knows DATA frames and how they are packed. Does not know messages, or who reads them.

Invariant: `packed` and then `frames` are all that passed, in order.
"""

import zlib
from collections.abc import Iterator

from gateway.wire.frames import DATA, HEADER, HEADER_SIZE

try:
    from isal.isal_zlib import compress

    LEVEL = 0  # 0.08 us a message and a thirteenth of the memory
except ImportError:  # it comes with the extra `fast`
    from zlib import compress

    LEVEL = 1  # 0.54 us a message and a seventeenth

_PACK = HEADER.pack
FRAMES_BYTES = 32 * 1024
MAX_PACKED_BYTES = 4 * 1024 * 1024


class Recording:
    """DATA frames, whatever stream ids stand in them; the express lane appends to `frames` by itself."""

    def __init__(self) -> None:
        self.frames: list[bytes | bytearray] = []
        self.num_bytes = 0  # in `frames`, as far as `count` has been told
        self.packed: list[bytes] = []
        self.packed_bytes = 0

    def add(self, payload: bytes) -> None:
        """Take the payload of one more frame."""
        size = len(payload)
        self.frames += (_PACK(size << 8 | DATA, 0, 0), payload)
        self.num_bytes += size
        if self.num_bytes >= FRAMES_BYTES:
            self.count(0)

    def count(self, num_bytes: int) -> None:
        """Learn how many bytes have come to `frames`, and pack it when they are many."""
        self.num_bytes += num_bytes
        if self.num_bytes >= FRAMES_BYTES:
            self.packed.append(compress(b"".join(self.frames), LEVEL))
            self.packed_bytes += len(self.packed[-1])
            self.frames.clear()
            self.num_bytes = 0

    @property
    def mark(self) -> tuple[int, int]:
        """What grows with every frame: bytes packed, then frames that are not."""
        return self.packed_bytes, len(self.frames)

    def payloads(self) -> Iterator[bytes]:
        """Yield what the frames hold."""
        for part in (*map(zlib.decompress, self.packed), b"".join(self.frames)):
            pos = 0
            while pos < len(part):
                end = pos + HEADER_SIZE + (HEADER.unpack_from(part, pos)[0] >> 8)
                yield part[pos + HEADER_SIZE : end]
                pos = end
