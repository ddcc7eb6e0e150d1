"""`scripts/bench endpoint`: the engine alone, with Triton, and with Triton and gateway, alternating in one run."""

import statistics
from pathlib import Path

from engine.config import ENV_PREFIX, EngineConfig
from engine.models.config import ModelConfig
from engine.placement import choose_placement, num_gpus
from scripts.benchmark.endpoint_side import EndpointSide
from scripts.benchmark.engine_side import EngineSide
from scripts.benchmark.report import Progress, Report
from scripts.benchmark.workload import BATCH, SINGLE, Workload
from scripts.launcher.cluster import Cluster

TTFT_PROBES = 20
SHORT = Workload(num_requests=1, num_shared=0, num_own=16, num_output=1)
KV_CACHE_GIB = 2.0  # of each engine: unless told, the first one on a GPU takes what the second one needs
ENGINE, TRITON, WHOLE = "engine alone", "engine + Triton", "engine + Triton + gateway"


def run(model: Path, num_threads: int, repeats: int, progress: Progress, **options: str) -> Report:
    """Measure each side `repeats` times, and the time to first token with and without the gateway.

    `options` are further ones of both engines; the environment's go before them.
    """
    settings = {"num_threads": num_threads, "kv_cache_gib": KV_CACHE_GIB, **options}
    config = EngineConfig.from_env(model=model, **settings)
    where = choose_placement(config, ModelConfig.from_dir(model).dtype, num_gpus())
    report = Report(
        f"engine alone against the whole path, {model.name}, {where.dtype} on {where.device}, {num_threads} threads, "
        "one instance",
        "model, threads, cache, prompts, greedy, 64 requests at once (128 in, 64 out) and one; idle sides stay loaded",
    )
    task = progress.add_task("endpoint", total=3 * repeats + TTFT_PROBES)
    engine = EngineSide(model, **settings)
    env = {ENV_PREFIX + name.upper(): str(getattr(config, name)) for name in settings}
    try:
        with Cluster(1, model=model, env=env) as cluster:
            path = EndpointSide(cluster.gateway.grpc_url, engine.vocab_size)
            direct = EndpointSide(cluster.instances[0].grpc_url, engine.vocab_size)
            sides = {ENGINE: engine, TRITON: direct, WHOLE: path}
            for number, side in enumerate(sides.values(), 1):
                side.run(SINGLE, seed=-number)
            for round_ in range(repeats):
                for number, (name, side) in enumerate(sides.items()):
                    _add_runs(report, name, side, seed=round_ * len(sides) + number)
                    progress.advance(task)
            for seed in range(TTFT_PROBES):
                report.add("one stream, Triton, TTFT", "ms", 1000 * direct.run(SHORT, 1000 + seed).ttfts[0])
                report.add("one stream, Triton + gateway, TTFT", "ms", 1000 * path.run(SHORT, 2000 + seed).ttfts[0])
                progress.advance(task)
            path.close()
            direct.close()
    finally:
        engine.close()
    report.add(
        "TTFT that the gateway adds at one stream",
        "ms",
        report.median("one stream, Triton + gateway, TTFT") - report.median("one stream, Triton, TTFT"),
    )
    for name in (TRITON, WHOLE):
        report.ratios[f"tokens/s, {name} over {ENGINE}"] = report.median(name) / report.median(ENGINE)
    return report


def _add_runs(report: Report, name: str, side: EngineSide | EndpointSide, seed: int) -> None:
    """Measure 64 requests at once, then one; no seed may come twice at one engine, which knows its prefixes."""
    batch = side.run(BATCH, seed)
    report.add(name, "tokens/s", BATCH.total_output / batch.seconds)
    report.add(f"{name}, TTFT p50", "s", statistics.median(batch.ttfts))
    single = side.run(SINGLE, 5000 + seed)
    report.add(f"{name}, one stream", "ms/token", 1000 * (single.seconds - single.ttfts[0]) / (SINGLE.num_output - 1))
