"""Where this Python's shared library is: Triton's python stub is linked against it.

Knows this interpreter's build and the loader's usual folders. Does not load anything. Standard library only.
"""

import os
import sys
import sysconfig
from pathlib import Path

from scripts.launcher.errors import LaunchError

LOADER_FOLDERS = ("/usr/lib64", "/usr/lib", "/usr/local/lib", "/lib")


def library_name() -> str:
    """Return the file name that the stub for this Python's version asks the loader for."""
    return f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def find_library_folder() -> Path:
    """Return the folder that holds this Python's shared library.

    Raises:
        LaunchError: no known folder holds it.
    """
    name = library_name()
    for folder in _candidates():
        if (folder / name).is_file():
            return folder
    short = name.removesuffix(".so.1.0")
    raise LaunchError(
        f"{name} is not on this machine, and Triton's python backend needs it",
        f"`apt install {short}` (Debian, Ubuntu) or build Python with --enable-shared (pyenv: "
        "PYTHON_CONFIGURE_OPTS=--enable-shared), then remove .venv and start again",
    )


def loader_path(folder: Path, current: str = "") -> str:
    """Return `LD_LIBRARY_PATH` with `folder` in front of what is there."""
    rest = [part for part in current.split(os.pathsep) if part and part != str(folder)]
    return os.pathsep.join([str(folder), *rest])


def _candidates() -> list[Path]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    known = [sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib"]
    known += [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]
    folders = [*known, *LOADER_FOLDERS]
    return [Path(folder) for base in folders if base for folder in (base, f"{base}/{multiarch}")]
