"""A short name for the content of some source files: what was made of them is good for this state only."""

import hashlib
from pathlib import Path


def digest_of(sources: list[Path]) -> str:
    """Return 16 hexadecimal digits that differ where a file's content does."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
