"""`scripts/bench speculation`: what draft tokens, looked up in the text or said by a draft model, gain for one stream.

Knows an engine core and three texts. Does not know how drafts are made.
"""

import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.progress import Progress
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.guided_options import Guided
from engine.offline import Completion, generate
from engine.sampling_params import SamplingParams
from scripts.benchmark.report import Report

NUM_TOKENS = 256
WAYS: tuple[str | int, ...] = ("off", 2, 4, 8)
VERSE = "Once there was a fox who said to the cat: I am the king of this forest, and you will do what I say. "
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a story": ("Once upon a time there was a poor woodcutter who lived", {}),
    "a dialogue that repeats itself": (
        '"Good day, Hans." "Good day, mother." "Where do you come from?" "From Gretel." ' * 4 + '"Good day',
        {},
    ),
    "a text copied from the prompt": (VERSE, {"guided": Guided("regex", f"({VERSE})*".replace(".", r"\."))}),
}


def run(model: Path, draft: str | None, num_threads: int, repeats: int, progress: Progress) -> Report:
    """Let one stream write each text with and without drafts, in turn.

    Args:
        model: the model that is served.
        draft: the draft model's folder, or how many of the model's own first layers draft; None for n-grams.
        num_threads: of the engine.
        repeats: how often each text is written each way.
        progress: shows how far it is.

    Raises:
        ValueError: drafts have changed an answer.
    """
    if draft is None or not draft.isdecimal():
        return _run(model, None if draft is None else Path(draft), num_threads, repeats, progress)
    with tempfile.TemporaryDirectory() as folder:
        path = keep_first_layers(model, int(draft), Path(folder) / f"its first {draft} layers")
        return _run(model, path, num_threads, repeats, progress)


def _run(model: Path, draft: Path | None, num_threads: int, repeats: int, progress: Progress) -> Report:
    drafts = "n-grams" if draft is None else draft.name
    report = Report(
        f"one stream, {model.name}, fp32, {num_threads} threads, drafts by {drafts}",
        f"{NUM_TOKENS} tokens, greedy, the same ones every way; acceptance does not depend on the machine",
    )
    core = EngineCore(EngineConfig.from_env(model=model, draft_model=draft, num_threads=num_threads))
    task = progress.add_task("speculation", total=repeats * len(TEXTS) * len(WAYS))
    for _ in range(repeats):
        for name in TEXTS:
            answers = [_measure(core, name, way, report) for way in WAYS]
            progress.advance(task, len(WAYS))
            if any(answer.token_ids != answers[0].token_ids for answer in answers):
                raise ValueError(f"drafts have changed what the engine says to {name}")
    return report


def keep_first_layers(model: Path, count: int, path: Path) -> Path:
    """Write a model of the first `count` layers of one whose weights are in a single file; return its folder."""
    path.mkdir()
    for file in model.glob("*token*.json"):
        shutil.copy(file, path)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": count}), encoding="utf-8")
    tensors = load_file(model / "model.safetensors")
    layer_of = {name: re.search(r"\.layers\.(\d+)\.", name) for name in tensors}
    kept = {name: tensors[name] for name, found in layer_of.items() if found is None or int(found[1]) < count}
    save_file(kept, path / "model.safetensors")
    return path


def _measure(core: EngineCore, name: str, way: str | int, report: Report) -> Completion:
    text, options = TEXTS[name]
    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, speculation=way, **options)
    before = core.read_stats()
    num_steps, num_drafts, num_accepted = before.num_steps, before.num_draft_tokens, before.num_accepted_draft_tokens
    started = time.monotonic()
    [completion] = generate(core, [core.tokenizer.encode(text)], [params])
    seconds, after = time.monotonic() - started, core.read_stats()
    series = f"{name}, {way}" if isinstance(way, str) else f"{name}, up to {way} drafts"
    report.add(series, "tokens/s", len(completion.token_ids) / seconds)
    report.add(f"{series}: a step", "tokens", len(completion.token_ids) / (after.num_steps - num_steps))
    if after.num_draft_tokens > num_drafts:
        accepted = after.num_accepted_draft_tokens - num_accepted
        report.add(f"{series}: accepted", "%", 100 * accepted / (after.num_draft_tokens - num_drafts))
    return completion
