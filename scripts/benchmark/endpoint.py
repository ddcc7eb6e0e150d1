"""`scripts/bench endpoint`: the engine alone against engine + Triton + gateway, alternating in one run."""

import statistics
from pathlib import Path

from scripts.benchmark.endpoint_side import EndpointSide
from scripts.benchmark.engine_side import EngineSide
from scripts.benchmark.report import Progress, Report
from scripts.benchmark.workload import BATCH, SINGLE, Workload
from scripts.launcher.cluster import Cluster

TTFT_PROBES = 20
SHORT = Workload(num_requests=1, num_shared=0, num_own=16, num_output=1)


def run(model: Path, num_threads: int, repeats: int, progress: Progress) -> Report:
    """Measure both sides `repeats` times each, and the time to first token with and without the gateway."""
    report = Report(
        f"engine alone against the whole path, {model.name}, fp32, {num_threads} threads, one instance",
        "model, threads, prompts, greedy, 64 requests at once (128 in, 64 out); the idle side stays loaded",
    )
    task = progress.add_task("endpoint", total=2 * repeats + TTFT_PROBES)
    engine = EngineSide(model, num_threads)
    try:
        with Cluster(1, model=model, env={"SCALELLM_NUM_THREADS": str(num_threads)}) as cluster:
            path = EndpointSide(cluster.gateway.grpc_url, engine.vocab_size)
            direct = EndpointSide(cluster.instances[0].grpc_url, engine.vocab_size)
            sides = {"engine alone": engine, "engine + Triton + gateway": path}
            for side in (*sides.values(), direct):
                side.run(SINGLE, seed=-1)
            for seed in range(repeats):
                for name, side in sides.items():
                    result = side.run(BATCH, seed)
                    report.add(name, "tokens/s", BATCH.total_output / result.seconds)
                    report.add(f"{name}, TTFT p50", "s", statistics.median(result.ttfts))
                    progress.advance(task)
            for seed in range(TTFT_PROBES):
                report.add("one stream, Triton, TTFT", "ms", 1000 * direct.run(SHORT, 1000 + seed).ttfts[0])
                report.add("one stream, Triton + gateway, TTFT", "ms", 1000 * path.run(SHORT, 2000 + seed).ttfts[0])
                progress.advance(task)
            path.close()
            direct.close()
    finally:
        engine.close()
    report.ratios["tokens/s, whole path over engine alone"] = report.median(
        "engine + Triton + gateway"
    ) / report.median("engine alone")
    report.ratios["TTFT that the gateway adds at one stream, ms"] = report.median(
        "one stream, Triton + gateway, TTFT"
    ) - report.median("one stream, Triton, TTFT")
    return report
