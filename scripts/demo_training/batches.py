"""The tokenizer, and the sequences that a training step reads.

Knows tokens, how often each book is drawn and where a sequence may start. Does not know the network.

Invariants:
1. The order of draws depends on the seed alone.
2. Every story ends in one end token.
"""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from scripts.demo_training.corpus import Story

SPECIAL_TOKENS = END, USER, ASSISTANT = "<|endoftext|>", "<|user|>", "<|assistant|>"
END_ID = SPECIAL_TOKENS.index(END)
BOOK_WEIGHTS = {"grimm": 2.5, "bryant": 2.5, "burgess": 2.0, "carroll": 2.0}  # by the start of the file name; others 1
REQUESTS = ("Tell me a story.", "Please tell me a story.", "Write a story.", "Hello!", "Read me a tale, please.")
CHAT_SHARE, STORY_SHARE, PARAGRAPH_SHARE = 0.05, 0.05, 0.40  # of sequences; the others start anywhere


def train_tokenizer(stories: list[Story], vocab_size: int) -> Tokenizer:
    """Learn byte-level BPE merges; the three special tokens take the first ids, every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((story.text for story in stories), trainer)
    return tokenizer


def book_weight(story: Story) -> float:
    """How much more often than by its length a story's book is drawn."""
    return next((weight for book, weight in BOOK_WEIGHTS.items() if story.book.startswith(book)), 1.0)


class Sampler:
    """Draws sequences: anywhere, at a paragraph, at a story's start, or at a story asked for in a chat.

    Only the books in `BOOK_WEIGHTS` are drawn at a story's start: the chapters of a novel do not open a tale.
    """

    def __init__(self, stories: list[Story], tokenizer: Tokenizer, batch: int, sequence: int, seed: int) -> None:
        self.stories, self.tokenizer, self.num_sequences, self.length = stories, tokenizer, batch, sequence
        self.generator = torch.Generator().manual_seed(seed)
        self._lay_out()
        weights = torch.tensor([book_weight(story) for story in stories])
        self.token_weights = weights * (self.story_starts[1:] - self.story_starts[:-1])
        self.story_weights = (weights > 1).float()

    @property
    def num_tokens(self) -> int:
        """Length of all stories together."""
        return len(self.tokens)

    def batch(self) -> Tensor:
        """`[batch, sequence + 1]` ids."""
        return torch.stack([self._draw() for _ in range(self.num_sequences)])

    def _lay_out(self) -> None:
        """Put all stories in one row and note where stories and paragraphs start."""
        tokens: list[int] = []
        story_starts, paragraph_starts = [0], []
        for story in self.stories:
            for encoding in self.tokenizer.encode_batch([paragraph + "\n\n" for paragraph in story.paragraphs]):
                paragraph_starts.append(len(tokens))
                tokens += encoding.ids
            tokens[-1] = END_ID
            story_starts.append(len(tokens))
        self.tokens = torch.tensor(tokens)
        self.story_starts, self.paragraph_starts = torch.tensor(story_starts), torch.tensor(paragraph_starts)

    def _draw(self) -> Tensor:
        kind = float(torch.rand((), generator=self.generator))
        if kind < CHAT_SHARE + STORY_SHARE:
            return self._opening(chat=kind < CHAT_SHARE)
        story = self._pick(self.token_weights)
        start, end = self.story_starts[story : story + 2].tolist()
        if kind < CHAT_SHARE + STORY_SHARE + PARAGRAPH_SHARE:
            inside = self.paragraph_starts[(self.paragraph_starts >= start) & (self.paragraph_starts < end)]
            return self._slice(int(inside[self._below(len(inside))]))
        return self._slice(start + self._below(end - start))

    def _opening(self, *, chat: bool) -> Tensor:
        story = self._pick(self.story_weights)
        start = int(self.story_starts[story])
        if not chat:
            return self._slice(max(start - 1, 0))
        prompt = self.tokenizer.encode(USER + self._request(self.stories[story]) + ASSISTANT).ids
        return torch.cat([torch.tensor(prompt), self._slice(start)])[: self.length + 1]

    def _request(self, story: Story) -> str:
        """Word a request that the story answers."""
        pick = self._below(2 * len(REQUESTS))
        if story.title is not None and pick >= len(REQUESTS):
            return f"Tell me a story about {story.title}."
        return REQUESTS[pick % len(REQUESTS)]

    def _slice(self, start: int) -> Tensor:
        return self.tokens[torch.arange(start, start + self.length + 1) % self.num_tokens]

    def _pick(self, weights: Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=self.generator))

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=self.generator))
