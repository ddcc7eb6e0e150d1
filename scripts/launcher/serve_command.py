"""`scripts/serve`: from a model folder to streaming text.

Knows the options and the order of what a person sees. Does not know how processes are started or watched.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from scripts.launcher import checks, paths
from scripts.launcher.client import CompletionError, LlmClient, Sampling, text_inputs
from scripts.launcher.cluster import PROBE_PROMPT, READY_SECONDS, Cluster
from scripts.launcher.errors import EXIT_CANNOT_START, LaunchError
from scripts.launcher.fleet import Fleet, read_fleet
from scripts.launcher.gateway import GatewayOptions
from scripts.launcher.libpython import find_library_folder
from scripts.launcher.options import MaxTokens, Seed, Temperature, TopK, TopP, chosen_model
from scripts.launcher.ports import free_ports
from scripts.launcher.progress import say, step
from scripts.launcher.screen import show_endpoints
from scripts.launcher.signals import StopRequested, call_on_signals, raise_on_signals
from scripts.launcher.supervisor import CHECK_SECONDS, Supervisor
from scripts.launcher.tritonserver import find_tritonserver

GRPC_PORT = 8001
HTTP_PORT = 8080
DEFAULT_REPLICAS = 2
WELCOME_TOKENS = 48

Model = Annotated[
    Path | None, typer.Option(help="Hugging Face checkpoint folder. Default: $SCALELLM_MODEL, else demo_model/.")
]
Replicas = Annotated[
    int | None,
    typer.Option("--replicas", "--instances", min=1, help="Tritonservers. Default: 2, and 1 with --prompt."),
]
Tp = Annotated[int, typer.Option(min=1, help="Ranks (processes) that split each tensor of a replica's model.")]
Ep = Annotated[int, typer.Option(min=1, help="Groups of such ranks that share out a replica's experts.")]
Device = Annotated[
    str | None,
    typer.Option(help="What computes: cpu, cuda or cuda:N. Default: a GPU where there is one, else the CPU."),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16. Default: the checkpoint's on a GPU, float32 on the CPU."),
]
Quantization = Annotated[
    str | None,
    typer.Option(help="Round weights as they are loaded: int8, int8_dynamic, fp8[:tensor|channel|block], int4[:N]."),
]
KvCacheDtype = Annotated[str | None, typer.Option(help="Keep keys and values in int8 or fp8. Default: as computed.")]
Pools = Annotated[
    Path | None, typer.Option(help="YAML of several pools and how to route among them (docs/protocol.md).")
]
Host = Annotated[str, typer.Option(help="Address the gateway listens on.")]
GrpcPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Gateway's KServe gRPC port. Default: 8001.")]
HttpPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Gateway's HTTP port. Default: 8080.")]
Server = Annotated[
    Path | None,
    typer.Option(help="tritonserver binary. Default: PATH, /opt/tritonserver, else one fetched into .serve/."),
]
Prompt = Annotated[
    str | None, typer.Option(help="Serve this one prompt through the whole path, print the text on stdout, and end.")
]
DrainTimeout = Annotated[float, typer.Option(min=0, help="Seconds that open requests get to finish at the end.")]
StartTimeout = Annotated[float, typer.Option(min=1, help="Seconds until a start counts as failed.")]

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def serve(
    *,
    model: Model = None,
    replicas: Replicas = None,
    tp: Tp = 1,
    ep: Ep = 1,
    device: Device = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    kv_cache_dtype: KvCacheDtype = None,
    pools: Pools = None,
    host: Host = "127.0.0.1",
    grpc_port: GrpcPort = None,
    http_port: HttpPort = None,
    tritonserver: Server = None,
    prompt: Prompt = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    drain_timeout: DrainTimeout = 10.0,
    start_timeout: StartTimeout = READY_SECONDS,
) -> None:
    """Serve a language model on Triton Inference Server, behind a gateway that routes to the shortest queue.

    Without options: the small model of this repository, two tritonservers, gRPC on 127.0.0.1:8001. Ctrl-C lets open
    requests finish and stops everything; a second Ctrl-C cuts them. What dies is started again. Logs: .serve/logs.
    """
    raise_on_signals()
    try:
        folder = chosen_model(model)
        default = 1 if prompt is not None else DEFAULT_REPLICAS
        given = {"device": device, "dtype": dtype, "quantization": quantization, "kv_cache_dtype": kv_cache_dtype}
        options = {name: value for name, value in given.items() if value is not None}
        if pools is not None:
            _check_alone(pools, is_alone=(replicas, tp, ep, options) == (None, 1, 1, {}))
        fleet = Fleet.of(replicas or default, tp, ep, options) if pools is None else read_fleet(pools)
        listen = _listen(host, grpc_port, http_port, any_port=prompt is not None)
        _check(folder, fleet, listen)
        cluster = Cluster(
            fleet,
            model=folder,
            server=find_tritonserver(tritonserver),
            gateway=listen,
            log_dir=paths.LOG_DIR / ("prompt" if prompt is not None else str(listen.grpc_port)),
            ready_timeout=start_timeout,
            drain_timeout=drain_timeout,
        )
        sampling = Sampling(max_tokens, temperature, top_p, top_k, seed)
        _run(cluster, prompt, sampling)
    except LaunchError as error:
        say(f"error: {error}")
        raise typer.Exit(EXIT_CANNOT_START) from None
    except CompletionError as error:
        say(f"error: the server refused or broke the completion: {error}")
        raise typer.Exit(1) from None
    except StopRequested:
        raise typer.Exit(130 if prompt is not None else 0) from None


def _check_alone(pools: Path, *, is_alone: bool) -> None:
    if not is_alone:
        raise LaunchError(
            "--pools comes with --replicas, --tp, --ep or another option of the engine",
            f"write them into {pools}, or leave --pools out",
        )


def _listen(host: str, grpc_port: int | None, http_port: int | None, *, any_port: bool) -> GatewayOptions:
    spare_grpc, spare_http = free_ports(2) if any_port else (GRPC_PORT, HTTP_PORT)
    return GatewayOptions(host, grpc_port or spare_grpc, http_port or spare_http)


def _check(model: Path, fleet: Fleet, listen: GatewayOptions) -> None:
    """Check the machine, cheapest first."""
    checks.check_model(model)
    find_library_folder()
    checks.check_port(listen.host, listen.grpc_port, "--grpc-port")
    checks.check_port(listen.host, listen.http_port, "--http-port")
    checks.check_shared_memory(fleet.num_instances)
    checks.check_threads(fleet, len(os.sched_getaffinity(0)))
    checks.check_memory(model, fleet)
    checks.check_rank_addresses(model, fleet)


def _run(cluster: Cluster, prompt: str | None, sampling: Sampling) -> None:
    started = time.monotonic()
    try:
        with step(
            f"starting {len(cluster.instances)} tritonserver(s) and the gateway (logs: {cluster.gateway.log.parent})"
        ):
            cluster.start()
            cluster.wait_ready()
        if prompt is not None:
            _print_completion(cluster.gateway.grpc_url, prompt, sampling)
        else:
            _serve_until_stopped(cluster, sampling, started)
    finally:
        _stop(cluster)


def _print_completion(url: str, prompt: str, sampling: Sampling) -> None:
    with LlmClient(url) as client:
        for chunk in client.stream(text_inputs(prompt, sampling)):
            print(chunk.text, end="", flush=True)
    if sys.stdout.isatty():
        print()


def _serve_until_stopped(cluster: Cluster, sampling: Sampling, started: float) -> None:
    show_endpoints(cluster)
    say(f"{PROBE_PROMPT} ...")
    try:
        _print_completion(cluster.gateway.grpc_url, PROBE_PROMPT, _short(sampling))
    except CompletionError as error:
        say(f"the first completion failed: {error}")
    say(f"\nserving, {time.monotonic() - started:.1f} s after the start; Ctrl-C stops everything")
    supervisor = Supervisor(cluster, say)
    while True:
        time.sleep(CHECK_SECONDS)
        supervisor.check()


def _short(sampling: Sampling) -> Sampling:
    return sampling if sampling.max_tokens else replace(sampling, max_tokens=WELCOME_TOKENS)


def _stop(cluster: Cluster) -> None:
    """Stop everything; another Ctrl-C meanwhile cuts the requests that are still open."""
    call_on_signals(cluster.gateway.terminate)
    with step("stopping"):
        cluster.stop()


def main() -> None:
    """Run the command."""
    if paths.MODEL_REPOSITORY.is_dir():
        app(prog_name="scripts/serve")
    else:
        say(f"error: {paths.MODEL_REPOSITORY} is missing. Cure: clone the whole repository")
        sys.exit(EXIT_CANNOT_START)


if __name__ == "__main__":
    main()
