"""`scripts/simulate_routing`: the time to first token under each policy, as a table.

Knows options and how the table looks. Does not know how a policy chooses.
"""

from pathlib import Path
from typing import Annotated

import typer

from gateway.routing.policy import PolicyName
from scripts.routing_simulation.arrivals import at_rate, heavy_tailed, read_trace
from scripts.routing_simulation.replay import Replay, quantile

HEAD = "| policy | TTFT p50 ms | TTFT p99 ms | mean ms |\n|---|---|---|---|"
WITHOUT_SESSIONS = [name for name in PolicyName if name is not PolicyName.SESSION]


def main(
    trace: Annotated[Path | None, typer.Option(help="Azure .csv or Mooncake .jsonl; none: made up")] = None,
    requests: Annotated[int, typer.Option(min=1, help="how many")] = 5000,
    rate: Annotated[float | None, typer.Option(help="requests a second; a trace keeps its own without")] = None,
    instances: Annotated[int, typer.Option(min=1, help="modelled instances")] = 4,
    seed: Annotated[int, typer.Option(help="of made-up arrivals and of ties")] = 0,
) -> None:
    """Replay arrivals through every policy that needs no sessions and print a table."""
    try:
        arrivals = heavy_tailed(requests, rate or 40.0, seed) if trace is None else read_trace(trace, requests)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if trace is not None and rate is not None:
        arrivals = at_rate(arrivals, rate)
    typer.echo(HEAD)
    for policy in WITHOUT_SESSIONS:
        seconds = Replay(policy, instances, seed).run(arrivals)
        figures = (quantile(seconds, 0.5), quantile(seconds, 0.99), sum(seconds) / len(seconds))
        typer.echo(f"| {policy.value} | " + " | ".join(f"{1000 * value:.0f}" for value in figures) + " |")


if __name__ == "__main__":
    typer.run(main)
