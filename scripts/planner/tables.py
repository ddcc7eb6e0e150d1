"""A plan as tables in the terminal and as a document.

Knows rich and JSON's types. Does not know how figures come about.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.table import Table

from scripts.planner.devices import device_fields
from scripts.planner.plan import CONCURRENCIES, GIB, Change, Option, Plan, best_changes, thresholds

SHOWN = tuple(2**power for power in range(11))
METRICS = ("tokens/s", "TTFT, ms", "ITL, ms")


def layout_table(plan: Plan, title: str) -> Table:
    """Return what each layout that can be holds."""
    table = Table("layout", "weights, GiB a device", "tokens cached", "largest batch", title=title)
    for option in plan.options:
        replicas = option.layout.replicas
        sizes = (f"{replicas * option.kv_tokens:,}", f"{replicas * option.largest_batch:,}")
        table.add_row(option.name, f"{option.step.weight_bytes / GIB:.1f}", *sizes)
    return table


def refused_lines(plan: Plan) -> list[str]:
    """Return why each of the other layouts cannot be."""
    return [f"{layout.name} cannot be: {reason}" for layout, reason in plan.refused]


def metric_table(options: Sequence[Option], metric: str) -> Table:
    """Return one figure of every layout by requests in flight; that of the layout of most tokens/s is bold."""
    best = [max(options, key=lambda option, at=at: option.tokens_per_s(at)) for at in SHOWN]
    table = Table("layout", title=f"{metric}, by requests in flight", box=box.SIMPLE)
    for concurrency in SHOWN:
        table.add_column(str(concurrency), justify="right", no_wrap=True)
    for option in options:
        cells = [_figure(option, concurrency, metric) for concurrency in SHOWN]
        marked = [f"[bold]{cell}[/bold]" if first is option else cell for cell, first in zip(cells, best, strict=True)]
        table.add_row(option.name, *marked)
    return table


def change_lines(changes: Sequence[Change]) -> list[str]:
    """Return where the best layout changes, in words."""
    return [f"{change.after} makes most tokens/s from {change.at} in flight on" for change in changes]


def document(plan: Plan, model: str) -> dict[str, Any]:
    """Return the plan as JSON's types; `thresholds` is what a gateway reads."""
    setting = plan.setting
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": "predicted",
        "model": model,
        "num_devices": setting.num_devices,
        "device": device_fields(setting.device),
        "types": asdict(setting.types),
        "workload": asdict(setting.work),
        "layouts": [_layout(option) for option in plan.options],
        "refused": [{"layout": layout.name, "reason": reason} for layout, reason in plan.refused],
        "best": [{"from": change.at, "layout": change.after} for change in best_changes(plan.options)],
        "thresholds": [
            {"low": change.before, "high": change.after, "in_flight": change.at} for change in thresholds(plan.options)
        ],
    }


def _layout(option: Option) -> dict[str, Any]:
    layout = option.layout
    return {
        "name": option.name,
        "replicas": layout.replicas,
        "tp": layout.tp,
        "ep": layout.ep,
        "weight_bytes": round(option.step.weight_bytes),
        "kv_tokens": layout.replicas * option.kv_tokens,
        "largest_batch": layout.replicas * option.largest_batch,
        "rows": [_row(option, concurrency) for concurrency in CONCURRENCIES],
    }


def _row(option: Option, concurrency: int) -> dict[str, float]:
    seen = option.steady(concurrency)
    return {
        "in_flight": concurrency,
        "tokens_per_s": round(option.tokens_per_s(concurrency), 2),
        "ttft_s": round(seen.ttft_s, 6),
        "itl_s": round(seen.itl_s, 6),
        "e2e_s": round(seen.e2e_s, 6),
        "wait_s": round(seen.wait_s, 6),
        "batch": round(seen.batch, 2),
    }


def _figure(option: Option, concurrency: int, metric: str) -> str:
    if metric == METRICS[0]:
        return f"{option.tokens_per_s(concurrency):,.0f}"
    seen = option.steady(concurrency)
    return f"{1000 * (seen.ttft_s if metric == METRICS[1] else seen.itl_s):,.1f}"
