"""The command line of `scripts/simulate`.

Knows options, variants to compare, and how figures are shown. Does not know how they are found.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from engine.config import SCHEDULER_POLICIES, EngineConfig
from engine.errors import ModelError
from scripts.simulation.cost_model import CostModel
from scripts.simulation.replay import Replay
from scripts.simulation.trace import TraceRequest, give_tenants, make_trace, read_trace

SEED = 1
DEFAULTS = EngineConfig()
COST = CostModel()
Variant = tuple[str, EngineConfig, bool]

app = typer.Typer(add_completion=False)


@app.command()
def simulate(
    *,
    trace: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV of Azure's layout or Mooncake's JSONL; absent: made up."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many requests.")] = 2000,
    rate: Annotated[float, typer.Option(min=0.001, help="Arrivals come this many times as fast.")] = 1.0,
    policy: Annotated[list[str] | None, typer.Option(help="Policies to compare; by default all.")] = None,
    tenants: Annotated[int, typer.Option(min=1, help="Tenants; the k-th sends in proportion to 1/k.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="max_tokens that clients ask for.")] = 1024,
    num_blocks: Annotated[int, typer.Option(min=1, help="KV-cache blocks.")] = 8192,
    block_size: Annotated[int, typer.Option(min=1)] = DEFAULTS.block_size,
    max_num_seqs: Annotated[list[int] | None, typer.Option(help="Most sequences in a step; several compare.")] = None,
    max_num_batched_tokens: Annotated[
        list[int] | None, typer.Option(help="Token budget of a step; several compare.")
    ] = None,
    fixed_ms: Annotated[float, typer.Option(help="Cost of a step, ms.")] = COST.fixed_ms,
    token_us: Annotated[float, typer.Option(help="Cost of each token computed, us.")] = COST.token_us,
    kv_token_us: Annotated[float, typer.Option(help="Cost of each token of context read, us.")] = COST.kv_token_us,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Replay a trace of arrivals and lengths through the engine's scheduler, and compare policies and budgets.

    Time is simulated: a step costs a fixed time, one for each token computed and one for each token of context read.
    The defaults of these stand for about an 8B model on one data-centre GPU; they are arithmetic, not a measurement.
    """
    try:
        requests = read_trace(trace, limit) if trace else make_trace(limit, 5.0, SEED)
        requests = [replace(request, arrived=request.arrived / rate) for request in requests]
        base = replace(DEFAULTS, num_blocks=num_blocks, block_size=block_size, max_waiting=1 << 20)
        base = replace(base, max_waiting_tokens=1 << 40)
        budgets = [(b, s) for b in max_num_batched_tokens or [512] for s in max_num_seqs or [128]]
        configs = [replace(base, max_num_batched_tokens=b, max_num_seqs=s) for b, s in budgets]
        variants = list(_variants(configs, policy or list(SCHEDULER_POLICIES), tenants))
    except (ValueError, ModelError) as error:
        raise typer.BadParameter(str(error)) from error
    cost = CostModel(fixed_ms, token_us, kv_token_us)
    results = _run(give_tenants(requests, tenants, SEED), variants, cost, max_tokens)
    _show(results, cost, f"{trace.name if trace else 'made-up requests'}, {len(requests)} requests, rate x {rate:g}")
    if json_path is not None:
        document = {"cost": asdict(cost), "results": results}
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _variants(configs: list[EngineConfig], policies: list[str], num_tenants: int) -> Iterator[Variant]:
    """Yield what to compare: a name, settings, and whether the scheduler is told of tenants."""
    for config in configs:
        suffix = f" {config.max_num_batched_tokens}/{config.max_num_seqs}" if len(configs) > 1 else ""
        for policy in policies:
            settings = replace(config, scheduler_policy=policy)
            yield policy + suffix, settings, True
            if num_tenants > 1 and len(configs) == 1:
                yield f"{policy}, tenants as one", settings, False


def _run(
    requests: list[TraceRequest], variants: list[Variant], cost: CostModel, max_tokens: int
) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name, config, knows_tenants in variants:
            task = progress.add_task(name, total=len(requests))
            replay = Replay(requests, config, cost, max_tokens, knows_tenants)
            results[name] = replay.run(partial(_advance, progress, task)).figures()
    return results


def _advance(progress: Progress, task: TaskID, num_arrived: int) -> None:
    progress.update(task, completed=num_arrived)


def _show(results: dict[str, dict[str, float]], cost: CostModel, title: str) -> None:
    caption = (
        f"a step: {cost.fixed_ms:g} ms + {cost.token_us:g} us a token + {cost.kv_token_us:g} us a token of context"
    )
    table = Table(title=title, caption=caption)
    table.add_column("figure")
    for name in results:
        table.add_column(name, justify="right")
    for figure in next(iter(results.values())):
        table.add_row(figure, *(f"{result[figure]:,.4g}" for result in results.values()))
    Console().print(table)
