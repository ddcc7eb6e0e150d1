"""What is installed, found and linked before the first start, and skipped at the second."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.launcher import bootstrap, libpython, paths, tritonserver
from scripts.launcher.errors import LaunchError
from scripts.launcher.ports import free_ports, instance_ports, is_free
from scripts.launcher.progress import run_logged

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like the unpacked wheel; the project's own state lies beside it."""
    home = tmp_path / "wheel"
    for name in (f"python_backend_stubs/{VERSION}/{tritonserver.STUB}", "bin/tritonserver"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("#!/bin/sh\n")
        (home / name).chmod(0o755)
    (home / "backends" / "python").mkdir(parents=True)
    for name in tritonserver.BACKEND_FILES:
        (home / "backends" / "python" / name).touch()
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    return home


def test_embedded_server_gets_a_backend_folder_of_links(wheel: Path) -> None:
    server = tritonserver.find_tritonserver(wheel / "bin" / "tritonserver")
    assert server.backend_directory
    links = server.backend_directory / "python"
    assert {link.name for link in links.iterdir()} == {*tritonserver.BACKEND_FILES, tritonserver.STUB}
    assert all(link.is_symlink() and link.resolve().is_relative_to(wheel) for link in links.iterdir())
    assert tritonserver.find_tritonserver(wheel / "bin" / "tritonserver") == server


def test_links_to_a_server_that_moved_are_made_again(wheel: Path) -> None:
    executable = wheel / "bin" / "tritonserver"
    folder = tritonserver.find_tritonserver(executable).backend_directory
    assert folder
    (folder / "python" / tritonserver.STUB).unlink()
    (folder / "python" / tritonserver.STUB).symlink_to("/nowhere")
    tritonserver.find_tritonserver(executable)
    assert (folder / "python" / tritonserver.STUB).resolve().is_file()


def test_server_without_stubs_beside_it_uses_its_own_backends(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.touch(mode=0o755)
    assert tritonserver.find_tritonserver(binary).backend_directory is None


def test_embedded_server_without_a_stub_for_this_python_is_refused(wheel: Path) -> None:
    (wheel / "python_backend_stubs" / VERSION).rename(wheel / "python_backend_stubs" / "3.8")
    with pytest.raises(LaunchError, match=rf"no stub for Python {VERSION} \(it has 3.8\)"):
        tritonserver.find_tritonserver(wheel / "bin" / "tritonserver")


def test_named_server_that_is_no_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="--tritonserver"):
        tritonserver.find_tritonserver(tmp_path)


def test_servers_are_sought_on_the_path_then_in_the_release_then_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / name / "tritonserver" for name in ("path", "release", "embedded")]
    for place in places:
        place.parent.mkdir()
        place.touch(mode=0o755)
    monkeypatch.delenv(paths.TRITONSERVER_ENV, raising=False)
    monkeypatch.setenv("PATH", str(places[0].parent))
    monkeypatch.setattr(tritonserver, "RELEASE", places[1])
    monkeypatch.setattr(tritonserver, "EMBEDDED", places[2])
    found = []
    for place in places:
        found.append(tritonserver.find_tritonserver(install=False).executable)
        place.unlink()
    assert found == places
    with pytest.raises(LaunchError, match="no tritonserver was found"):
        tritonserver.find_tritonserver(install=False)


def test_shared_library_of_this_python_is_found() -> None:
    assert (libpython.find_library_folder() / libpython.library_name()).is_file()


def test_missing_shared_library_is_refused_with_the_package_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libpython, "_candidates", list)
    with pytest.raises(LaunchError, match=rf"apt install libpython{VERSION}`"):
        libpython.find_library_folder()


def test_library_folder_goes_in_front_once() -> None:
    assert libpython.loader_path(Path("/a")) == "/a"
    assert libpython.loader_path(Path("/a"), "/b:/a:/c") == "/a:/b:/c"


def test_free_ports_are_different_free_and_below_those_of_outgoing_connections() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(is_free(port) for port in ports)
    assert max(ports) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len({port for own in instance_ports(3) for port in (own.http, own.grpc, own.metrics)}) == 9


def test_failed_command_is_an_error_with_its_log_and_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"]
    with pytest.raises(LaunchError, match=r"exit code 3 .*log.*Cure: try again"):
        run_logged(command, tmp_path / "log", "try again")
    assert "the reason" in capsys.readouterr().err
    assert "the reason" in (tmp_path / "log").read_text()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text("version = 3.11\n")
    for name, value in {"ROOT": tmp_path, "VENV": tmp_path / ".venv", "STATE_DIR": tmp_path / ".serve"}.items():
        monkeypatch.setattr(paths, name, value)
    monkeypatch.setattr(bootstrap, "MARKER", tmp_path / ".venv" / "installed.json")
    return tmp_path


def mark(parts: list[str]) -> None:
    bootstrap.MARKER.write_text(json.dumps({"fingerprint": bootstrap.fingerprint(), "parts": parts}))


def test_nothing_counts_as_installed_without_a_marker(project: Path) -> None:
    assert bootstrap.installed_extras() == set()
    bootstrap.MARKER.write_text("half a ma")
    assert bootstrap.installed_extras() == set()


def test_installation_is_skipped_once_it_is_marked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark(["project", "dev", "load"])
    monkeypatch.setattr(bootstrap, "_ensure_venv", None)  # calling it would fail
    bootstrap.ensure_environment(("dev",))
    bootstrap.ensure_environment(())
    assert bootstrap.installed_extras() == {"project", "dev", "load"}


@pytest.mark.parametrize("name", ["pyproject.toml", ".venv/pyvenv.cfg"])
def test_changed_project_or_python_is_installed_anew(project: Path, name: str) -> None:
    mark(["project"])
    assert bootstrap.installed_extras() == {"project"}
    (project / name).write_text("changed")
    assert bootstrap.installed_extras() == set()


def test_further_extras_are_added_to_what_is_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark(["load", "project"])
    installed: list[set[str]] = []
    for name, action in {
        "_ensure_venv": lambda: None,
        "_ensure_torch": lambda: None,
        "_install": installed.append,
    }.items():
        monkeypatch.setattr(bootstrap, name, action)
    bootstrap.ensure_environment(("dev",))
    assert installed == [{"project", "load", "dev"}]


@pytest.mark.parametrize(
    "module",
    ["bootstrap", "tritonserver", "libpython", "progress", "errors", "paths", "leftovers", "watchdog", "ports"],
)
def test_module_that_runs_before_the_installation_needs_no_package(module: str) -> None:
    command = [sys.executable, "-S", "-c", f"import scripts.launcher.{module}"]
    subprocess.run(command, cwd=paths.ROOT, check=True, timeout=60)


def test_start_script_says_so_where_there_is_no_fitting_python(tmp_path: Path) -> None:
    launcher = tmp_path / "scripts" / "launcher"
    launcher.mkdir(parents=True)
    (launcher / "start.sh").write_bytes((paths.ROOT / "scripts" / "launcher" / "start.sh").read_bytes())
    for name in ("dirname", "sh"):
        (tmp_path / name).symlink_to(next(Path(f) for f in (f"/usr/bin/{name}", f"/bin/{name}") if Path(f).exists()))
    result = subprocess.run(
        ["/bin/sh", str(launcher / "start.sh"), "serve"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "no Python 3.11 or 3.12 was found. Cure: install one" in result.stderr


def test_commands_are_programs() -> None:
    for name in ("serve", "chat", "test", "launcher/start.sh"):
        assert os.access(paths.ROOT / "scripts" / name, os.X_OK), name
