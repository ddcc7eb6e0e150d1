"""Benchmarks: each compares two sides in one run, alternating, and reports median, spread and ratio."""
