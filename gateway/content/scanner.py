"""A text that comes in pieces, checked as if it were whole.

Knows text and a check. Pure. Does not know messages.

Invariants:
1. What has been released, joined, is what checking the whole text at once would have released, as long as no finding is
   longer than `max_held` characters.
2. At most `max_held` characters are held back.
3. After a block nothing more is released.
"""

from dataclasses import dataclass, field

from gateway.content.check import Check, Finding
from gateway.content.config import Place

CONTEXT_CHARS = 64  # of what has been released, so that a rule sees what stands before its match


@dataclass(slots=True)
class Scanner:
    """One text on its way."""

    check: Check
    place: Place
    mask: str
    max_held: int
    is_blocked: bool = False
    findings: list[Finding] = field(default_factory=list)  # all so far; positions are of the piece they were found in
    _context: str = ""
    _held: str = ""

    def push(self, new: str, final: bool) -> str:
        """Take the next piece and return what may go on."""
        if self.is_blocked:
            return ""
        begin = len(self._context)
        text = self._context + self._held + new
        found = [item for item in self.check.find(text, self.place) if item.end > begin]
        cut = len(text) if final else self._cut(text, begin, found)
        released = self._release(text, begin, cut, [item for item in found if item.end <= cut])
        self._context, self._held = text[max(0, cut - CONTEXT_CHARS) : cut], text[cut:]
        return released

    def _cut(self, text: str, begin: int, found: list[Finding]) -> int:
        """Return up to where everything is decided."""
        cut = max(begin, self.check.open_from(text, begin, self.place))
        while straddling := [item.start for item in found if item.start < cut < item.end]:
            cut = max(begin, min(straddling))
            if cut == begin:
                break
        return cut if len(text) - cut <= self.max_held else len(text)

    def _release(self, text: str, begin: int, cut: int, found: list[Finding]) -> str:
        released: list[str] = []
        at = begin
        for item in sorted(found, key=lambda item: (item.start, -item.end)):
            self.findings.append(item)
            if item.action == "flag" or item.end <= at:
                continue
            released.append(text[at : max(at, item.start)])
            if item.action == "block":
                self.is_blocked = True
                return "".join(released)
            released.append(self.mask)
            at = item.end
        return "".join([*released, text[at:cut]])
