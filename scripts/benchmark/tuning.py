"""`scripts/bench tune`: the fastest configurations of this machine's GPU, kept for engines that start on it.

Knows where engines look for the result. Does not know how it is measured (`scripts.kernel_cases.tune`).
"""

import sys
import time
from pathlib import Path

import torch

from engine.config import EngineConfig
from kernels import tuning
from scripts.kernel_cases.ceilings import make_timer
from scripts.kernel_cases.gpu_check import why_not
from scripts.kernel_cases.survey import Survey
from scripts.kernel_cases.table import all_cases
from scripts.kernel_cases.tune import chosen_of, tune

SECONDS_EACH = 0.1


def run(seconds: float, folder: Path | None) -> int:
    """Measure, print a line for each class, and write the file; return what the command ends with."""
    reason = why_not()
    if reason:
        print(f"tune: {reason}", file=sys.stderr)
        return 2
    device, deadline = torch.device("cuda"), time.monotonic() + seconds
    survey = Survey(device, "triton", make_timer(device), lambda: time.monotonic() < deadline, SECONDS_EACH)
    findings = []
    for finding in tune(survey, all_cases("gpu")):
        findings.append(finding)
        print(finding, flush=True)
    where = folder or EngineConfig.from_env().kernel_tuning.expanduser()
    print(tuning.save(where, torch.cuda.get_device_name(device), chosen_of(findings)))
    return 0
