"""What is found in a text: the built-in rules, and what a check of the operator's own must be.

Knows text. Does not know requests, nor what follows from a finding.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard

import regex

if TYPE_CHECKING:
    from gateway.content.config import Action, ContentConfig, Place, RuleConfig

HOOK_METHODS = ("find", "judge", "judge_answer")
TIMEOUT_SECONDS = 0.1  # for one pattern over one text; a pattern that takes longer blocks


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in `text[start:end]`."""

    start: int
    end: int
    rule: str
    action: Action


class Check(Protocol):
    """What looks for findings. It runs on the event loop: it must be fast and must not wait; who must is a `Judge`."""

    def find(self, text: str, place: Place) -> Sequence[Finding]:
        """Return all findings in the text."""
        ...

    def open_from(self, text: str, start: int, place: Place) -> int:
        """Return from where the text's end may belong to a finding once it goes on; its length for nowhere."""
        ...


Judge = Callable[[list[str]], Awaitable[str | None]]  # texts -> the name of the rule that forbids them


class RuleCheck:
    """The configured rules."""

    def __init__(self, rules: Iterable[RuleConfig]) -> None:
        """Compile them."""
        self._rules = [(rule, regex.compile(rule.expression)) for rule in rules]

    def find(self, text: str, place: Place) -> list[Finding]:
        """Return all findings in the text."""
        found: list[Finding] = []
        for rule, pattern in self._rules:
            if place not in rule.on:
                continue
            try:
                matches = list(pattern.finditer(text, timeout=TIMEOUT_SECONDS))
            except TimeoutError:
                return [Finding(0, len(text), rule.name, "block")]
            found += [Finding(match.start(), match.end(), rule.name, rule.action) for match in matches]
        return found

    def open_from(self, text: str, start: int, place: Place) -> int:
        """Return where the first match begins that ends with the text or would go on behind it."""
        first = len(text)
        for rule, pattern in self._rules:
            if place not in rule.on:
                continue
            try:
                matches = list(pattern.finditer(text, start, partial=True, timeout=TIMEOUT_SECONDS))
            except TimeoutError:
                return start
            first = min([first, *(match.start() for match in matches if match.partial or match.end() == len(text))])
        return first


class BothChecks:
    """The built-in rules and the operator's own check together."""

    def __init__(self, checks: Sequence[Check]) -> None:
        """Take them."""
        self._checks = checks

    def find(self, text: str, place: Place) -> list[Finding]:
        """Return what any of them finds."""
        return [finding for check in self._checks for finding in check.find(text, place)]

    def open_from(self, text: str, start: int, place: Place) -> int:
        """Return the earliest place that any of them names."""
        return min(check.open_from(text, start, place) for check in self._checks)


def make_check(config: ContentConfig, hook: object | None) -> Check:
    """Return the check that the configuration asks for; a hook takes part if it can `find`.

    Raises:
        TypeError: the hook can do nothing that it would be asked for.
    """
    if hook is not None and not any(callable(getattr(hook, name, None)) for name in HOOK_METHODS):
        raise TypeError(f"{hook!r} has none of {', '.join(HOOK_METHODS)}")
    if finds(hook) and not hasattr(hook, "open_from"):
        raise TypeError(f"{hook!r} has find but not open_from")
    checks: list[Check] = [RuleCheck(config.rules)]
    if finds(hook):
        checks.append(hook)
    return checks[0] if len(checks) == 1 else BothChecks(checks)


def finds(hook: object | None) -> TypeGuard[Check]:
    """Whether a hook is a check."""
    return hasattr(hook, "find")
