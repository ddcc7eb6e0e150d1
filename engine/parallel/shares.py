"""Which part of a size belongs to which rank.

Knows integers only.

Invariant: the shares of all ranks are adjacent, in order and cover everything; sizes differ by at most one.
"""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class HeadShare:
    """One rank's attention heads.

    Attributes:
        queries: its query heads.
        kvs: the key/value heads that these read. Every one of them is read by equally many of `queries`.
    """

    queries: range
    kvs: range


def even_share(size: int, num_parts: int, part: int) -> range:
    """Return the indices of part `part`, from 0, of `size` things; the first parts are the larger ones."""
    small, num_large = divmod(size, num_parts)
    start = part * small + min(part, num_large)
    return range(start, start + small + (part < num_large))


def head_share(num_heads: int, num_kv_heads: int, num_parts: int, part: int) -> HeadShare:
    """Return the heads of one part of at most `num_heads` parts.

    Key/value heads are split while there are enough of them, each with all of its query heads. Where there are fewer
    than parts, several parts hold a copy of one and share its query heads.
    """
    group = num_heads // num_kv_heads
    if num_parts <= num_kv_heads:
        kvs = even_share(num_kv_heads, num_parts, part)
        return HeadShare(range(kvs.start * group, kvs.stop * group), kvs)
    kv = next(k for k in range(num_kv_heads) if part in even_share(num_parts, num_kv_heads, k))
    sharing = even_share(num_parts, num_kv_heads, kv)
    queries = even_share(group, len(sharing), part - sharing.start)
    return HeadShare(range(kv * group + queries.start, kv * group + queries.stop), range(kv, kv + 1))
