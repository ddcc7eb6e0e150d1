"""What must be true of the machine before anything is started.

Knows ports, memory, shared memory and what a model folder holds. Does not start or change anything.
Each check returns nothing or raises a LaunchError that names the value and the cure.
"""

import json
import os
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.models.config import ModelConfig
from scripts.launcher.bootstrap import has_gpu
from scripts.launcher.errors import LaunchError
from scripts.launcher.fleet import Fleet, Pool, engine_config
from scripts.launcher.leftovers import SHM
from scripts.launcher.ports import is_free
from scripts.launcher.weights import weights_bytes

MIB = 2**20
GIB = 2**30
SHM_BYTES_EACH = 64 * MIB
SHM_BYTES_SPARE = 32 * MIB
PROCESS_GIB = 0.6
LFS_START = b"version https://git-lfs"


def check_port(host: str, port: int, option: str) -> None:
    """Refuse a port that cannot be listened on, naming the option that changes it."""
    try:
        free = is_free(port, host)
    except OSError as error:
        cure = f"give {option} another port or --host an address of this machine"
        raise LaunchError(f"cannot listen on {host}:{port} ({error.strerror})", cure) from None
    if not free:
        raise LaunchError(f"port {port} on {host} is in use", f"stop what listens there, or give {option} another port")


def check_shared_memory(num_instances: int, folder: Path = SHM) -> None:
    """Refuse a shared memory too small for the instances' python stubs."""
    needed = num_instances * SHM_BYTES_EACH + SHM_BYTES_SPARE
    stats = os.statvfs(folder)
    free = stats.f_bavail * stats.f_frsize
    if free < needed:
        raise LaunchError(
            f"{folder} has {free // MIB} MiB free and {num_instances} instances need {needed // MIB} MiB",
            f"in a container start it with --shm-size=1g; else `mount -o remount,size=1g {folder}`",
        )


def check_model(model: Path) -> None:
    """Refuse a folder that is no Hugging Face checkpoint in safetensors."""
    cure = "give --model a folder with config.json, tokenizer.json and *.safetensors"
    if not model.is_dir():
        raise LaunchError(f"the model folder {model} does not exist", cure)
    if not model_config(model).get("architectures"):
        raise LaunchError(f"{model / 'config.json'} names no architectures", cure)
    if not (model / "tokenizer.json").is_file():
        raise LaunchError(f"{model} has no tokenizer.json", cure)
    files = weight_files(model)
    if not files:
        raise LaunchError(f"{model} has no *.safetensors", cure)
    for file in files:
        _check_weights(file)


def model_config(model: Path) -> dict[str, Any]:
    """Return the folder's config.json."""
    file = model / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LaunchError(f"{model} has no config.json", "give --model a Hugging Face checkpoint folder") from None
    except ValueError as error:
        raise LaunchError(f"{file} is not JSON: {error}", "fetch the checkpoint again") from None
    return content if isinstance(content, dict) else {}


def weight_files(model: Path) -> list[Path]:
    """Return the checkpoint's safetensors files: the single one, else the ones its index names, else all there are."""
    if (model / "model.safetensors").is_file():
        return [model / "model.safetensors"]
    index = model / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(model.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LaunchError(f"{index} is no index of weights", "fetch the checkpoint again") from None
    return sorted(model / name for name in names)


def check_engine(model: Path, pool: Pool) -> EngineConfig:
    """Refuse settings that the engine would refuse, and ranks that the model cannot be divided among.

    Returns:
        The settings of each of the pool's instances.
    """
    try:
        config = engine_config(pool, model, os.environ)
        if pool.num_ranks > 1:
            config.parallel.check(ModelConfig.from_dir(model))
    except ModelError as error:
        raise LaunchError(f"{pool.title} cannot be: {error}", "change the option, variable or pools file") from None
    return config


def check_memory(model: Path, fleet: Fleet) -> None:
    """Refuse to start what would not fit beside what already runs, all pools together."""
    available = available_gib()
    needed, parts = 0.0, []
    for pool in fleet.pools:
        config = check_engine(model, pool)
        weights, kv_gib = weights_gib(model, config), config.host_cache_gib
        needed += pool.replicas * (weights + pool.num_ranks * (kv_gib + PROCESS_GIB))
        rank = f"{pool.num_ranks} x ({kv_gib:g} KV cache + {PROCESS_GIB} programs)"
        parts.append(f"{pool.title}: {pool.replicas} x ({weights:.2f} weights + {rank})")
    if needed > available:
        raise LaunchError(
            f"{fleet.num_instances} instances need about {needed:.1f} GiB ({'; '.join(parts)}) and {available:.1f} GiB "
            "are available",
            "give fewer --replicas, or a smaller KV cache in SCALELLM_KV_CACHE_GIB, or free memory; on a CPU quantized "
            "weights take 4 bytes each but for int8_dynamic's",
        )


def check_rank_addresses(model: Path, fleet: Fleet) -> None:
    """Refuse replicas that would await external ranks at one address: each must listen at one of its own."""
    taken: set[str] = set()
    for pool in (pool for pool in fleet.pools if pool.num_ranks > 1):
        config = check_engine(model, pool)
        if config.rank_executor != "external":
            continue
        if pool.replicas > 1 or config.rank_address in taken:
            raise LaunchError(
                f"external ranks of several replicas cannot join at one address, {config.rank_address}",
                "give --replicas 1, or --pools of one replica each with a rank_address of its own in options",
            )
        taken.add(config.rank_address)


def check_threads(fleet: Fleet, num_cores: int) -> None:
    """Refuse threads, where the pools name them, that outnumber the cores; with levels one pool computes at a time."""
    for group in fleet.busy_pools():
        named = [pool for pool in group if pool.threads]
        threads = sum(pool.replicas * pool.num_ranks * (pool.threads or 0) for pool in named)
        if threads > num_cores:
            names = " and ".join(pool.title for pool in named)
            raise LaunchError(
                f"{names} would compute with {threads} threads on {num_cores} cores", "give fewer threads or replicas"
            )


def weights_gib(model: Path, config: EngineConfig) -> float:
    """Return the size of the weights of an instance with these settings, in memory."""
    on_cpu = config.device == "cpu" or (config.device == "auto" and not has_gpu())
    return weights_bytes(weight_files(model), model_config(model), config, on_cpu) / GIB


def available_gib(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the memory that new processes can take: the machine's, or this container's where that is less."""
    rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    machine = int(rows["MemAvailable"].split()[0]) * 1024
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no limit: no file, or the word "max"
        return machine / GIB
    return min(machine, limit - used) / GIB


def _check_weights(file: Path) -> None:
    if not file.is_file():
        raise LaunchError(f"{file} is missing, and the checkpoint's index names it", "fetch the checkpoint again")
    with file.open("rb") as opened:
        if opened.read(len(LFS_START)) == LFS_START:
            raise LaunchError(f"{file} is a Git LFS pointer, not the weights", f"run `git lfs pull` in {file.parent}")
