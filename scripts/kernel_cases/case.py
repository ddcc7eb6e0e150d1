"""One operation on inputs of one shape and type, for any of its implementations.

Knows where implementations lie, what a case moves and computes at least, and what its answer should be. Does not know
shapes, devices' speeds or how anything is shown.

Sizes: "tiny" has odd and prime shapes, for correctness in Triton's interpreter; "cpu" and "gpu" are those of a model's
step, each on the device that it names.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from scripts.kernel_cases.accuracy import assert_close

Kind = Literal["reference", "cpu", "triton"]
Size = Literal["tiny", "cpu", "gpu"]
FILES: dict[Kind, str] = {"reference": "reference", "cpu": "cpu_kernel", "triton": "triton_kernel"}
HALVES = (torch.float16, torch.bfloat16)


@dataclass(slots=True, frozen=True)
class Case:
    """One operation on given inputs.

    Attributes:
        op: the folder under `kernels`.
        function: what its implementations are called, less `_reference`, `_cpu` or `_triton`.
        shape: for people.
        dtype: of inputs and answer, which decides the tolerance.
        make: inputs on a device, the same each time.
        run: an implementation on these inputs; returns a tensor or several, and may change the inputs.
        num_bytes: that any implementation has to read and write.
        num_flops: operations of the matrix units, 0 where there are none worth counting.
        check: raises AssertionError where an answer is not the expected one.
        everywhere: the file of an implementation of torch's operations that serves every device, empty for none.
    """

    op: str
    function: str
    shape: str
    dtype: torch.dtype
    make: Callable[[torch.device], tuple[Any, ...]]
    run: Callable[..., Any]
    num_bytes: float
    num_flops: float = 0.0
    check: Callable[[Any, Any], None] = assert_close
    everywhere: str = ""

    @property
    def name(self) -> str:
        """What distinguishes the case."""
        return f"{self.function}, {self.shape}, {str(self.dtype).removeprefix('torch.')}"

    def implementation(self, kind: Kind) -> Callable[..., Any] | None:
        """Return the implementation of that kind, or None where the operation has none."""
        if self.everywhere and kind != "reference":
            return getattr(
                importlib.import_module(f"kernels.{self.op}.{self.everywhere}"), self._named(self.everywhere)
            )
        try:
            module = importlib.import_module(f"kernels.{self.op}.{FILES[kind]}")
        except ModuleNotFoundError as error:
            if error.name != f"kernels.{self.op}.{FILES[kind]}":
                raise
            return None
        return getattr(module, self._named(kind), None)

    def _named(self, ending: str) -> str:
        return f"{self.function}_{ending}"

    def expected(self, device: torch.device) -> Any:
        """Return the reference's answer to the inputs in fp32."""
        return self.run(self.implementation("reference"), *widened(self.make(device)))

    def verify(self, implementation: Callable[..., Any], device: torch.device) -> None:
        """Run on fresh inputs.

        Raises:
            AssertionError: the answer is not the reference's.
        """
        self.check(self.run(implementation, *self.make(device)), self.expected(device))


def widened(value: Any) -> Any:
    """Return tensors in halves, and those within tuples, in fp32; everything else as it is."""
    if type(value) is tuple:
        return tuple(map(widened, value))
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in HALVES else value


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device, scale: float = 1.0) -> Any:
    """Return normal numbers that depend on the seed only on one kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)
