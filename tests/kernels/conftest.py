"""Triton's interpreter, mended where its bf16 is wrong: it keeps bf16 as 16-bit integers and computes with these."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@pytest.fixture(autouse=True, scope="session")
def _mended_interpreter() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        multiply, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
        combine = InterpreterBuilder.binary_op

        def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
            return multiply(self, _widen(self, a), _widen(self, b), *rest)

        def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
            if dst_type.scalar == tl.bfloat16 and src.dtype.scalar != tl.float32:
                src = TensorHandle(src.data.astype(np.float32), tl.float32)
            return cast(self, src, dst_type)

        def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
            if lhs.dtype.scalar != tl.bfloat16:
                return combine(self, lhs, rhs, op)
            wide = combine(self, _widen(self, lhs), _widen(self, rhs), op)
            return self.cast_impl(TensorHandle(wide.data, tl.float32), tl.bfloat16)

        patch.setattr(InterpreterBuilder, "binary_op", binary_op)
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        patch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
        with np.errstate(all="ignore"):  # infinities are ordinary numbers in kernels
            yield


def _widen(builder: Any, operand: Any) -> Any:
    return builder.cast_impl(operand, tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand
