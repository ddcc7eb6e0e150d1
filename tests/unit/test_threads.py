"""As many threads compute as were asked for."""

import subprocess
import sys

SHOW = """
import numba, torch
from engine.model_runner import set_threads
set_threads(1)
print(torch.get_num_threads(), numba.get_num_threads())
"""


def test_one_thread_is_one_for_torch_and_for_numba() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, timeout=300, check=True)
    assert shown.stdout.split() == ["1", "1"]
