"""Results as a table for people, and as JSON.

Knows results and numbers. Does not know devices or how anything was measured. Needs nothing but the standard library.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scripts.kernel_cases.ceilings import Ceilings
from scripts.kernel_cases.survey import Result

HEADER = ("case", "check", "us", "rate", "of the floor", "times the reference's speed")


def row(result: Result) -> tuple[str, ...]:
    """Return the cells of a result."""
    verdict = f"{result.verdict}: {result.problem}" if result.problem else result.verdict
    if result.seconds is None or result.rate is None:
        return result.name, verdict, "", "", "", ""
    scale, unit = (1e9, "GB/s") if result.unit == "byte/s" else (1e12, "TFLOP/s")
    return (
        result.name,
        verdict,
        f"{result.seconds * 1e6:,.1f}",
        f"{result.rate / scale:,.3g} {unit}",
        f"{result.share:.0%}" if result.share is not None else "",
        f"{result.speed_up:.3g}" if result.speed_up is not None else "",
    )


def facts_of(ceilings: Ceilings) -> str:
    """Say what the device does at best."""
    gigabytes, teraflops = ceilings.bytes_per_second / 1e9, ceilings.flops_per_second / 1e12
    return (
        f"Measured in the same run: a copy moves {gigabytes:,.3g} GB/s, a matrix product does {teraflops:,.3g} TFLOP/s."
    )


def markdown(title: str, facts: dict[str, str], ceilings: Ceilings, results: Sequence[Result]) -> str:
    """Return a section of `docs/performance.md`."""
    wrong = [result.name for result in results if not result.is_correct]
    lines = [
        f"## {title}",
        ", ".join(f"{name}: {value}" for name, value in facts.items()) + ".",
        facts_of(ceilings),
        f"{len(results) - len(wrong)} of {len(results)} cases are right."
        + (f" Not: {'; '.join(wrong)}." if wrong else ""),
        "",
        _line(HEADER),
        _line(("---",) * len(HEADER)),
        *(_line(row(result)) for result in results),
    ]
    return "\n".join(lines) + "\n"


def document(ceilings: Ceilings, results: Sequence[Result]) -> dict[str, Any]:
    """Return everything as JSON has it."""
    rows = [asdict(result) | {"share": result.share, "speed_up": result.speed_up} for result in results]
    return {"ceilings": asdict(ceilings), "results": rows}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
