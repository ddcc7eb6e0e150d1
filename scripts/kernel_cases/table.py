"""All cases."""

from scripts.kernel_cases import attention, cpu_layers, products, rows, sampling, shared
from scripts.kernel_cases.case import Case, Size


def all_cases(size: Size) -> list[Case]:
    """Return the cases of that size, of every operation."""
    return [
        *rows.cases(size),
        *products.cases(size),
        *attention.cases(size),
        *sampling.cases(size),
        *cpu_layers.cases(size),
        *shared.cases(size),
    ]
