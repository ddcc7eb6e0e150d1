"""What quantizing cost: the model's own measures before and after, on text it was not calibrated on.

Knows engines and token ids. Does not know how weights were rounded.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.offline import generate
from engine.sampling_params import SamplingParams
from scripts.quantization.calibration import cut

PIECE_TOKENS = 128
GREEDY_TOKENS = 32
NUM_PIECES = 64


@dataclass(slots=True, frozen=True)
class Measures:
    """What a model says of a text.

    Attributes:
        num_bytes: of its safetensors files.
        perplexity: exp of the mean negative log-probability of the text's tokens.
        greedy: tokens that it goes on with, behind each piece of the text.
    """

    num_bytes: int
    perplexity: float
    greedy: list[list[int]]


@dataclass(slots=True, frozen=True)
class Report:
    """Before and after; `agreement` is the share of greedy tokens that come before the first that differs."""

    num_bytes: tuple[int, int]
    perplexity: tuple[float, float]
    agreement: float
    num_tokens: int

    @property
    def perplexity_change(self) -> float:
        """By how much perplexity has grown, as a share."""
        return self.perplexity[1] / self.perplexity[0] - 1

    def as_dict(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return asdict(self) | {"perplexity_change": self.perplexity_change}

    def table(self) -> Table:
        """Return it for a terminal."""
        table = Table("", "before", "after", "change")
        before, after = self.num_bytes
        table.add_row("size, MB", f"{before / 1e6:.2f}", f"{after / 1e6:.2f}", f"{after / before - 1:+.1%}")
        table.add_row("perplexity", *(f"{value:.3f}" for value in self.perplexity), f"{self.perplexity_change:+.2%}")
        table.add_row("greedy agreement", "", f"{self.agreement:.1%}", "")
        table.caption = f"{self.num_tokens} tokens of held-out text"
        return table


def open_engine(path: Path, num_threads: int) -> EngineCore:
    """Return an engine on a checkpoint."""
    return EngineCore(EngineConfig(model=path, num_threads=num_threads))


def pieces_of(core: EngineCore, text: str) -> list[list[int]]:
    """Return the text's tokens in pieces that leave room to go on."""
    room = min(PIECE_TOKENS, core.info.max_model_len - GREEDY_TOKENS)
    return cut(core.tokenizer.encode(text), room, NUM_PIECES)


def measure(core: EngineCore, path: Path, pieces: list[list[int]]) -> Measures:
    """Compute the pieces and what follows them."""
    params = SamplingParams(max_tokens=GREEDY_TOKENS, temperature=0.0, ignore_eos=True, prompt_logprobs=True)
    completions = generate(core, pieces, [params] * len(pieces))
    log_probs = [value for completion in completions for value in completion.prompt_log_probs]
    num_bytes = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    perplexity = math.exp(-sum(log_probs) / len(log_probs))
    return Measures(num_bytes, perplexity, [completion.token_ids for completion in completions])


def compare(before: Measures, after: Measures, num_tokens: int) -> Report:
    """Return the report."""
    shares = [_same_start(one, other) / len(one) for one, other in zip(before.greedy, after.greedy, strict=True)]
    sizes, perplexities = (before.num_bytes, after.num_bytes), (before.perplexity, after.perplexity)
    return Report(sizes, perplexities, sum(shares) / len(shares), num_tokens)


def _same_start(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=True))
    return next((index for index, (a, b) in pairs if a != b), len(one))
