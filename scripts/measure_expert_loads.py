"""Write how often each expert of a model is chosen for given prompts, in the form of the setting `expert_loads`.

Run as `python -m scripts.measure_expert_loads --model FOLDER --prompts FILE --out FILE`. Knows files of prompts. Does
not know how loads are used.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.offline import generate
from engine.parallel.expert_loads import count_loads
from engine.sampling_params import SamplingParams


def measure(model: Path, prompts: list[str], max_tokens: int) -> dict[int, list[int]]:
    """Complete all prompts and return, for each sparse layer, how many tokens went to each expert."""
    core = EngineCore(EngineConfig.from_env(model=model))
    counters = count_loads(core.runner.model)
    params = SamplingParams(max_tokens=max_tokens)
    generate(core, [core.tokenizer.encode(prompt) for prompt in prompts], [params] * len(prompts))
    return {layer: counter.counts.tolist() for layer, counter in counters.items()}


def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of a model with experts.")],
    prompts: Annotated[Path, typer.Option(help="Text like that to be served, a prompt a line.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate for each prompt.")] = 64,
) -> None:
    """Write the loads as JSON."""
    lines = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line]
    loads = measure(model, lines, max_tokens)
    if not loads:
        raise typer.BadParameter(f"{model} has no experts", param_hint="--model")
    out.write_text(json.dumps(loads) + "\n", encoding="utf-8")
    print(f"wrote the loads of {len(loads)} layers, from {len(lines)} prompts, to {out}")


if __name__ == "__main__":
    typer.run(main)
