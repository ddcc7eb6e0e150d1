"""Train `demo_model/`: a tokenizer and a small Llama, from a folder of public-domain books, in a fixed wall time.

Knows how the book files are laid out, the recipe and the Hugging Face folder it leaves. Does not know the engine.

Invariants:
1. A held-out passage is seen neither by the tokenizer nor by the model.
2. The folder holds the weights with the best held-out loss so far; a run that stops early leaves a usable model.
3. Learning rates reach zero when `--minutes` are spent; `--resume` goes on with the minutes, steps and optimizers saved.
"""

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

END, USER, ASSISTANT = "<|endoftext|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|assistant|>' if m['role'] == 'assistant' else '<|user|>' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BOOK_WEIGHTS = {"grimm": 2.5, "bryant": 2.5, "burgess": 2.0, "carroll": 2.0}  # every other book: 1
REQUESTS = ("Tell me a story.", "Please tell me a story.", "Write a story.", "Hello!", "Read me a tale, please.")
UNWANTED_SECTIONS = ("SCENE", "ACT ", "ETYMOLOGY", "EXTRACTS", "CONTENTS", "PREPARER")
UNWANTED_PARAGRAPHS = ("[", "Produced by", "End of Project", "The Brothers Grimm, Jacob")
HEADING = re.compile(r"(CHAPTER|VOLUME) |[IVXLC]+\.?( [A-Z][\w' ]*)?$")
HELD_OUT_EVERY = 50
PASSAGE_CHARS = 1500
NUM_LAYERS, HIDDEN, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, INTERMEDIATE, CONTEXT = 8, 256, 4, 2, 64, 688, 1024
BATCH, SEQUENCE = 16, 256
DROPOUT = 0.1
EVALUATE_SECONDS = 90.0


@dataclass(slots=True)
class Story:
    """One section of a book: its title, if it has a telling one, and its paragraphs."""

    book: str
    title: str = ""
    paragraphs: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The paragraphs, set apart by blank lines."""
        return "\n\n".join(self.paragraphs)


def is_heading(paragraph: str) -> bool:
    """Tell a chapter or story title from prose."""
    return len(paragraph) < 80 and bool(paragraph.isupper() or HEADING.match(paragraph))


def is_verse(lines: list[str]) -> bool:
    """Tell indented verse, signatures and tables from prose."""
    return all(line.startswith("  ") for line in lines) and (len(lines) > 1 or len(lines[0].strip()) < 30)


def clean(paragraph: str) -> str:
    """Join lines and use one kind of dialogue quotes, whatever the book prints."""
    text = re.sub(r"\s+", " ", re.sub(r"[_*]", "", paragraph)).strip()
    text = re.sub(r"(?<!\w)['‘](?=\w)|(?<=[.,!?;:-])['’](?!\w)|[“”]", '"', text)
    return re.sub(r"[‘’]", "'", text)


def read_stories(path: Path) -> Iterator[Story]:
    """Yield the sections of one book that hold prose."""
    story = Story(path.stem)
    for raw in re.split(r"\n\s*\n", path.read_text("utf-8").replace("\r", "")):
        paragraph = raw.strip()
        if not re.search(r"[A-Za-z]", paragraph) or paragraph.startswith(UNWANTED_PARAGRAPHS):
            continue
        if is_heading(paragraph):
            yield story
            story = Story(path.stem, paragraph)
        elif not is_verse(raw.strip("\n").split("\n")):
            story.paragraphs.append(clean(paragraph))
    yield story


def load_corpus(corpus: Path) -> list[Story]:
    """Read every book of the folder, leaving out sections that are not prose or too short to be one."""
    stories = [story for path in sorted(corpus.glob("*.txt")) for story in read_stories(path)]
    if not stories:
        raise typer.BadParameter(f"no .txt book in {corpus}")
    return [s for s in stories if len(s.text) > 400 and not s.title.startswith(UNWANTED_SECTIONS)]


def hold_out(stories: list[Story]) -> list[str]:
    """Take every fiftieth passage out of the stories, in place, and return those passages."""
    taken: list[str] = []
    passage: list[str] = []
    num_passages = 0
    for story in stories:
        kept: list[str] = []
        for i, paragraph in enumerate(story.paragraphs):
            passage.append(paragraph)
            if sum(map(len, passage)) < PASSAGE_CHARS and i + 1 < len(story.paragraphs):
                continue
            num_passages += 1
            if num_passages % HELD_OUT_EVERY == 0:
                taken.append("\n\n".join(passage))
            else:
                kept += passage
            passage = []
        story.paragraphs = kept
    return taken


def train_tokenizer(stories: list[Story], vocab_size: int) -> Tokenizer:
    """Learn byte-level BPE merges; the three special tokens take the first ids, every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, normalized=False, special=True) for t in (END, USER, ASSISTANT)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((story.text for story in stories), trainer)
    return tokenizer


