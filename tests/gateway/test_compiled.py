"""The hot part, compiled: the tests of the wire, of the relay and of broken streams hold for it as for plain Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import compiled
from scripts.compile_gateway import compile_to, missing

HERE = Path(__file__).parent
SUITES = ("wire_parts", "wire_connection", "wire_conformance", "exchange", "relay", "resume", "hedging")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of compiled modules."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("compiled") / "modules"
    compile_to(folder, "-O0")
    return folder


def run(folder: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {compiled.VARIABLE: str(folder)}
    command, root = [sys.executable, *arguments], compiled.PACKAGE.parent
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_tests_of_wire_and_relay_pass_compiled(folder: Path) -> None:
    files = [str(HERE / f"test_{suite}.py") for suite in SUITES]
    without_torch = ("--noconftest", "-p", "tests.gateway.conftest")  # which the conftest of all tests imports
    result = run(folder, "-m", "pytest", "-p", "no:cacheprovider", *without_torch, *files)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_every_typed_module_is_the_compiled_one(folder: Path) -> None:
    names = list(compiled.modules())
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {names}]"
    result = run(folder, "-c", code)
    assert result.stdout.split() == [str(folder / f"{name}{compiled.SUFFIX}") for name in names], result.stderr


@pytest.mark.slow
def test_modules_of_other_sources_are_refused(folder: Path, tmp_path: Path) -> None:
    assert compiled.is_current(folder)
    (tmp_path / compiled.STAMP).write_text("0" * 64)
    assert not compiled.is_current(tmp_path)
    result = run(tmp_path, "-c", "import gateway")
    assert result.returncode != 0
    assert "holds no modules compiled from these sources" in result.stderr


@pytest.mark.slow
def test_a_gateway_says_what_it_runs(folder: Path) -> None:
    code = "from gateway import compiled; print(compiled.mode())"
    assert run(folder, "-c", code).stdout.strip() == "compiled"
    assert run("", "-c", code).stdout.strip() == "plain Python, as asked"


@pytest.mark.parametrize("path", compiled.modules().values(), ids=lambda path: path.stem)
def test_each_attribute_of_a_typed_class_has_its_type(path: Path) -> None:
    """A class with C types has no others, so an attribute missing in the `.pxd` would fail at run time only."""
    types = path.with_suffix(".pxd").read_text(encoding="utf-8")
    source = path.read_text(encoding="utf-8")
    declared = set(re.findall(r"\w+", " ".join(re.findall(r"cdef public (.*)", types))))
    for name in re.findall(r"^cdef class (\w+)", types, re.MULTILINE):
        body = re.split(r"^(?=\S)", source[source.index(f"class {name}") :], flags=re.MULTILINE)[0]
        assigned = set(re.findall(r"self\.(\w+)(?:: [^=]+)? =", body))
        assert assigned <= declared, f"{path.with_suffix('.pxd').name} does not know {assigned - declared}"


@pytest.mark.parametrize("path", compiled.modules().values(), ids=lambda path: path.stem)
def test_a_typed_dataclass_has_its_fields_in_the_order_of_the_source(path: Path) -> None:
    """Cython makes `__init__` of the order in the `.pxd`."""
    for kind in re.split(r"^cdef class ", path.with_suffix(".pxd").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name = re.split(r"\W", kind)[0]
        found = re.search(
            rf"^@dataclass.*\nclass {name}:\n((?: .*\n|\n)+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        if found is not None:
            declared = re.findall(r"\w+", " ".join(re.findall(r"cdef public \w+ (.*)", kind)))
            assert declared == re.findall(r"^    (\w+): ", found[1], re.MULTILINE)
