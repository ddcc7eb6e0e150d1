"""The Dockerfile, as far as it can be checked without building it."""

import ast
import re
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from scripts.launcher.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def target(name: str) -> str:
    """Return the lines of one target."""
    start = DOCKERFILE.index(f" AS {name}\n")
    return DOCKERFILE[start:].split("\nFROM ")[0]


def installed_by(name: str) -> list[str]:
    return re.findall(r'"([^"]+)"', "".join(re.findall(r"^RUN .*pip install(.*)$", target(name), re.MULTILINE)))


def package(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0]


def test_every_copied_path_exists() -> None:
    sources = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    assert {"engine", "kernels", "model_repository", "demo_model", "scripts", "gateway"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_no_copied_path_is_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = {word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]}
    assert copied.isdisjoint(ignored)


def test_both_targets_run_as_an_ordinary_user() -> None:
    assert "USER 1000:1000" in target("serve")
    assert "USER 1000:1000" in target("gateway")


def test_serve_starts_tritonserver_on_the_copied_repository() -> None:
    assert 'ENTRYPOINT ["tritonserver", "--model-repository=/opt/scalellm/model_repository"' in target("serve")


def test_triton_image_is_a_build_argument_with_a_default() -> None:
    assert re.search(r"^ARG TRITON_IMAGE=nvcr\.io/nvidia/tritonserver:\S+$", DOCKERFILE, re.MULTILINE)
    assert "FROM ${TRITON_IMAGE} AS serve" in DOCKERFILE


def test_gateway_image_installs_the_projects_own_versions_and_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["fast"]
    versions = {package(requirement): requirement.partition(">")[2] for requirement in wanted}
    for requirement in installed_by("gateway"):
        assert versions[package(requirement)] == requirement.partition(">")[2], requirement
    assert {"torch", "transformers", "numba"}.isdisjoint(map(package, installed_by("gateway")))


def test_gateway_image_installs_everything_the_gateway_imports() -> None:
    brought = {"pydantic-core"}  # by packages that are asked for
    have = {package(requirement) for requirement in installed_by("gateway")} | brought
    owners = packages_distributions()
    missing = {
        (module, file.name)
        for file in (ROOT / "gateway").rglob("*.py")
        for module in imported(file)
        if module not in sys.stdlib_module_names and module != "gateway"
        if not have & {owner.lower().replace("_", "-") for owner in owners.get(module, [module])}
    }
    assert missing == set()


def imported(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in plain | named}


@pytest.mark.slow
def test_gateway_starts_in_a_fresh_environment_with_only_its_own_packages(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile"]
    subprocess.run([*pip, *installed_by("gateway")], check=True)
    result = subprocess.run([python, "-m", "gateway", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--instance" in result.stdout
