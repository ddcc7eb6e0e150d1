"""Command-line options that several commands share.

Knows their names, limits and defaults. Does not know what is done with them.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from scripts.launcher import paths

MaxTokens = Annotated[int | None, typer.Option(min=1, help="Most tokens to write. Default: up to the model's limit.")]
Temperature = Annotated[
    float | None,
    typer.Option(min=0, help="0 is greedy. Default: 1 with --top-p, --top-k or --seed, else greedy."),
]
TopP = Annotated[float | None, typer.Option(help="Sample from the likeliest tokens that make up this probability.")]
TopK = Annotated[int | None, typer.Option(min=0, help="Sample from this many likeliest tokens.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="Draw the same text again.")]


def chosen_model(option: Path | None) -> Path:
    """Return the model's folder: the option, else the environment's, else the repository's own."""
    named = option or Path(os.environ.get(paths.MODEL_ENV) or paths.DEFAULT_MODEL)
    return named.expanduser().resolve()
