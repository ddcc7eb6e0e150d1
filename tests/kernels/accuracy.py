"""Comparing with the truth: the tolerances are those that `scripts/gpu_check` keeps as well."""

from scripts.kernel_cases.accuracy import TOLERANCE, assert_close

__all__ = ["TOLERANCE", "assert_close"]
