"""Which implementation of an operation a device gets: chosen when an operation is selected, and logged once.

Knows that CPU kernels lie in `kernels.<op>.cpu_kernel`, Triton-language ones in `kernels.<op>.triton_kernel`, and that
the language may be missing. These modules are imported only here, so that a machine without a GPU needs no compiler for
one, and one with a GPU needs no numba. A package has them as attributes once they are imported: call the functions here
as `choice.cpu_kernel`, do not import them by name.
"""

import importlib
import logging
from functools import cache
from types import ModuleType

logger = logging.getLogger(__name__)


@cache
def cpu_kernel(op: str) -> ModuleType:
    """Import the CPU kernel of `kernels/<op>`."""
    logger.info("%s on cpu: its own kernel", op)
    return importlib.import_module(f"kernels.{op}.cpu_kernel")


@cache
def triton_kernel(op: str) -> ModuleType:
    """Import the Triton-language kernel of `kernels/<op>`.

    Raises:
        ImportError: the language is not installed.
    """
    try:
        language = importlib.import_module("triton")
    except ImportError as error:
        raise ImportError(f"{op} on a CUDA device needs triton: pip install 'scalellm-triton[gpu]'") from error
    logger.info("%s on cuda: Triton kernel, compiled by triton %s", op, language.__version__)
    return importlib.import_module(f"kernels.{op}.triton_kernel")
