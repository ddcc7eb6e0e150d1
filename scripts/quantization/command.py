"""The command line of `scripts/quantize_checkpoint`.

Knows options and the order of the work. Does not know how any of it is done.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from engine.errors import EngineError
from scripts.quantization.calibration import SEQUENCE_TOKENS, cut, own_text
from scripts.quantization.compressed import FORMATS
from scripts.quantization.report import Report, compare, measure, open_engine, pieces_of
from scripts.quantization.writer import ModelRounder, write_checkpoint

PASSAGE = Path(__file__).with_name("passage.txt")  # the opening of The Wind in the Willows, 1908
REPORT_FILE = "quantization_report.json"

app = typer.Typer(add_completion=False)


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="Folder of a plain Hugging Face checkpoint.", exists=True)],
    out: Annotated[Path, typer.Argument(help="Folder to write to; must not exist.")],
    *,
    scheme: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "int4",
    group: Annotated[int, typer.Option(min=8, help="int4: most inputs that share a scale.")] = 32,
    calibration: Annotated[
        Path | None, typer.Option(help="Text to calibrate int4 on; by default text that the model writes.", exists=True)
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Text to measure on; by default a page of English prose.", exists=True)
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences of 256 tokens to calibrate on.")] = 16,
    threads: Annotated[int, typer.Option(min=0, help="Compute threads; 0 is one for each core.")] = 0,
) -> None:
    """Write a quantized checkpoint in compressed-tensors' format, and report what it costs.

    The report, on the terminal and in quantization_report.json: size, perplexity on held-out text, and for how long
    greedy text stays that of the original.
    """
    if scheme not in FORMATS:
        raise typer.BadParameter(f"scheme must be one of {', '.join(FORMATS)}, got {scheme!r}")
    if out.exists():
        raise typer.BadParameter(f"{out} exists already")
    text = (held_out or PASSAGE).read_text("utf-8")
    learned = None if calibration is None else calibration.read_text("utf-8")
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            report = run(
                model,
                out,
                scheme=scheme,
                group=group,
                calibration=learned,
                held_out=text,
                num_sequences=sequences,
                num_threads=threads,
                progress=progress,
            )
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    Console().print(report.table())


def run(
    model: Path,
    out: Path,
    *,
    scheme: str,
    group: int,
    calibration: str | None,
    held_out: str,
    num_sequences: int,
    num_threads: int,
    progress: Progress,
) -> Report:
    """Calibrate, round, write and measure.

    Raises:
        EngineError: the checkpoint cannot be quantized.
    """
    form = FORMATS[scheme]
    rounder = ModelRounder(model, form, group)
    task = progress.add_task("reading", total=rounder.config.num_layers + 2)
    core = open_engine(model, num_threads)
    pieces = pieces_of(core, held_out)
    before = measure(core, model, pieces)
    if calibration is None:
        sequences = own_text(core, num_sequences)
    else:
        length = min(SEQUENCE_TOKENS, core.info.max_model_len)
        sequences = cut(core.tokenizer.encode(calibration), length, num_sequences)
    del core
    progress.update(task, advance=1, description="rounding")
    rounded = rounder.round(sequences, lambda: progress.advance(task))
    write_checkpoint(model, out, rounded, form.config(rounded.groups, rounded.plain))
    del rounder, rounded
    progress.update(task, description="measuring")
    report = compare(before, measure(open_engine(out, num_threads), out, pieces), sum(map(len, pieces)))
    (out / REPORT_FILE).write_text(json.dumps(report.as_dict(), indent=2) + "\n", "utf-8")
    progress.advance(task)
    return report
