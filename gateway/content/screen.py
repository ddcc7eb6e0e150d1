"""One request's prompt and answer under the configured check.

Knows messages of one request. Does not know streams or instances.

Invariants:
1. Only the model `llm` may be asked, and where prompts are checked not by token ids: nothing else can be read here.
2. What a rule blocks or masks leaves in no form: of a checked answer only outputs that cannot spell it out are left.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gateway.content.check import Check, Judge, finds, make_check
from gateway.content.judging import Hearing, Pieces
from gateway.content.messages import FILTERED, change_answer, change_prompt, model_of
from gateway.content.scanner import Scanner
from gateway.observe.observer import ERROR_TAG
from gateway.status import Code, Failure
from gateway.tensors import int_of, pack_texts, read_inputs, texts_of
from gateway.wire.messages import MessageReader, MessageTooLarge, frame_message
from gateway.wire.protobuf import MalformedMessage, encode_stream_error

if TYPE_CHECKING:
    from gateway.content.config import ContentConfig, Place
    from gateway.request import Request

MODEL = b"llm"
MAX_ANSWER_BYTES = 64 * 2**20


class Screening:
    """The check, and what it is for."""

    def __init__(self, config: ContentConfig) -> None:
        """Make the check."""
        make_hook = config.load_hook()
        hook = make_hook() if make_hook is not None else None
        self.check: Check = make_check(config, hook)
        self.judge: Judge | None = getattr(hook, "judge", None)
        self.answer_judge: Judge | None = getattr(hook, "judge_answer", None)
        self.config = config
        has_hook, watches_prompts = finds(hook), self.judge is not None
        watches_answers = has_hook or self.answer_judge is not None
        self.checks_prompts = has_hook or watches_prompts or any("prompt" in rule.on for rule in config.rules)
        self.checks_answers = watches_answers or any("output" in rule.on for rule in config.rules)
        self.hides = watches_answers or any("output" in rule.on and rule.action != "flag" for rule in config.rules)

    def scanner(self, place: Place) -> Scanner:
        """Return a scanner of one text."""
        return Scanner(self.check, place, self.config.mask, self.config.max_held_chars)


class Screen:
    """One request."""

    def __init__(self, screening: Screening) -> None:
        """Begin with nothing found."""
        self.has_cut = False  # nothing of the answer follows
        self.watches = screening.checks_answers
        self.found: Counter[tuple[str, str, str]] = Counter()  # (rule, action, place)
        self._screening = screening
        self.hearing: Hearing | None = None  # where answers have a judge
        self._released: dict[int, list[str]] = {}  # texts of the answer so far, for it, by sequence
        self._scanners: dict[int, Scanner] = {}
        self._reader = MessageReader(MAX_ANSWER_BYTES)

    def prompt(self, request: bytes) -> bytes | Failure:
        """Return the request as it may go on, or why it may not."""
        try:
            if model_of(request) != MODEL:
                return Failure(Code.PERMISSION_DENIED, "only the model llm may be asked here")
            if not self._screening.checks_prompts:
                return request
            if "input_ids" in read_inputs(request):
                return Failure(Code.PERMISSION_DENIED, "a prompt of token ids cannot be checked: send text")
            changed = change_prompt(request, self._change)
        except MalformedMessage as error:
            return Failure(Code.INVALID_ARGUMENT, str(error))
        if rules := sorted({rule for rule, action, _ in self.found if action == "block"}):
            return Failure(Code.INVALID_ARGUMENT, f"the prompt is blocked by the content rule {', '.join(rules)}")
        return changed

    def answer(self, pieces: Pieces) -> tuple[Pieces, int]:
        """Return what may go on of pieces of messages, and how many messages that is; none follow a block."""
        made: list[bytes] = []
        try:
            for _, body in self._reader.feed(b"".join(piece for piece, _ in pieces)):
                if not self.has_cut:
                    made.append(frame_message(self._checked(body)))
        except (MalformedMessage, MessageTooLarge) as error:
            self.has_cut = True
            made.append(frame_message(encode_stream_error(f"INTERNAL: the answer cannot be checked: {error}", b"")))
        return ([(b"".join(made), True)] if made else []), len(made)

    def _checked(self, body: bytes) -> bytes:
        return body if body[:1] == ERROR_TAG else change_answer(body, self._outputs, self._screening.hides)

    def texts(self) -> list[str]:
        """Return what the answer says so far: the text of each of its sequences."""
        return ["".join(parts) for _, parts in sorted(self._released.items())]

    def filtered(self, rule: str, held: Pieces) -> Pieces:
        """Return what a client gets in the place of held messages that a judge has forbidden."""
        self.has_cut = True
        self.found[rule, "block", "output"] += 1
        bodies = [body for piece, _ in held for _, body in MessageReader(MAX_ANSWER_BYTES).feed(piece)]
        ended = {"text_output": pack_texts([b""]), "finish_reason": pack_texts([FILTERED])}
        return [(frame_message(change_answer(bodies[0], lambda outputs: outputs | ended, hides=True)), True)]

    def flags(self) -> str:
        """Return what was found, for the journal."""
        return ", ".join(f"{rule} {action} {place} {count}" for (rule, action, place), count in self.found.items())

    def _change(self, text: str) -> str:
        return self._push(self._screening.scanner("prompt"), text, final=True)

    def _outputs(self, outputs: dict[str, bytes]) -> dict[str, bytes]:
        if "text_output" not in outputs:
            return outputs
        index = int_of(outputs, "sequence_index") or 0
        scanner = self._scanners.setdefault(index, self._screening.scanner("output"))
        text = b"".join(texts_of(outputs["text_output"])).decode("utf-8", "replace")
        reasons = texts_of(outputs.get("finish_reason", b""))
        released = self._push(scanner, text, final=any(reasons))
        if self.hearing is not None:
            self._released.setdefault(index, []).append(released)
        changed = outputs | {"text_output": pack_texts([released.encode()])}
        if not scanner.is_blocked:
            return changed
        self.has_cut = True
        return changed | {"finish_reason": pack_texts([FILTERED])}

    def _push(self, scanner: Scanner, text: str, final: bool) -> str:
        before = len(scanner.findings)
        released = scanner.push(text, final)
        self.found.update((item.rule, item.action, scanner.place) for item in scanner.findings[before:])
        return released


def screen_prompt(screening: Screening, request: Request) -> Failure | None:
    """Put a message of a routed stream under the check; return why it may not go on, if so."""
    screen = request.screen = Screen(screening)
    if screening.answer_judge is not None:
        screen.hearing = Hearing(screening.answer_judge, screening.config.judge_timeout_s, screen, request)
    screened = screen.prompt(request.body())
    if isinstance(screened, Failure):
        return screened
    request.kept = [screened]
    return None
