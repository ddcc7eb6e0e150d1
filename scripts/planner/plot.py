"""A plan as a picture, where matplotlib is installed.

Knows matplotlib. Does not know how figures come about.
"""

import importlib
from pathlib import Path
from typing import Any

from scripts.planner.plan import CONCURRENCIES, Plan, best_changes


def plot_plan(plan: Plan, title: str, path: Path) -> None:
    """Draw throughput and the time between tokens of every layout by concurrency, with the changes of the best one.

    Raises:
        ImportError: matplotlib is not installed.
    """
    importlib.import_module("matplotlib").use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, (rates, gaps) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for option in plan.options:
        rates.plot(CONCURRENCIES, [option.tokens_per_s(each) for each in CONCURRENCIES], label=option.name)
        gaps.plot(CONCURRENCIES, [1000 * option.steady(each).itl_s for each in CONCURRENCIES], label=option.name)
    for axes, label in ((rates, "output tokens/s"), (gaps, "ms between tokens")):
        axes.set(xscale="log", yscale="log", xlabel="requests in flight", ylabel=label)
        axes.grid(visible=True, which="both", alpha=0.2)
    for change in best_changes(plan.options)[1:]:
        for axes in (rates, gaps):
            axes.axvline(change.at, color="grey", linestyle=":", linewidth=1)
        rates.annotate(f" {change.after} from {change.at}", (change.at, rates.get_ylim()[0]), rotation=90, fontsize=8)
    gaps.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
