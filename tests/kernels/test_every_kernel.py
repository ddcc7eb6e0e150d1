"""The same cases over every implementation of every operation, against the reference in fp32.

Triton's kernels run in its interpreter; what they do not write stays NaN.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kernels
from kernels.aot import OPS
from scripts.kernel_cases.case import Case, Kind
from scripts.kernel_cases.table import all_cases

CPU = torch.device("cpu")
TINY = all_cases("tiny")
RUNS = [
    pytest.param(case, kind, id=f"{kind}: {case.name}")
    for case in TINY
    for kind in ("cpu", "triton")
    if case.implementation(kind) is not None and (kind == "triton" or case.dtype == torch.float32)
]


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN, or the largest integer
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("case", "kind"), RUNS)
def test_an_implementation_answers_as_the_reference_does(case: Case, kind: Kind) -> None:
    implementation = case.implementation(kind)
    assert implementation is not None
    case.verify(implementation, CPU)


def test_every_operation_with_a_triton_kernel_has_cases_for_every_size() -> None:
    for size in ("tiny", "cpu", "gpu"):
        assert {case.op for case in all_cases(size)} >= set(OPS)


def test_every_operation_has_cases() -> None:
    folders = {path.parent.name for path in Path(kernels.__file__).parent.glob("*/reference.py")}
    assert {case.op for case in TINY} == folders


def test_what_is_not_written_is_noticed() -> None:
    assert torch.empty(3).isnan().all()
