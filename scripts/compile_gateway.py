"""`python -m scripts.compile_gateway`: compile the gateway's hot part with Cython; it runs as plain Python without.

Knows Cython and the C compiler. Does not know when compiled modules are used: see `gateway.compiled`.
"""

import argparse
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from gateway import compiled

ROOT = compiled.PACKAGE.parent
DIRECTIVES = {"language_level": 3, "annotation_typing": False}  # the `.pxd` files alone say what is typed
QUIET = ["-g0", "-Wno-unused-function"]


def missing() -> str | None:
    """Return what is not there to compile with, or None."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler ({compiler}) is installed"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's header files are not installed"
    try:
        import Cython  # noqa: F401
    except ImportError:
        return "Cython is not installed (pip install -e '.[fast]')"
    return None


def compile_to(folder: Path, optimize: str = "-O2") -> None:
    """Leave the compiled modules in `folder`, replacing what is there; `optimize` is for the C compiler.

    Raises:
        CompileError: a `.pxd` does not fit its module.
    """
    built_from = compiled.fingerprint()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder.parent) as scratch:
        built = Path(scratch) / "built"
        built.mkdir()
        for file in _build(Path(scratch), optimize).rglob(f"*{compiled.SUFFIX}"):
            file.replace(built / ".".join(file.relative_to(Path(scratch) / "lib").parts))
        (built / compiled.STAMP).write_text(built_from, encoding="ascii")
        shutil.rmtree(folder, ignore_errors=True)
        built.replace(folder)


def _build(scratch: Path, optimize: str) -> Path:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    extensions = [
        Extension(name, [str(source.relative_to(ROOT))], extra_compile_args=[optimize, *QUIET])
        for name, source in compiled.modules().items()
    ]
    sources = cythonize(extensions, build_dir=str(scratch / "c"), compiler_directives=DIRECTIVES, quiet=True)
    command = Distribution({"ext_modules": sources}).get_command_obj("build_ext")
    command.build_lib, command.build_temp, command.parallel = str(scratch / "lib"), str(scratch / "o"), 2
    command.ensure_finalized()
    command.run()
    return scratch / "lib"


def main() -> int:
    """Compile unless that was done; return the exit status."""
    parser = argparse.ArgumentParser("python -m scripts.compile_gateway", description=__doc__)
    parser.add_argument("--folder", type=Path, default=compiled.FOLDER, help="where the compiled modules go")
    folder = parser.parse_args().folder
    if compiled.is_current(folder):
        print(f"already compiled: {folder}")
    elif (reason := missing()) is not None:
        print(f"not compiled, the gateway runs as plain Python: {reason}")
    else:
        compile_to(folder)
        print(f"compiled {len(compiled.modules())} modules: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
