"""Where numba keeps what it has compiled on disk: a folder for each state of the sources.

numba compares only the file that a function stands in, but a compiled function holds the code of what it calls in other
files too: after an update it would go on running the old one. So the folder's name is a digest of all CPU sources.
A kernel that is to be kept says `cache=CACHE`, which makes sure that this module came first.
"""

import os
import shutil
from pathlib import Path

from numba.core import config

from kernels.source_digest import digest_of

KEPT_FOLDERS = 3  # of other states, the newest
PREFIX = "numba-"


def prepare(base: Path, digest: str) -> Path:
    """Return the folder for that state within `base`; forget the oldest of other states."""
    folder = base / f"{PREFIX}{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    others = sorted(base.glob(f"{PREFIX}*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[KEPT_FOLDERS:]:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _base() -> Path:
    """Return what NUMBA_CACHE_DIR says, else a place beside the sources, else one in the user's home."""
    given = getattr(config, "CACHE_DIR", "")
    if given:
        return Path(given)
    here = Path(__file__).parent
    return here / "__pycache__" if os.access(here, os.W_OK) else Path.home() / ".cache" / "scalellm-triton"


def _set_folder() -> bool:
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    config.CACHE_DIR = str(prepare(_base(), digest_of(sources)))  # pyright: ignore[reportAttributeAccessIssue]
    return True


CACHE = _set_folder()
