"""As many threads compute as were asked for."""

import subprocess
import sys

import torch

from engine.model_loading import half_of_the_threads

SHOW = """
import numba, torch
from engine.model_runner import set_threads
set_threads(1)
print(torch.get_num_threads(), numba.get_num_threads())
"""


def test_one_thread_is_one_for_torch_and_for_numba() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, timeout=300, check=True)
    assert shown.stdout.split() == ["1", "1"]


def test_half_of_the_threads_load_and_all_compute_afterwards() -> None:
    before = torch.get_num_threads()
    try:
        for count, half in ((1, 1), (2, 1), (5, 2)):
            torch.set_num_threads(count)
            with half_of_the_threads():
                assert torch.get_num_threads() == half
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
