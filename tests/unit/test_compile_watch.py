"""After the start no request waits for a compiler."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import pytest

from engine.compile_watch import CompileWatch
from tests.conftest import TinyModel

ROOT = Path(__file__).resolve().parents[2]
SERVE = """
import sys
from pathlib import Path
from numba.core.caching import Cache
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.offline import generate
from engine.sampling_params import SamplingParams

core = EngineCore(EngineConfig(model=Path(sys.argv[1]), block_size=4, num_blocks=400, num_threads=2, device="cpu"))
asked, load = [], Cache.load_overload
Cache.load_overload = lambda cache, *rest: asked.append(cache) or load(cache, *rest)  # numba asks before it compiles
options = [{}, {"temperature": 1.0, "top_k": 5, "min_p": 0.1}, {"repetition_penalty": 1.2, "presence_penalty": 0.1}]
options += [{"logprobs": True, "top_logprobs": 3, "prompt_logprobs": True}, {"speculation": 3}, {"n": 2, "seed": 1}]
params = [SamplingParams(max_tokens=5, ignore_eos=True, **each) for each in options] * 9
generate(core, [[5 + i] * (1 + 4 * i) for i in range(len(params))], params)
print("wanted", len(asked), "more")
"""


@pytest.mark.slow
def test_steps_of_all_kinds_want_no_kernel_that_the_start_has_not_compiled_or_loaded(tiny_llama: TinyModel) -> None:
    command = [sys.executable, "-c", SERVE, str(tiny_llama.path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "wanted 0 more\n"


def test_a_compilation_is_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    watch = CompileWatch()
    numba.njit(lambda x: x + 1)(1)
    watch.close()
    numba.njit(lambda x: x + 2)(1)
    assert watch.num_compiled == 1
    assert "a kernel is compiled while requests wait: numba" in caplog.text


def test_what_triton_compiles_is_counted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    runtime: Any = SimpleNamespace(jit_post_compile_hook=None)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(knobs=SimpleNamespace(runtime=runtime)))
    watch = CompileWatch()
    runtime.jit_post_compile_hook(key="k", repr="attend[bf16]", fn=None, compile={}, already_compiled=False)
    watch.close()
    assert (watch.num_compiled, runtime.jit_post_compile_hook) == (1, None)
    assert "triton, attend[bf16]" in caplog.text
