"""Make the project's environment, then run a command inside it.

Knows the virtual environment, pip and the marker of a finished installation. Does not know what the commands do.
Standard library only: it runs before anything is installed.

Invariants:
1. The marker is written last and names what was installed for, so an interrupted installation starts over.
2. Two starts at once install one after the other.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.launcher import paths
from scripts.launcher.errors import EXIT_CANNOT_START, LaunchError
from scripts.launcher.progress import run_logged, say, step

MARKER = paths.VENV / "installed.json"
TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROJECT = "project"
SUPPORTED = (3, 11), (3, 12)
EXTRAS: dict[str, tuple[str, ...]] = {
    "serve": ("load",),
    "chat": (),
    "plan": (),
    "bench": (),
    "report": (),
    "quantize_checkpoint": (),
    "simulate": (),
    "simulate_routing": (),
    "test": ("dev", "load"),
}
INSTALL_CURE = "check the network and the free disk space, then start again (remove .venv to begin anew)"


def main(arguments: list[str]) -> None:
    """Prepare the environment for the command that the arguments begin with, and become that command."""
    command, *rest = arguments
    try:
        ensure_environment(EXTRAS[command])
    except LaunchError as error:
        say(f"error: {error}")
        sys.exit(EXIT_CANNOT_START)
    except KeyboardInterrupt:
        sys.exit(130)
    os.environ["PYTHONPATH"] = str(paths.ROOT)
    module = f"scripts.launcher.{command}_command"
    os.execv(paths.VENV_PYTHON, [str(paths.VENV_PYTHON), "-P", "-m", module, *rest])  # noqa: S606 - no shell wanted


def ensure_environment(extras: tuple[str, ...]) -> None:
    """Create `.venv` and install the project with `extras`, unless that was done before.

    Raises:
        LaunchError: the environment cannot be created, or an installation failed.
    """
    wanted = {PROJECT, *extras}
    if wanted <= installed_extras():
        return
    with _one_at_a_time():
        have = installed_extras()
        if wanted <= have:
            return
        with step(f"preparing {paths.VENV} (the first time this takes a few minutes)"):
            _ensure_venv()
            _ensure_torch()
            _install(have | wanted)


def installed_extras() -> set[str]:
    """Return what the marker names: extras and the project itself; nothing where it is missing or out of date."""
    try:
        marker = json.loads(MARKER.read_text(encoding="utf-8"))
        return set(marker["parts"]) if marker["fingerprint"] == fingerprint() else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def fingerprint() -> str:
    """Return what an installation depends on, as a hash: the project's file, its place and the Python that runs it."""
    parts = (paths.ROOT / "pyproject.toml").read_bytes(), str(paths.ROOT).encode(), _venv_config()
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _venv_config() -> bytes:
    return (paths.VENV / "pyvenv.cfg").read_bytes()


def _ensure_venv() -> None:
    if _runs(paths.VENV_PYTHON, f"import pip, sys; assert {SUPPORTED[0]} <= sys.version_info[:2] <= {SUPPORTED[1]}"):
        return
    own = ["--system-site-packages"] if has_gpu() and _runs(Path(sys.executable), "import torch") else []
    cure = "install Python's venv module (Debian, Ubuntu: apt install python3-venv) or remove .venv and start again"
    with step(f"creating the virtual environment with Python {sys.version.split()[0]}"):
        run_logged([_base_python(), "-m", "venv", "--clear", *own, paths.VENV], _log(), cure)


def _base_python() -> str:
    """Return a Python outside of the environment that is about to be cleared."""
    return getattr(sys, "_base_executable", sys.executable)


def _ensure_torch() -> None:
    """Install the CPU build of torch where there is neither a torch nor a GPU; a GPU's owner keeps their own."""
    if has_gpu() or _runs(paths.VENV_PYTHON, "import torch"):
        return
    index = [] if _has_pip_sources() else ["--extra-index-url", CPU_INDEX]
    with step(f"installing {TORCH} for the CPU"):
        run_logged([*_pip("install"), *index, TORCH], _log(), INSTALL_CURE)


def _install(parts: set[str]) -> None:
    extras = ",".join(sorted(parts - {PROJECT}))
    target = f"{paths.ROOT}[{extras}]" if extras else str(paths.ROOT)
    with step("installing the project and what it needs"):
        run_logged([*_pip("install"), "-e", target], _log(), INSTALL_CURE)
    MARKER.write_text(json.dumps({"fingerprint": fingerprint(), "parts": sorted(parts)}), encoding="utf-8")


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU and its driver."""
    return shutil.which("nvidia-smi") is not None and any(Path("/dev").glob("nvidia[0-9]*"))


def _has_pip_sources() -> bool:
    """Return whether pip is told where to look, so that no index of ours should be added."""
    found = subprocess.run(_pip("config", "list"), capture_output=True, text=True, check=False)
    return "index-url" in found.stdout or "find-links" in found.stdout


def _pip(*arguments: str) -> list[str]:
    return [str(paths.VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]


def _runs(python: Path, code: str) -> bool:
    if not python.is_file():
        return False
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def _log() -> Path:
    return paths.LOG_DIR / "install.log"


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    paths.STATE_DIR.mkdir(parents=True, exist_ok=True)
    with (paths.STATE_DIR / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main(sys.argv[1:])
