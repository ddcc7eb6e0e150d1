"""Steps of no request: to measure memory with, and to compile and touch what requests will need.

Knows plans. Does not know tensors. All tokens lie in block 0, whose content is rubbish then.
"""

from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.step_plan import StepPlan

DRAWN = SamplingParams(temperature=1.0, top_p=0.9)


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
