"""Ahead-of-time compilation of every shipped Triton kernel, on a machine without a GPU.

Knows how a kernel with its argument types and constants becomes a cubin, and what a cubin takes of a multiprocessor.
Does not know what kernels compute.

An op takes part by its name in OPS and by `shipped() -> list[Build]` in its `triton_kernel.py`: one literal place that
names every configuration the op launches. `python -m kernels.aot` compiles them all and says what each takes; it ends
with 1 if one does not compile, spills registers in a loop, keeps more than MAX_STACK on the stack outside of loops
(where it is written and read once) or asks for more shared memory than the GPU has.

    python -m kernels.aot [OP ...] [--capability 90] [--sampled] [--jobs 2] [--json | --problems]

It wants Triton's compiler, so TRITON_INTERPRET must not be set. Cubins go to Triton's cache on disk (TRITON_CACHE_DIR).

Shared memory a block can have: CUDA C++ Programming Guide, table of technical specifications.
"""

import argparse
import importlib
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OPS = (
    "draw_token",
    "expert_routing",
    "gated_activation",
    "linear",
    "paged_attention",
    "quantize_rows",
    "quantized_linear",
    "rms_norm",
    "rope_kv_store",
    "stacked_experts",
)
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block, by compute capability
CAPABILITIES = tuple(SHARED_LIMITS)
MAX_STACK = 512  # bytes a thread


@dataclass(frozen=True, slots=True)
class Build:
    """One configuration of a kernel, as it is launched.

    Attributes:
        name: unique within the op.
        kernel: the function under `triton.jit`.
        types: arguments that are no constants, with their Triton types: `*bf16`, `i32`, `fp32`. Pointers are taken to
            be multiples of 16 bytes, as torch's are.
        constants: the others, those annotated `tl.constexpr` and those that are None.
        divisible: integer arguments that are multiples of 16 at every launch of this configuration.
        num_warps: of a program.
        num_stages: of the software pipeline.
        capabilities: the GPUs it is for.
        is_sampled: whether it is among the few of its op that stand for it where time is short.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: frozenset[str] = frozenset()
    num_warps: int = 4
    num_stages: int = 3
    capabilities: tuple[int, ...] = CAPABILITIES
    is_sampled: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one build on one GPU.

    Attributes:
        op: the build's op.
        name: the build's name.
        capability: of the GPU.
        seconds: it took to compile.
        registers: of a thread.
        stack: bytes of a thread.
        loop_spills: instructions in loops that reach for the stack.
        shared: bytes of a block.
        error: of the compiler, or nothing.
    """

    op: str
    name: str
    capability: int
    seconds: float
    registers: int = 0
    stack: int = 0
    loop_spills: int = 0
    shared: int = 0
    error: str = ""

    @property
    def problem(self) -> str:
        """What is wrong, or nothing."""
        if self.error:
            return self.error
        if self.loop_spills:
            return f"spills {self.loop_spills} times in loops"
        if self.stack > MAX_STACK:
            return f"keeps {self.stack} bytes a thread on the stack, of {MAX_STACK}"
        limit = SHARED_LIMITS[self.capability]
        return f"needs {self.shared} bytes of shared memory of {limit}" if self.shared > limit else ""


