"""Which of its shipped configurations a kernel takes for a class of sizes: the literal one, or the fastest one here.

Knows names of classes and configurations as tuples of integers. Does not know kernels, nor how they are measured
(`scripts/bench tune`). What was measured lies in a folder, a JSON file for each kind of device:

    {"device": "NVIDIA H200", "triton": "3.7.0", "sources": "<digest of kernels/>",
     "chosen": {"<op>": {"<class>": [16, 32, 4, 5], ...}, ...}}

Invariants:
1. Only a configuration that the op lists, and that `kernels.aot` therefore compiles, is ever taken from a file.
2. A file is taken as a whole or not at all, and only at the start: nothing is tuned, read or changed on a request.
"""

import importlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels.source_digest import digest_of

Configuration = tuple[int, ...]
Chosen = dict[str, dict[str, Configuration]]  # by op and class
OPS = ("linear", "paged_attention", "quantized_linear", "stacked_experts")  # with `CHOICES` in their `triton_kernel.py`
MOST_BYTES = 2**20  # of a file

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Choices:
    """The configurations of one op.

    Attributes:
        options: by class of sizes; the first is the literal choice.
        tuned: what is taken instead.
        asked: classes that somebody asked for.
    """

    options: Mapping[str, tuple[Configuration, ...]]
    tuned: dict[str, Configuration] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    def of(self, size_class: str) -> Configuration:
        """Return the choice for a class."""
        self.asked.add(size_class)
        return self.tuned.get(size_class) or self.options[size_class][0]


class TuningRefused(ValueError):
    """A file that is not for this device, these kernels or this compiler, or is no such file at all."""


def choices_of(op: str) -> Choices:
    """Return an op's choices; brings Triton's language."""
    return importlib.import_module(f"kernels.{op}.triton_kernel").CHOICES


def path_of(folder: Path, device: str) -> Path:
    """Return the file for a kind of device, by its name."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def save(folder: Path, device: str, chosen: Chosen) -> Path:
    """Write what was measured, in one piece, and return the file."""
    path = path_of(folder, device)
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(_identity(device) | {"chosen": chosen}, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
    return path


def use(folder: Path, device: str) -> bool:
    """Take what was measured on this kind of device, if it is there and fits; say in the log what is taken.

    Returns:
        Whether it is.
    """
    path = path_of(folder, device)
    if not path.is_file():
        logger.info("kernels take their literal configurations: there is no %s (`scripts/bench tune` makes it)", path)
        return False
    try:
        chosen = read(path, device)
    except (OSError, TuningRefused) as error:
        logger.warning("kernels take their literal configurations: %s is not used: %s", path, error)
        return False
    for op, by_class in chosen.items():
        choices_of(op).tuned = by_class
    logger.info("kernels take what was measured on this kind of device, of %s", path)
    return True


def read(path: Path, device: str) -> Chosen:
    """Return what a file says.

    Raises:
        TuningRefused: it is damaged, or was made on another device, by another compiler or of other kernels.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise TuningRefused(f"it is larger than {MOST_BYTES} bytes")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TuningRefused(f"it is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise TuningRefused("it is no JSON object")
    for name, here in _identity(device).items():
        if content.get(name) != here:
            raise TuningRefused(f"its {name} is {content.get(name)!r}, here it is {here!r}")
    chosen = content.get("chosen")
    if not isinstance(chosen, dict) or not all(isinstance(by_class, dict) for by_class in chosen.values()):
        raise TuningRefused("its choices are no JSON objects")
    return {op: {name: _checked(op, name, item) for name, item in chosen[op].items()} for op in chosen}


def _checked(op: str, size_class: str, item: object) -> Configuration:
    options = choices_of(op).options.get(size_class, ()) if op in OPS else ()
    given = tuple(item) if isinstance(item, list) else ()
    if given not in options:
        raise TuningRefused(f"{op} has no configuration {item!r} for {size_class!r}")
    return given


def _identity(device: str) -> dict[str, str]:
    import triton

    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return {"device": device, "triton": triton.__version__, "sources": digest_of(sources)}
