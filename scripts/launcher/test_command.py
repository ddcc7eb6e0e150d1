"""`scripts/test`: tests, and beside them style, types and the kernels' compilation, all of them even where one fails.

Knows the commands. Does not know what they check. The last line is pytest's own unless it is the first to end.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from scripts.launcher import paths
from scripts.launcher.errors import EXIT_CANNOT_START, LaunchError
from scripts.launcher.progress import say
from scripts.launcher.tritonserver import find_tritonserver

FAST = "--fast"
WORKERS = ["-n", "2", "--no-loadscope-reorder"]  # tests/conftest.py says how tests are dealt out
FAST_MARKS = ["-m", "not slow and not e2e and not numeric and not process"]
USAGE = """\
usage: scripts/test [--fast] [PYTEST ARGUMENT...]

Runs ruff check, ruff format --check, pyright, compiles all Triton kernels for three GPUs, and runs pytest; fails where
any of them fails.
  --fast  leave out what is slow, computes models or kernels, or starts servers (some two minutes)
Other arguments go to pytest, for example: scripts/test tests/unit -x
With any argument, only a few of the kernels are compiled; with one for pytest, its tests run one after the other."""


def check_commands(arguments: list[str]) -> list[list[str]]:
    """Return the commands to run, pytest last."""
    rest = [argument for argument in arguments if argument != FAST]
    marks = FAST_MARKS if FAST in arguments else []
    workers = [] if rest else WORKERS
    few = ["--sampled"] if arguments else []
    return [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["pyright"],
        ["kernels.aot", "--problems", *few],
        ["pytest", *workers, *marks, *rest],
    ]


def run_checks(commands: list[list[str]]) -> int:
    """Run the last command and, beside it, the others one by one; return the exit code of one that failed, else 0."""
    *others, last = commands
    with ThreadPoolExecutor(max_workers=1) as beside:
        codes = beside.map(_run_beside, others)
        print(f"== {' '.join(last)}", flush=True)
        code = subprocess.run([sys.executable, "-m", *last], cwd=paths.ROOT, check=False).returncode
        return next(filter(None, [code, *codes]), 0)


def _run_beside(command: list[str]) -> int:
    """Print how a command ended, and what it said, in one piece."""
    started = time.monotonic()
    run = ["nice", "-n", "19", sys.executable, "-m", *command]  # tests wait for servers often: that time is for it
    done = subprocess.run(run, cwd=paths.ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    how = f"{'FAILED' if done.returncode else 'ok'} in {time.monotonic() - started:.1f} s"
    print(f"\n== {' '.join(command)}: {how}\n{done.stdout}", end="", flush=True)
    return done.returncode


def main(arguments: list[str]) -> int:
    """Run the checks; see `USAGE`."""
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return 0
    try:
        find_tritonserver()
    except LaunchError as error:
        say(f"error: {error}")
        return EXIT_CANNOT_START
    return run_checks(check_commands(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
