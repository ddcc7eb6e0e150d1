"""A Hugging Face tokenizer folder as this system uses it: encode, decode, and what kind of text a token is.

Knows tokenizer.json, tokenizer_config.json and the end-of-sequence ids of the model folder. Does not know requests,
streams or the model; reads the files with the `tokenizers` library, so that no process pays for importing transformers.

Invariants:
1. `encode` follows tokenizer.json alone, as transformers 5 does: special tokens come from its post-processor, not from
   `add_bos_token` in tokenizer_config.json. (For tokenizer_class LlamaTokenizer transformers 5 builds a normalizer of
   its own, which differs on text that begins with a space or follows a special token; the file's is used here.)
2. `decode` of ids equals `decode` of the same ids without the invisible ones.
"""

import json
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import tokenizers

from engine.errors import InvalidRequest, ModelError
from engine.text.chat_template import ChatTemplate, Message

REPLACEMENT = "\ufffd"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TokenKind(Enum):
    """What a token may do to the text around it."""

    WHOLE = auto()  # its characters are its own: the text may be cut after it
    FRAGMENT = auto()  # holds bytes that neighbours may turn into other characters
    INVISIBLE = auto()  # special or unknown: decoding leaves it out


@dataclass(slots=True)
class Tokenizer:
    """Text to ids and ids to text.

    Attributes:
        backend: the `tokenizers` object, truncation and padding off.
        bos_id: the beginning-of-sequence token, where the folder names one.
        eos_ids: tokens that end a sequence: of generation_config.json, else config.json, and the tokenizer's own; files
            of fine-tuned models often name the new one in the tokenizer's file only.
        joins_runs: a whole run of byte tokens decodes together (byte fallback), not character by character.
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None
    eos_ids: frozenset[int]
    joins_runs: bool
    chat_template: ChatTemplate | None
    _kinds: dict[int, TokenKind] = field(default_factory=dict)

    @classmethod
    def from_dir(cls, path: str | Path) -> "Tokenizer":
        """Read the tokenizer of a model folder.

        Raises:
            ModelError: tokenizer.json is absent, or a file cannot be read.
        """
        folder = Path(path)
        backend = _load_backend(folder)
        options = read_json(folder / "tokenizer_config.json")
        named = {name: text for name in NAMED_TOKENS if (text := _token_text(options.get(name))) is not None}
        bos_id, eos_id = (_named_id(backend, named, name) for name in ("bos_token", "eos_token"))
        return cls(
            backend=backend,
            bos_id=bos_id,
            eos_ids=_read_eos_ids(folder, eos_id),
            joins_runs=_has_byte_fallback(backend),
            chat_template=ChatTemplate.load(folder, options.get("chat_template"), named),
        )

    @property
    def vocab_size(self) -> int:
        """Number of token ids the tokenizer itself can produce; the model's may be larger."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True, max_chars: int | None = None) -> list[int]:
        """Return the ids of `text`; special tokens spelled out in it are recognised, as in transformers.

        The library's `encode` keeps the interpreter's lock and counts offsets (25 s for 2 MB of one-letter words);
        a batch of one does neither (2 s), so that a heartbeat goes on beside it.

        Raises:
            InvalidRequest: the text holds half of a surrogate pair and so is no Unicode text, or has more characters
                than `max_chars`.
        """
        if max_chars is not None and len(text) > max_chars:
            raise InvalidRequest(f"the prompt has {len(text)} characters; at most {max_chars} can be served")
        _check_unicode(text)
        return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def encode_part(self, text: str) -> list[int]:
        """Return the ids of text from the middle of something, without special tokens around it."""
        return self.encode(text, add_special_tokens=False)

    def encode_chat(
        self, messages: list[Message], tools: list[dict[str, Any]] | None = None, *, max_chars: int | None = None
    ) -> list[int]:
        """Render a conversation with the model's template, ready for the assistant's answer, and encode it.

        Args:
            messages: the conversation.
            tools: JSON schemas of functions the assistant may call.
            max_chars: most characters of the rendered text.

        Raises:
            InvalidRequest: the model has no chat template, the template refuses the messages, or the text is too long.
        """
        if self.chat_template is None:
            raise InvalidRequest("this model has no chat template: send text_input instead of messages")
        text = self.chat_template.render(messages, tools)
        return self.encode(text, add_special_tokens=False, max_chars=max_chars)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD, unknown ids nothing."""
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def kind(self, token_id: int) -> TokenKind:
        """Say what `token_id` may do to the text around it; remembered after the first look."""
        known = self._kinds.get(token_id)
        if known is None:
            known = self._kinds[token_id] = self._classify(token_id)
        return known

    def _classify(self, token_id: int) -> TokenKind:
        token = self.backend.id_to_token(token_id)
        added = self.backend.get_added_tokens_decoder().get(token_id)
        if token is None or (added is not None and added.special):
            return TokenKind.INVISIBLE
        is_byte = self.joins_runs and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        return TokenKind.FRAGMENT if is_byte or REPLACEMENT in self.decode([token_id]) else TokenKind.WHOLE


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, empty where there is no such file.

    Raises:
        ModelError: the file is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return value


def _load_backend(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path} does not exist; a model folder needs a tokenizer.json")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises the bare class
        raise ModelError(f"{path} cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _token_text(entry: object) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _named_id(backend: tokenizers.Tokenizer, named: dict[str, str], name: str) -> int | None:
    return backend.token_to_id(named[name]) if name in named else None


def _read_eos_ids(folder: Path, tokenizer_eos_id: int | None) -> frozenset[int]:
    own = frozenset[int]() if tokenizer_eos_id is None else frozenset({tokenizer_eos_id})
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        if isinstance(value, int):
            return own | {value}
        if isinstance(value, list) and value:
            return own | frozenset(value)
    return own


def _has_byte_fallback(backend: tokenizers.Tokenizer) -> bool:
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    return any(step.get("type") == "ByteFallback" for step in steps)


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the text is not valid Unicode at character {error.start}: {error.reason}") from error
