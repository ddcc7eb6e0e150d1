"""When expert groups on CPUs send each other tokens instead of adding up answers for all of them.

Knows numbers; the engine and `scripts/plan` go by it. How both are done, and why never on GPUs, says
`engine.parallel.experts`.
"""

EXCHANGE_TOKENS = 512


def prefers_exchange(num_tokens: float, num_chosen: int, num_groups: int) -> bool:
    """Whether the exchange is cheaper than the sum.

    Of n tokens a group sends and gets, in units of their rows, 2 n by the sum and n (1 + 2 A / groups) by the exchange,
    which needs three operations instead of one, by Gloo. Two cores, 2,048 channels, A = 1, ms at 64 / 256 / 1,024
    tokens (`scripts/benchmark/expert_exchange.py`): 4 groups, sum 2.2 / 10.6 / 43.3, exchange 8.9 / 9.9 / 30.8; 2
    groups, sum 0.9 / 5.2 / 18.5, exchange 2.7 / 7.1 / 19.2.
    """
    return num_tokens >= EXCHANGE_TOKENS and 2 * num_chosen < num_groups
