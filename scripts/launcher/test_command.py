"""`scripts/test`: style, types and tests, in this order, all of them even where one fails.

Knows the commands. Does not know what they check. The last line is pytest's own.
"""

import subprocess
import sys
import time

from scripts.launcher import paths
from scripts.launcher.errors import EXIT_CANNOT_START, LaunchError
from scripts.launcher.progress import say
from scripts.launcher.tritonserver import find_tritonserver

FAST = "--fast"
FAST_MARKS = ["-m", "not slow and not e2e and not numeric and not process"]
USAGE = """\
usage: scripts/test [--fast] [PYTEST ARGUMENT...]

Runs ruff check, ruff format --check, pyright and pytest; fails where any of them fails.
  --fast  leave out what is slow, computes models or kernels, or starts servers (under two minutes)
Other arguments go to pytest, for example: scripts/test tests/unit -x"""


def check_commands(arguments: list[str]) -> list[list[str]]:
    """Return the commands to run, pytest last."""
    rest = [argument for argument in arguments if argument != FAST]
    marks = FAST_MARKS if FAST in arguments else []
    return [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["pyright"],
        ["pytest", *marks, *rest],
    ]


def run_checks(commands: list[list[str]]) -> int:
    """Run each command in the project's root and return the exit code of the last that failed, 0 where none did."""
    code = 0
    for command in commands:
        started = time.monotonic()
        print(f"== {' '.join(command)}", flush=True)
        result = subprocess.run([sys.executable, "-m", *command], cwd=paths.ROOT, check=False).returncode
        code = result or code
        if command is not commands[-1]:
            print(f"== {'ok' if result == 0 else 'FAILED'} in {time.monotonic() - started:.1f} s", flush=True)
    return code


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