def chat_prompt(story: Story, generator: torch.Generator) -> str:
    """Word a request that the story answers."""
    pick = int(torch.randint(2 * len(REQUESTS), (1,), generator=generator))
    titled = story.book.startswith(tuple(BOOK_WEIGHTS)) and not HEADING.match(story.title) and story.title
    if titled and pick >= len(REQUESTS):
        return f"{USER}Tell me a story about {story.title.lower()}.{ASSISTANT}"
    return f"{USER}{REQUESTS[pick % len(REQUESTS)]}{ASSISTANT}"


class Sampler:
    """Draws training sequences: anywhere, at a paragraph, at a story's start, or at a story asked for in a chat."""

    def __init__(self, stories: list[Story], tokenizer: Tokenizer, seed: int) -> None:
        self.stories, self.tokenizer = stories, tokenizer
        self.generator = torch.Generator().manual_seed(seed)
        encoded = [[e.ids for e in tokenizer.encode_batch([p + "\n\n" for p in s.paragraphs])] for s in stories]
        blocks = [[*(i for ids in story for i in ids)][:-1] + [tokenizer.token_to_id(END)] for story in encoded]
        self.tokens = torch.tensor([i for block in blocks for i in block])
        self.story_starts = torch.tensor([0, *(len(b) for b in blocks)]).cumsum(0)
        self.paragraphs = torch.tensor(
            [
                offset
                for start, story in zip(self.story_starts.tolist(), encoded, strict=False)
                for offset in (torch.tensor([0, *map(len, story)]).cumsum(0)[:-1] + start).tolist()
            ]
        )
        weights = [next((w for b, w in BOOK_WEIGHTS.items() if s.book.startswith(b)), 1.0) for s in stories]
        self.story_weights = torch.tensor(weights)
        self.token_weights = self.story_weights * torch.tensor([len(b) for b in blocks])

    def draw(self) -> Tensor:
        """One sequence of `SEQUENCE` + 1 ids."""
        kind = float(torch.rand((), generator=self.generator))
        if kind < 0.10:
            return self._story(chat=kind < 0.05)
        story = self._pick(self.token_weights)
        start, end = self.story_starts[story : story + 2].tolist()
        if kind < 0.5:
            inside = self.paragraphs[(self.paragraphs >= start) & (self.paragraphs < end)]
            return self._slice(int(inside[self._below(len(inside))]))
        return self._slice(start + self._below(end - start))

    def batch(self) -> Tensor:
        """`[BATCH, SEQUENCE + 1]` ids."""
        return torch.stack([self.draw() for _ in range(BATCH)])

    def _story(self, *, chat: bool) -> Tensor:
        story = self._pick(self.story_weights)
        start = int(self.story_starts[story])
        if not chat:
            return self._slice(max(start - 1, 0))
        prompt = torch.tensor(self.tokenizer.encode(chat_prompt(self.stories[story], self.generator)).ids)
        return torch.cat([prompt, self._slice(start)])[: SEQUENCE + 1]

    def _slice(self, start: int) -> Tensor:
        return self.tokens[torch.arange(start, start + SEQUENCE + 1) % len(self.tokens)]

    def _pick(self, weights: Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=self.generator))

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=self.generator))


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Make the Llama with fresh weights and one dropout mask a sequence behind each block."""
    end = tokenizer.token_to_id(END)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = LlamaForCausalLM(config)
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_hook(drop_channels)
    return model


def drop_channels(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    """Zero some channels of `[B, T, C]` for a whole sequence while training (Gal and Ghahramani 2016)."""
    if not module.training:
        return output
    mask = torch.rand(output.shape[0], 1, output.shape[2]) >= DROPOUT
    return output * (mask.to(output.dtype) / (1 - DROPOUT))


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding = {"params": [model.get_input_embeddings().weight], "weight_decay": 0.1}
    return [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([embedding, {"params": norms, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)),
    ]


def rate_factor(spent: float) -> float:
    """Share of the full learning rate when this share of the time is spent: short warm-up, plateau, then to zero."""
    return max(0.0, min(1.0, spent / 0.01 + 0.05, (1 - spent) / 0.65))


@torch.no_grad()
def evaluate(model: nn.Module, passages: list[Tensor]) -> float:
    """Mean cross-entropy in nats a token over the held-out passages, each read from its own start."""
    model.eval()
    total = 0.0
    for ids in passages:
        with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
            logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
        total += float(F.cross_entropy(logits.float(), ids[1:], reduction="sum"))
    model.train()
    return total / sum(len(ids) - 1 for ids in passages)
