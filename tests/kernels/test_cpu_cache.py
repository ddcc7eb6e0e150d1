"""Compiled kernels are kept for one state of the sources and not longer."""

import os
from pathlib import Path

import pytest
from numba.core import config

from kernels import cpu_cache
from kernels.cpu_cache import KEPT_FOLDERS, prepare
from kernels.source_digest import digest_of

KERNELS = Path(cpu_cache.__file__).parent


def test_another_content_is_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "kernel.py"
    source.write_text("a = 1")
    before = digest_of([source])
    assert digest_of([source]) == before
    source.write_text("a = 2")
    assert digest_of([source]) != before


def test_the_newest_other_folders_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT_FOLDERS + 2):
        folder = prepare(tmp_path, str(number))
        os.utime(folder, (number, number))
    prepare(tmp_path, "now")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"numba-now", *(f"numba-{number}" for number in range(3, KEPT_FOLDERS + 2))}


def test_numba_writes_there() -> None:
    assert Path(str(config.CACHE_DIR)).name.startswith("numba-")  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("cpu_kernel.py")), ids=lambda path: path.parent.name)
def test_no_kernel_is_kept_elsewhere(path: Path) -> None:
    assert "cache=True" not in path.read_text(encoding="utf-8")
