"""The command line of `scripts/bench`.

Knows options and where results go. Does not know how anything is measured.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from scripts.benchmark.report import Report
from scripts.launcher import paths

RANDOM_MODEL = paths.STATE_DIR / "models" / "random-llama-135m"

IN_FLIGHT = (1, 4, 16, 32)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure kernels, engine, gateway and the path through all.",
)

JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]
RepeatsOption = Annotated[int, typer.Option(min=1, help="Runs of each side.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Compute threads of the engine; 0 is one for each core.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
ModelOption = Annotated[
    Path | None,
    typer.Option(help="Model folder; by default a Llama of 135M random parameters, made when it is missing."),
]


def _model(path: Path | None) -> Path:
    return random_model() if path is None else path


def random_model() -> Path:
    """Return the folder of a Llama of 135M random parameters, made when it is missing."""
    if not (RANDOM_MODEL / "config.json").is_file():
        from scripts.make_random_model import Shape, write_model

        write_model(RANDOM_MODEL, Shape())
    return RANDOM_MODEL


def _threads(number: int) -> int:
    return number or len(os.sched_getaffinity(0))


def _progress() -> Progress:
    return Progress(console=Console(stderr=True), transient=True)


def _finish(report: Report, json_path: Path | None) -> None:
    report.show()
    if json_path is not None:
        report.save(json_path)


@app.command()
def engine(
    *,
    model: ModelOption = None,
    threads: ThreadsOption = 0,
    repeats: RepeatsOption = 3,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: Annotated[str, typer.Option(help="As of scripts/serve; nothing by default.")] = "",
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, int8 or fp8.")] = "auto",
    json: JsonOption = None,
) -> None:
    """Measure the engine alone: 64 requests at once, one at a time, and 64 with a shared prefix."""
    from scripts.benchmark.engine import run

    with _progress() as progress:
        report = run(
            _model(model),
            _threads(threads),
            repeats,
            progress,
            device=device,
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
        )
    _finish(report, json)


@app.command()
def shapes(
    *,
    shape: Annotated[str, typer.Option(help="llama-3-8b, mixtral-8x7b or tiny.")] = "llama-3-8b",
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="Type of the random weights on a GPU.")] = "bfloat16",
    peer: Annotated[bool, typer.Option(help="Also measure transformers' continuous batching.")] = True,
    json: JsonOption = None,
) -> None:
    """Measure steps of a known model shape against the device's ceilings, and 64 requests beside transformers."""
    from scripts.benchmark.shapes import Sizes, run

    with _progress() as progress, TemporaryDirectory() as folder:
        where = Path(folder)
        report = run(shape, where, progress, device=device, dtype=dtype, sizes=Sizes(), with_peer=peer)
    _finish(report, json)


@app.command()
def sampler(threads: ThreadsOption = 0, repeats: RepeatsOption = 3, json: JsonOption = None) -> None:
    """Measure what choosing the tokens of one step costs at 64 sequences."""
    from scripts.benchmark.sampler import run

    with _progress() as progress:
        report = run(_threads(threads), repeats, progress)
    _finish(report, json)


@app.command()
def kernels(
    threads: ThreadsOption = 0,
    only: Annotated[list[str] | None, typer.Option(help="Measure this operation; can be given again.")] = None,
    json: JsonOption = None,
) -> None:
    """Check every kernel, then compare the right ones with torch and with what the device does at best."""
    from scripts.benchmark.kernels import run, save, show

    with _progress() as progress:
        ceilings, results = run(_threads(threads), only or (), progress)
    show(ceilings, results)
    if json is not None:
        save(json, ceilings, results)
    if not all(result.is_correct for result in results):
        raise typer.Exit(1)


@app.command()
def tune(
    seconds: Annotated[float, typer.Option(help="When to stop beginning new measurements.")] = 540.0,
    folder: Annotated[
        Path | None, typer.Option(help="Where the result is kept; by default where engines look.")
    ] = None,
) -> None:
    """Measure on this machine's GPU which configurations of kernels are the fastest, and keep that for engines."""
    from scripts.benchmark.tuning import run

    raise typer.Exit(run(seconds, folder))


