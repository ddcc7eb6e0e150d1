"""Samples of a measurement, their summary, and how it is shown and kept.

Knows numbers, units and the machine's description. Does not know what was measured.
"""

import json
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol


class Progress(Protocol):
    """What is told how far it is: rich's, or lines of text."""

    def add_task(self, description: str, /, *, total: float) -> Any:
        """Begin something of so many parts; return what names it."""
        ...

    def advance(self, task_id: Any, /) -> None:
        """Say that a part is done."""
        ...


@dataclass(slots=True)
class Series:
    """Repeated measurements of one quantity."""

    name: str
    unit: str
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest sample."""
        return min(self.samples), max(self.samples)


@dataclass(slots=True)
class Report:
    """A table of series and ratios between them, with what was held equal."""

    title: str
    held_equal: str
    series: list[Series] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, unit: str, sample: float) -> None:
        """Add one sample to the series of that name, which begins with it."""
        for series in self.series:
            if series.name == name:
                series.samples.append(sample)
                return
        self.series.append(Series(name, unit, [sample]))

    def median(self, name: str) -> float:
        """Return the median of the series of that name."""
        return next(series.median for series in self.series if series.name == name)

    def show(self) -> None:
        """Print the table to the terminal."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self.title, caption=f"held equal: {self.held_equal}")
        for column in ("quantity", "unit", "median", "lowest", "highest", "runs"):
            table.add_column(column, justify="left" if column in {"quantity", "unit"} else "right")
        for series in self.series:
            low, high = series.spread
            row = (f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in (series.median, low, high))
            table.add_row(series.name, series.unit, *row, str(len(series.samples)))
        console = Console()
        console.print(table)
        for name, ratio in self.ratios.items():
            console.print(f"{name}: [bold]{ratio:.3g}[/bold]")

    def markdown(self) -> str:
        """Return a section of `docs/performance.md`, of medians."""
        rows = [f"| {series.name} | {series.median:,.4g} | {series.unit} |" for series in self.series]
        rows += [f"| {name} | {ratio:.3g} | times |" for name, ratio in self.ratios.items()]
        return "\n".join(
            [f"## {self.title}", f"Held equal: {self.held_equal}.", "", "| | | |", "|---|---|---|", *rows, ""]
        )

    def save(self, path: Path) -> None:
        """Write everything as JSON, with the date, the command and the machine."""
        path.write_text(json.dumps(context() | asdict(self), indent=2) + "\n", encoding="utf-8")


def context() -> dict[str, Any]:
    """Say when, by what command and on what machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["scripts/bench", *sys.argv[1:]],
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Describe this machine."""
    import psutil

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