def constants_among(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kernel's constants among what a launch is told, in capitals; the rest is for the compiler."""
    return {name: value for name, value in options.items() if name.isupper()}


def shipped_builds(op: str) -> dict[str, Build]:
    """Return an op's builds by name.

    Raises:
        ValueError: two have the same name.
    """
    builds = importlib.import_module(f"kernels.{op}.triton_kernel").shipped()
    by_name = {build.name: build for build in builds}
    if len(by_name) < len(builds):
        raise ValueError(f"{op}: {len(builds) - len(by_name)} builds share a name with another")
    return by_name


def compile_shipped(op: str, name: str, capability: int) -> Report:
    """Compile one build; what goes wrong is in the report."""
    start = time.monotonic()
    try:
        shared, cubin = _compile(shipped_builds(op)[name], capability)
        usage = _usage(cubin)
    except Exception as error:  # noqa: BLE001 - a compiler may raise anything; the report carries it
        reason = f"{type(error).__name__}: {str(error).splitlines()[-1]}"
        return Report(op, name, capability, time.monotonic() - start, error=reason)
    return Report(op, name, capability, time.monotonic() - start, *usage, shared)


def compile_all(
    ops: tuple[str, ...] = OPS,
    capabilities: tuple[int, ...] = CAPABILITIES,
    sampled: bool = False,
    jobs: int = 2,
) -> Iterator[Report]:
    """Compile the ops' builds in `jobs` processes, here for one, and yield the reports in order."""
    todo = [
        (op, name, capability)
        for op in ops
        for name, build in shipped_builds(op).items()
        for capability in build.capabilities
        if capability in capabilities and (build.is_sampled or not sampled)
    ]
    if jobs == 1:
        yield from (compile_shipped(*build) for build in todo)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(compile_shipped, *zip(*todo, strict=True)) if todo else ()


def _compile(build: Build, capability: int) -> tuple[int, bytes]:
    """Return the bytes of shared memory a block takes, and the cubin."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    constants = dict(build.constants) | ({"DEPENDENT": capability >= 90} if "DEPENDENT" in names else {})
    signature = {name: build.types.get(name, "constexpr") for name in names}
    aligned = {name for name, kind in build.types.items() if kind.startswith("*")} | build.divisible
    source = ASTSource(
        build.kernel,
        signature,
        constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return compiled.metadata.shared, compiled.asm["cubin"]


def _usage(cubin: bytes) -> tuple[int, int, int]:
    """Return a cubin's registers, stack and spills in loops, by cuobjdump, which comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", _dump("--dump-resource-usage", file.name))[0])
        return registers, stack, count_loop_spills(_dump("--dump-sass", file.name)) if stack else 0


def _dump(what: str, path: str) -> str:
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, what, path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def count_loop_spills(sass: str) -> int:
    """Return how many instructions between a backward branch and its target reach for a thread's own memory."""
    code = [(int(at, 16), what) for at, what in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", sass)]
    jumps = [(at, re.search(r"\bBRA\S* (?:\S+, )?0x([0-9a-f]+)", what)) for at, what in code]
    loops = [(int(jump[1], 16), at) for at, jump in jumps if jump and int(jump[1], 16) < at]
    spills = [at for at, what in code if re.search(r"\b(LDL|STL)\b", what)]
    return sum(any(start <= at <= end for start, end in loops) for at in spills)


def main() -> int:
    """Compile what the command line asks for; print a line each, or only those with a problem, and how many."""
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description="Compile every shipped Triton kernel.")
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)}; all by default")
    parser.add_argument("--capability", type=int, nargs="+", choices=CAPABILITIES, default=CAPABILITIES)
    parser.add_argument("--sampled", action="store_true", help="only a few of each op")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--problems", action="store_true", help="no line for what compiles and fits")
    options = parser.parse_args()
    num_compiled = num_problems = 0
    for report in compile_all(tuple(options.ops) or OPS, tuple(options.capability), options.sampled, options.jobs):
        num_compiled += 1
        num_problems += bool(report.problem)
        if report.problem or not options.problems:
            line = json.dumps(asdict(report) | {"problem": report.problem}) if options.json else _line(report)
            print(line, flush=True)
    if options.problems:
        print(f"{num_compiled} kernels compiled, {num_problems} with problems")
    return 1 if num_problems else 0


def _line(report: Report) -> str:
    return (
        f"{report.op:20} sm_{report.capability:<4} {report.registers:4} registers {report.shared:7} shared "
        f"{report.seconds:5.1f} s  {report.name}{f'  FAILED: {report.problem}' if report.problem else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
