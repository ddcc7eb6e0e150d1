"""Which shapes of steps are recorded, and which recording serves a step.

Knows numbers of tokens and sequences. Does not know recordings or tensors.

A step replays the smallest recording that holds it; what is beyond is padding. Shapes are close together where a row
more costs most in proportion, and a recording is only a list of launches over memory that all share.

Decode steps, a token for each sequence, have shapes of their own. Of all others, in which prompts are computed, shapes
are recorded up to the tokens from which on a GPU computes longer than its host needs to launch it all. Each number of
tokens is there twice, since by the two numbers attention chooses its tiles: with few sequences, for prompts alone, and
with many, for prompts beside others' decoding and for drafts, whose tokens all want their logits.
"""

from bisect import bisect_left
from typing import NamedTuple

SMALL = (1, 2, 4)
STEPS = ((64, 8), (256, 16))  # up to so many sequences, sizes lie so far apart; beyond, WIDE
WIDE = 64
MIXED_TOKENS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024)
TOKENS_OF_A_PROMPT = 16  # at least, where a step holds prompts alone
MOST_DRAFTED = 256  # tokens of a step up to which all may want their logits


class StepShape(NamedTuple):
    """What a recording has room for: tokens, sequences, and tokens whose logits are wanted.

    Those of a decode step are the same; any other has more tokens than sequences.
    """

    num_tokens: int
    num_seqs: int
    num_logits: int

    @property
    def is_decode(self) -> bool:
        """Whether token, sequence and logits number n are each other's."""
        return self.num_tokens == self.num_seqs


def decode_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Return for how many sequences decode steps are recorded, ascending; the last one is `max_num_seqs`."""
    sizes = {size for size in SMALL if size < max_num_seqs}
    start = 0
    for end, step in (*STEPS, (max_num_seqs, WIDE)):
        sizes |= set(range(start + step, min(end, max_num_seqs) + 1, step))
        start = end
    return tuple(sorted(sizes | {max_num_seqs}))


def step_shapes(max_num_seqs: int, max_num_tokens: int) -> tuple[StepShape, ...]:
    """Return the shapes to record for steps of so many sequences and tokens at most, ascending."""
    most = max_num_seqs + 1  # sequences; the last one is the padding's
    shapes = {StepShape(size, size, size) for size in decode_sizes(max_num_seqs)}
    for num_tokens in MIXED_TOKENS:
        if num_tokens <= max_num_tokens:
            few, many = (min(number, most, num_tokens - 1) for number in (num_tokens // TOKENS_OF_A_PROMPT + 1, most))
            shapes.add(StepShape(num_tokens, few, few))
            shapes.add(StepShape(num_tokens, many, num_tokens if num_tokens <= MOST_DRAFTED else many))
    return tuple(sorted(shapes))


def choose_shape(
    shapes: tuple[StepShape, ...], num_tokens: int, num_seqs: int, num_logits: int, *, is_decode: bool
) -> StepShape | None:
    """Return the smallest of ascending `shapes` that holds a step, None where none does.

    Args:
        shapes: what is recorded.
        num_tokens: of the step.
        num_seqs: of the step.
        num_logits: tokens whose logits are wanted.
        is_decode: whether each sequence has one token and wants its logits.
    """
    for shape in shapes[bisect_left(shapes, (num_tokens, 0)) :]:
        if shape.is_decode == is_decode and num_logits <= shape.num_logits:
            has_padding = not is_decode and shape.num_tokens > num_tokens
            if num_seqs + has_padding <= shape.num_seqs:
                return shape
    return None
