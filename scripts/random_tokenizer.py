"""A tokenizer of any number of tokens for models of random weights: the demo model's, cut or padded.

Knows the file of a byte-level BPE tokenizer. Does not know models.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BASE_TOKENIZER = Path(__file__).resolve().parents[1] / "demo_model"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def filler_tokens() -> Iterator[str]:
    """Yield made-up words with a leading space, spelled in the byte-level alphabet, without end."""
    for length in itertools.count(2):
        for letters in itertools.product(LETTERS, repeat=length):
            yield "Ġ" + "".join(letters)


def resize_tokenizer(tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    """Cut a byte-level BPE's vocabulary to its first tokens, or pad it with words that no merge makes."""
    model = tokenizer["model"]
    vocab = {token: i for token, i in model["vocab"].items() if i < size}
    fillers = (token for token in filler_tokens() if token not in model["vocab"])
    vocab |= {next(fillers): i for i in range(len(vocab), size)}
    merges = [pair for pair in model["merges"] if "".join(pair) in vocab]
    return {**tokenizer, "model": {**model, "vocab": vocab, "merges": merges}}


def write_tokenizer(out: Path, vocabulary: int, positions: int) -> None:
    """Write the demo model's tokenizer, resized to the vocabulary asked for, for contexts of so many tokens."""
    base = json.loads((BASE_TOKENIZER / "tokenizer.json").read_text("utf-8"))
    resized = resize_tokenizer(base, vocabulary)
    (out / "tokenizer.json").write_text(json.dumps(resized, ensure_ascii=False), "utf-8")
    settings = json.loads((BASE_TOKENIZER / "tokenizer_config.json").read_text("utf-8"))
    settings["model_max_length"] = positions
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    shutil.copyfile(BASE_TOKENIZER / "special_tokens_map.json", out / "special_tokens_map.json")
