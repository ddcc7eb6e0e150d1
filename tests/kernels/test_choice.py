"""Which kernel a device gets."""

import importlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import choice, rms_norm


def test_a_device_gets_its_own_kernel_or_the_reference_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    choice.cpu_kernel.cache_clear()
    with caplog.at_level(logging.INFO, logger="kernels.choice"):
        chosen = [rms_norm.select(torch.device("cpu")) for _ in range(2)]
    assert chosen == [importlib.import_module("kernels.rms_norm.cpu_kernel").rms_norm_cpu] * 2
    assert caplog.messages == ["rms_norm on cpu: its own kernel"]
    assert rms_norm.select(torch.device("meta")) is rms_norm.rms_norm_reference


def test_a_gpu_without_the_language_is_refused_and_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    choice.triton_kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r"rms_norm on a CUDA device needs triton: pip install"):
        rms_norm.select(torch.device("cuda"))


def test_contracts_and_references_need_no_numba_and_no_triton() -> None:
    ops = sorted(path.parent.name for path in Path(choice.__file__).parent.glob("*/reference.py"))
    imports = "".join(f"import kernels.{op}.reference\n" for op in ops)
    program = f"import sys; sys.modules['numba'] = sys.modules['triton'] = None\n{imports}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
