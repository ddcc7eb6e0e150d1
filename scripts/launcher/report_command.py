"""`scripts/report`: what a gateway's journal says.

Knows options. Does not know how the journal is read or shown.
"""

import sqlite3
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scripts.journal_report.summary import group_rows, read_rows
from scripts.journal_report.tables import breakdown_table, overview_table, plot_breakdown

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def report(
    journal: Annotated[Path, typer.Argument(help="The gateway's journal (observe.journal.path).", exists=True)],
    last: Annotated[float | None, typer.Option(help="Only requests of the last so many seconds.", min=0)] = None,
    tenant: Annotated[str | None, typer.Option(help="Only requests of this tenant.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the breakdown; needs matplotlib.")] = None,
) -> None:
    """Show requests by tenant, and where their time went, by concurrency, streamed and not."""
    since = 0 if last is None else time.time_ns() - round(1e9 * last)
    try:
        rows = read_rows(journal, since, tenant)
    except sqlite3.Error as error:
        raise typer.BadParameter(f"{journal} is no journal: {error}") from error
    groups = group_rows(rows)
    console = Console()
    console.print(overview_table(rows))
    for group in groups:
        console.print(breakdown_table(group))
    if not groups:
        console.print("No request has a whole ledger: set observe.sample above 0 in the gateway's configuration.")
    elif plot is not None:
        try:
            plot_breakdown(groups, plot)
        except ImportError as error:
            raise typer.BadParameter(f"--plot needs matplotlib: {error}") from error
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"--plot {plot} cannot be written: {error}") from error


if __name__ == "__main__":
    app(prog_name="scripts/report")
