"""The command line of `scripts/plan`.

Knows options and where results go. Does not know how anything is predicted.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from engine.errors import ModelError
from engine.models.config import ModelConfig
from scripts.planner.devices import PUBLISHED, Device, PlanError, find_device
from scripts.planner.kept import BYTES, KV_TYPES, Types, checkpoint_types, rounded_types
from scripts.planner.load import Workload
from scripts.planner.plan import GIB, Plan, Setting, best_changes, make_plan
from scripts.planner.plot import plot_plan
from scripts.planner.tables import METRICS, change_lines, document, layout_table, metric_table, refused_lines

MAX_DEVICES = 1024
WIDTH = 120  # of tables in a file or a pipe

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def plan(
    *,
    model: Annotated[Path, typer.Option(help="Checkpoint folder, or a config.json alone.")],
    device: Annotated[str, typer.Option(help=f"{', '.join(PUBLISHED)}, or a file of `scripts/bench device --json`.")],
    count: Annotated[int, typer.Option(min=1, max=MAX_DEVICES, help="Devices; all are used.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512,
    output: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    weights: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(BYTES)}. Default: the checkpoint's, as the engine keeps it.")
    ] = None,
    kv_cache: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(KV_TYPES)}. Default: bf16, fp32 on CPUs.")
    ] = None,
    kv_cache_gib: Annotated[
        float | None, typer.Option(min=0, help="Cache of each device. Default: 0.9 of its memory, less the weights.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Most sequences in a step.")] = 1024,
    max_num_batched_tokens: Annotated[int, typer.Option(min=2, help="Token budget of a step.")] = 2048,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the plan to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it; needs matplotlib.")] = None,
) -> None:
    """Predict what every layout of a model on a number of devices would do under 1 to 1,024 requests in flight.

    Everything shown is [bold]predicted[/bold] by a roofline with collectives; docs/planning.md says from what, and how
    far off it is where it could be measured. A gateway takes thresholds from the file of --json.
    """
    try:
        rates = find_device(device)
        config = _read_model(model)
        setting = Setting(
            model=config,
            device=rates,
            num_devices=count,
            types=_types(config, rates, weights, kv_cache),
            work=Workload(prompt, output, max_num_seqs, max_num_batched_tokens),
            kv_bytes=None if kv_cache_gib is None else kv_cache_gib * GIB,
        )
        made = make_plan(setting)
    except (PlanError, ModelError) as error:
        raise typer.BadParameter(str(error)) from None
    name = model.name if model.is_dir() else model.parent.name
    title = f"{name} on {count} x {rates.name}, {setting.types.weights} weights, {prompt} tokens in, {output} out"
    _show(made, title)
    if json_path is not None:
        _write(document(made, name), json_path)
    if plot is not None:
        _plot(made, f"predicted: {title}", plot)
    if not made.options:
        raise typer.Exit(1)


def _read_model(path: Path) -> ModelConfig:
    if path.is_file() and path.name != "config.json":
        raise PlanError(f"{path} is neither a folder nor a config.json")
    return ModelConfig.from_dir(path.parent if path.is_file() else path)


def _types(model: ModelConfig, device: Device, weights: str | None, kv_cache: str | None) -> Types:
    kept = kv_cache or ("fp32" if device.default_weights == "fp32" else "bf16")
    for what, name, known in (("weights", weights, tuple(BYTES)), ("keys and values", kept, KV_TYPES)):
        if name is not None and name not in known:
            raise PlanError(f"{what} cannot be of type {name!r}: give one of {', '.join(known)}")
    if weights is None:
        return checkpoint_types(model, device, kept)
    return rounded_types(model, device, kept, weights)


def _show(made: Plan, title: str) -> None:
    device = made.setting.device
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(layout_table(made, title))
    for line in refused_lines(made):
        console.print(line)
    if not made.options:
        return
    for metric in METRICS:
        console.print(metric_table(made.options, metric))
    for line in change_lines(best_changes(made.options)):
        console.print(line)
    console.print(f"predicted, from rates of {device.name}: {device.source}", style="dim")


def _write(content: dict[str, Any], path: Path) -> None:
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--json cannot be written: {error}") from None


def _plot(made: Plan, title: str, path: Path) -> None:
    try:
        plot_plan(made, title, path)
    except ImportError as error:
        raise typer.BadParameter(f"--plot needs matplotlib (pip install -e '.[plot]'): {error}") from error
    except (OSError, ValueError) as error:  # a folder that is not there, an ending that names no kind of picture
        raise typer.BadParameter(f"--plot cannot be written: {error}") from None