@app.command()
def speculation(
    model: Annotated[Path, typer.Option(help="Model folder.")] = paths.DEFAULT_MODEL,
    draft: Annotated[
        str | None, typer.Option(help="Folder of a draft model, or how many of the model's own first layers draft.")
    ] = None,
    threads: ThreadsOption = 0,
    repeats: RepeatsOption = 3,
    json: JsonOption = None,
) -> None:
    """Measure one stream with and without draft tokens looked up in its text, or said by a draft model."""
    from scripts.benchmark.speculation import run

    with _progress() as progress:
        report = run(model, draft, _threads(threads), repeats, progress)
    _finish(report, json)


@app.command()
def endpoint(
    *,
    model: ModelOption = None,
    threads: ThreadsOption = 0,
    repeats: RepeatsOption = 3,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
) -> None:
    """Compare engine + Triton + gateway, and engine + Triton, with the engine alone at 64 streams and at one."""
    from scripts.benchmark.endpoint import run

    with _progress() as progress:
        report = run(_model(model), _threads(threads), repeats, progress, device=device, dtype=dtype)
    _finish(report, json)


@app.command()
def gateway(
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of each run.")] = 3.0,
    repeats: RepeatsOption = 3,
    only: Annotated[list[str] | None, typer.Option(help="Measure this proxy; can be given again.")] = None,
    json: JsonOption = None,
) -> None:
    """Compare the gateway with nginx, HAProxy, Envoy and a grpc.aio proxy on the same load."""
    from scripts.benchmark.gateway import run

    with _progress() as progress:
        report = run(seconds, repeats, progress, tuple(only or ()))
    _finish(report, json)


@app.command()
def sse(
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of each run.")] = 3.0,
    repeats: RepeatsOption = 3,
    beside: Annotated[list[Path] | None, typer.Option(help="Another checkout to measure; can be given again.")] = None,
    json: JsonOption = None,
) -> None:
    """Measure what OpenAI's completions cost in the gateway."""
    from scripts.benchmark.sse import run

    with _progress() as progress:
        report = run(seconds, repeats, progress, tuple(beside or ()))
    _finish(report, json)


@app.command()
def device(threads: ThreadsOption = 0, repeats: RepeatsOption = 3, json: JsonOption = None) -> None:
    """Measure this machine's rates, for `scripts/plan --device FILE`."""
    import json as json_module

    from scripts.benchmark.device import measure
    from scripts.benchmark.report import machine
    from scripts.planner.devices import device_fields

    with _progress() as progress:
        fields = device_fields(measure(_threads(threads), repeats, progress))
    text = json_module.dumps({"device": fields, "machine": machine()}, indent=1)
    typer.echo(text)
    if json is not None:
        json.write_text(text + "\n", encoding="utf-8")


@app.command()
def plan(
    *,
    rates: Annotated[Path, typer.Option("--device", help="File of `scripts/bench device --json`.", exists=True)],
    model: ModelOption = None,
    threads: ThreadsOption = 0,
    in_flight: Annotated[list[int] | None, typer.Option(min=1, help="Requests at once; can be given again.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 64,
    output: Annotated[int, typer.Option(min=2, help="Tokens of an answer, on average.")] = 32,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks.")] = 1,
    ep: Annotated[int, typer.Option(min=1, help="Expert-parallel groups.")] = 1,
    repeats: RepeatsOption = 3,
    json: JsonOption = None,
) -> None:
    """Measure the engine under a steady number of requests beside what `scripts/plan` predicts of it."""
    from engine.config import EngineConfig
    from scripts.benchmark.plan import run
    from scripts.planner.devices import read_device

    config = EngineConfig.from_env(
        model=_model(model), num_threads=_threads(threads), tensor_parallel=tp, expert_parallel=ep
    )
    with _progress() as progress:
        report = run(
            config,
            read_device(rates),
            (prompt, output),
            in_flight or IN_FLIGHT,
            repeats=repeats,
            progress=progress,
        )
    _finish(report, json)
