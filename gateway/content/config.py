"""What can be set about the check of prompts and answers.

Knows fields and what a usable pattern is. Does not know requests.
"""

import importlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

import regex
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from gateway.strict import Strict

Action = Literal["block", "mask", "flag"]
Place = Literal["prompt", "output"]


def _usable(pattern: str) -> str:
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no pattern: {error}") from error
    if compiled.search(""):
        raise ValueError(f"{pattern!r} also fits no text at all")
    return pattern


class RuleConfig(Strict):
    """One pattern, or one list of whole words in any case, and what happens where it is found."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = Field(
        description="letters, digits, _, . and -; at most 64"
    )
    pattern: Annotated[str, AfterValidator(_usable)] | None = Field(
        default=None, description="a regular expression of the package regex"
    )
    words: tuple[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)], ...] = Field(
        default=(), description="whole words, in any case; a space in one is any white space"
    )
    action: Action = Field(description="what happens where it is found")
    on: tuple[Place, ...] = Field(default=("prompt", "output"), min_length=1, description="where it is looked for")

    @model_validator(mode="after")
    def _check(self) -> "RuleConfig":
        if (self.pattern is None) == (not self.words):
            raise ValueError("a rule has either a pattern or words")
        return self

    @property
    def expression(self) -> str:
        """The rule as one regular expression."""
        if self.pattern is not None:
            return self.pattern
        longest_first = sorted(self.words, key=len, reverse=True)
        spelled = (r"\s+".join(map(regex.escape, word.split())) for word in longest_first)
        return r"(?i)(?<!\w)(?:" + "|".join(spelled) + r")(?!\w)"


class ContentConfig(Strict):
    """The rules, and where a check of the operator's own is."""

    rules: tuple[RuleConfig, ...] = ()
    judge_timeout_s: float = Field(default=5.0, gt=0, description="seconds that a hook's `judge` has for a prompt")
    hook: Annotated[str, StringConstraints(pattern=r"^[\w.]+:\w+$")] | None = Field(
        default=None, description="module:callable that makes a check of your own"
    )
    mask: str = Field(default="***", description="what stands in the place of what is masked")
    max_held_chars: int = Field(
        default=256, ge=1, description="characters of an answer held back while they may begin a finding"
    )

    @model_validator(mode="after")
    def _check(self) -> "ContentConfig":
        if not self.rules and self.hook is None:
            raise ValueError("there is neither a rule nor a hook")
        self.load_hook()
        return self

    def load_hook(self) -> Callable[[], Any] | None:
        """Return what makes the operator's own check, where there is one.

        Raises:
            ValueError: it is not there.
        """
        if self.hook is None:
            return None
        module, _, name = self.hook.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:  # whatever the operator's own module does
            raise ValueError(f"the hook {self.hook} is not there: {error!r}") from error
