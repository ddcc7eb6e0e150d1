"""Steps of no request: to measure memory with, and to compile and touch what requests will need.

Knows plans. Does not know tensors. All tokens lie in block 0, whose content is rubbish then.
"""

from collections.abc import Iterator
from itertools import product

from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.step_plan import StepPlan

SIZE_CLASSES = (1, 16, 17)  # compilers of kernels tell these apart: one, divisible by 16, and any other number
DRAWN = SamplingParams(temperature=1.0, top_p=0.9)
OPTIONS = (
    SamplingParams(),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_k=5, min_p=0.1),
    SamplingParams(repetition_penalty=1.1, presence_penalty=0.1, logit_bias=((0, 1.0),)),
    SamplingParams(logprobs=True, top_logprobs=2),
)


def dummy_step(
    num_seqs: int, num_tokens: int, block_size: int, *, num_cached: int = 0, params: SamplingParams = DRAWN
) -> StepPlan:
    """Return a step of so many sequences, each with `num_tokens` tokens behind `num_cached` computed ones."""
    length = num_cached + num_tokens
    table = [0] * -(-length // block_size)
    plan = StepPlan()
    for number in range(num_seqs):
        sequence = Sequence(number, [0] * length, length, params, length + 1, frozenset())
        sequence.block_table = list(table)
        sequence.num_computed_tokens = num_cached
        plan.add(sequence, num_tokens)
    return plan


def steps_of_all_classes(max_num_seqs: int, max_model_len: int, block_size: int) -> Iterator[StepPlan]:
    """Yield steps in which every size that a kernel is told of is of every class, and every option of sampling is used.

    The sizes are the numbers of sequences, of tokens and of blocks that a sequence has.
    """
    for num_seqs, num_tokens, num_blocks in product(SIZE_CLASSES, SIZE_CLASSES, SIZE_CLASSES):
        num_cached = num_blocks * block_size - num_tokens
        if num_seqs <= max_num_seqs and num_cached >= 0 and num_blocks * block_size < max_model_len:
            yield dummy_step(num_seqs, num_tokens, block_size, num_cached=num_cached)
    for params in OPTIONS:
        for num_seqs in SIZE_CLASSES:
            if num_seqs <= max_num_seqs:
                yield dummy_step(num_seqs, 1, block_size, params=params)
