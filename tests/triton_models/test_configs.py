"""docs/protocol.md and the config.pbtxt files name the same tensors, with the same types and shapes."""

import re
from pathlib import Path

import pytest

from engine.metrics import COUNTERS, GAUGES, HISTOGRAMS
from engine.request_inputs import KNOWN_TENSORS

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
TENSOR = re.compile(r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[ (-?\d+) \]')
Tensors = dict[str, tuple[str, str]]


def configured(model: str, section: str) -> Tensors:
    text = (ROOT / "model_repository" / model / "config.pbtxt").read_text(encoding="utf-8")
    body = re.search(rf"^{section} \[(.*?)^(\w|\Z)", text, re.DOTALL | re.MULTILINE)
    assert body is not None
    found = {n: (t.replace("STRING", "BYTES"), d) for n, t, d in TENSOR.findall(body.group(1))}
    assert len(found) == body.group(1).count("name:")
    return found


def documented(heading: str) -> Tensors:
    section = PROTOCOL.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?:`\w+` )?(?:\| )?`(\w+)` \| (\w+) \| \[(-?\d+)\]", section, re.MULTILINE)
    return {name: (kind, dim) for name, kind, dim in rows}


def test_the_ensembles_tensors_are_the_documented_ones():
    assert configured("llm", "input") == documented("`llm`: inputs")
    assert configured("llm", "output") == documented("`llm`: outputs")


def test_the_steps_tensors_are_the_documented_ones():
    inputs, outputs, steps = documented("`llm`: inputs"), documented("`llm`: outputs"), documented("The steps")
    text = outputs.pop("text_output")
    assert configured("preprocessing", "input") == inputs
    prepared = {n: steps[n] for n in ("prompt_ids", "request_options", "resume_token_ids", "received_ns")}
    assert configured("preprocessing", "output") == prepared
    messages = {name: steps[name] for name in ("abort", "adapters")}
    assert configured("llm_engine", "input") == {**prepared, **messages}
    own = {name: steps[name] for name in ("text_window", "adapters")}
    assert configured("llm_engine", "output") == {**outputs, **own}
    assert configured("postprocessing", "input") == {"text_window": steps["text_window"]}
    assert configured("postprocessing", "output") == {"text_output": text} == {"text_output": steps["text_output"]}


def test_preprocessing_reads_every_input_of_the_ensemble():
    assert set(configured("llm", "input")) == KNOWN_TENSORS


def test_every_input_of_the_ensemble_is_optional_and_mapped():
    text = (ROOT / "model_repository" / "llm" / "config.pbtxt").read_text(encoding="utf-8")
    for name in configured("llm", "input"):
        assert f'input_map {{ key: "{name}" value: "{name}" }}' in text
        assert re.search(rf'"{name}" data_type: \w+ dims: \[ -?1 \] optional: true', text)


def test_no_output_of_the_ensemble_is_the_input_of_a_step():
    text = (ROOT / "model_repository" / "llm" / "config.pbtxt").read_text(encoding="utf-8")
    read = set(re.findall(r'input_map \{ key: "\w+" value: "(\w+)"', text))
    assert not read & set(configured("llm", "output"))


@pytest.mark.parametrize("name", [*GAUGES, *COUNTERS, *HISTOGRAMS])
def test_every_metric_is_documented(name: str):
    kind = "gauge" if name in GAUGES else "counter" if name in COUNTERS else "histogram"
    assert f"| `{name}` | {kind} |" in PROTOCOL
