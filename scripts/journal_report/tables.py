"""Summaries as tables in the terminal, and as a picture where matplotlib is installed.

Knows rich and, if asked, matplotlib. Does not know the journal.
"""

import importlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

from gateway.observe.ledger import HOPS, STAGES
from scripts.journal_report.summary import TOTAL, Group, Row, quantile

NS_PER_MS = 1e6


def overview_table(rows: Sequence[Row]) -> Table:
    """Return requests and tokens by tenant."""
    table = Table("tenant", "requests", "ok", "other ends", "prompt tokens", "completion tokens", title="Requests")
    for tenant in sorted({row.tenant for row in rows}):
        own = [row for row in rows if row.tenant == tenant]
        ends = Counter(row.outcome for row in own if row.outcome != "ok")
        others = ", ".join(f"{count} {name}" for name, count in ends.most_common()) or "-"
        tokens = [str(sum(getattr(row, f"{kind}_tokens") or 0 for row in own)) for kind in ("prompt", "completion")]
        table.add_row(tenant or "-", str(len(own)), str(len(own) - ends.total()), others, *tokens)
    return table


def breakdown_table(group: Group) -> Table:
    """Return where the time of a group's requests went."""
    kind = "streamed" if group.streamed else "in one response"
    title = f"{group.level} in flight, {kind}: {group.count} requests"
    table = Table("from", "to", "mean ms", "p50 ms", "p99 ms", "share", title=title)
    total = sum(group.stages[TOTAL])
    for stage, after in pairwise(STAGES):
        values = group.stages[stage]
        table.add_row(stage, f"{after} ({HOPS[stage]})", *_figures(values), f"{sum(values) / total:.1%}")
    table.add_section()
    table.add_row("gateway_in", "gateway_out", *_figures(group.stages[TOTAL]), "100.0%")
    if group.ttft:
        table.add_row("gateway_in", "first answer", *_figures(group.ttft), "")
    return table


def plot_breakdown(groups: Sequence[Group], path: Path) -> None:
    """Draw the mean of each stage, one bar a group.

    Raises:
        ImportError: matplotlib is not installed.
    """
    importlib.import_module("matplotlib").use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    names = [f"{group.level} in flight\n{'streamed' if group.streamed else 'one response'}" for group in groups]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.8 * len(groups)), layout="constrained")
    left = [0.0] * len(groups)
    for stage in STAGES[:-1]:
        widths = [sum(group.stages[stage]) / group.count / NS_PER_MS for group in groups]
        axes.barh(names, widths, left=left, label=HOPS[stage])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel("mean ms a request")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
    pyplot.close(figure)


def _figures(values: Sequence[int]) -> list[str]:
    figures = (sum(values) / len(values), quantile(values, 0.5), quantile(values, 0.99))
    return [f"{figure / NS_PER_MS:.3f}" for figure in figures]
