"""Whether the hot part runs compiled: every module with a `.pxd` beside it can.

Knows where compiled modules lie and what they were built from. Does not know how they are built: that is
`python -m scripts.compile_gateway`. The sources are the same either way; the `.pxd` files only add C types.

Invariant: compiled modules run only where they were built from just these sources, by this version of Python, and then
all of them do.

`GATEWAY_COMPILED` may name another folder of compiled modules, which must fit then; empty, nothing compiled is used.
"""

import hashlib
import os
import sys
import sysconfig
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

PACKAGE = Path(__file__).parent
FOLDER = PACKAGE / "_compiled"
STAMP = "built_from"
VARIABLE = "GATEWAY_COMPILED"
SUFFIX: str = sysconfig.get_config_var("EXT_SUFFIX")


class Finder:
    """Finds the compiled modules before the path does."""

    def __init__(self, folder: Path) -> None:
        """Use those in `folder`."""
        self._files = {name: folder / f"{name}{SUFFIX}" for name in modules()}

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Return where a module lies, or None for one that is not compiled."""
        file = self._files.get(name)
        return (
            None if file is None else spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))
        )


def modules() -> dict[str, Path]:
    """Return the sources that can be compiled, by module name."""
    typed = [path.with_suffix("") for path in sorted(PACKAGE.rglob("*.pxd"))]
    return {".".join(path.relative_to(PACKAGE.parent).parts): path.with_suffix(".py") for path in typed}


def fingerprint() -> str:
    """Return what compiled modules depend on, as a hash: sources, types and Python's binary interface."""
    digest = hashlib.sha256(SUFFIX.encode())
    for source in modules().values():
        digest.update(source.read_bytes() + b"\0" + source.with_suffix(".pxd").read_bytes() + b"\0")
    return digest.hexdigest()


def is_current(folder: Path) -> bool:
    """Whether the folder holds compiled modules of these sources."""
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_text(encoding="ascii") == fingerprint()


def activate() -> None:
    """Have the compiled modules imported from now on, where there are any that fit.

    Raises:
        ImportError: `GATEWAY_COMPILED` names a folder without such modules.
    """
    asked = os.environ.get(VARIABLE)
    if asked == "":
        return
    folder = Path(asked) if asked else FOLDER
    if is_current(folder):
        sys.meta_path.insert(0, Finder(folder))
    elif asked:
        raise ImportError(f"{VARIABLE}={asked} holds no modules compiled from these sources")


def mode() -> str:
    """Return what runs: `compiled`, or `plain Python` and why."""
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return "compiled"
    if os.environ.get(VARIABLE) == "":
        return "plain Python, as asked"
    if FOLDER.is_dir():
        return "plain Python: the compiled modules were built from other sources"
    return "plain Python"
