"""Untyped here: what runs under `triton.jit` is no Python, and its own annotations say that it never returns."""

from typing import Any

def __getattr__(name: str) -> Any: ...
