"""Sending tokens to experts that are spread over groups of ranks.

Knows who holds which expert and two ways to get the answers to everybody. Does not know what experts are made of.

Every rank knows all tokens and where the router sends them, so nobody needs to tell counts.
- *Sum*: each group computes its experts' answers for all tokens, and one sum over all ranks adds them up. (All-gather
  and reduce-scatter with the gather left out, since attention's sum has already brought every token everywhere.)
- *Exchange*: each group looks after a share of the tokens, sends each of them to the groups that hold its experts
  (all-to-all), gets the answers back, adds them up, and the groups join their tokens (all-gather). How many rows go
  where must be known on the host, so it is for CPUs: a GPU would have to be waited for in every layer, and nothing of
  it could be recorded. In shapes that hold for any routing (a share of n / groups tokens to each group) it sends 3 n
  rows where the sum sends 2 n, so on GPUs it is always the sum.

Sources: GShard (arXiv 2006.16668) for the exchange.
"""

from collections.abc import Callable, Sequence

import torch

from engine.parallel.collectives import Collectives
from engine.parallel.config import Place
from engine.parallel.exchange_rule import prefers_exchange
from engine.parallel.placement import ExpertPlacement
from engine.parallel.shares import even_share
from kernels.expert_dispatch import ExpertDispatch

Expert = Callable[[torch.Tensor], torch.Tensor]


class ParallelDispatch:
    """`kernels.expert_dispatch` over the experts of all groups; `experts` are this rank's parts of its group's."""

    def __init__(
        self,
        placement: ExpertPlacement,
        place: Place,
        ranks: Collectives,
        dispatch: ExpertDispatch,
        device: torch.device,
    ) -> None:
        """Take the layer's placement, the operation for the experts at hand, and where tokens will lie."""
        self.place = place
        self.ranks = ranks
        self.dispatch = dispatch
        num_experts = 1 + max(max(experts) for experts in placement.groups)
        holders = [placement.holders(expert) for expert in range(num_experts)]
        most = max(map(len, holders))
        self._num_holders = torch.tensor([len(groups) for groups in holders]).to(device)
        self._holders = torch.tensor([groups + [groups[0]] * (most - len(groups)) for groups in holders]).to(device)
        local = {expert: index for index, expert in enumerate(placement.groups[place.ep_rank])}
        self._local = torch.tensor([local.get(expert, len(local)) for expert in range(num_experts)]).to(device)

    def __call__(
        self, hidden: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, experts: Sequence[Expert]
    ) -> torch.Tensor:
        """Map [T, C] to [T, C], complete on every rank; see the contract in `kernels.expert_dispatch`."""
        if self.place.config.ep == 1:
            return self.ranks.sum_all(self.dispatch(hidden, expert_ids, weights, experts))
        owners = self.owners(expert_ids)
        if hidden.device.type == "cpu" and prefers_exchange(len(hidden), expert_ids.shape[1], self.place.config.ep):
            return self.by_exchange(hidden, expert_ids, weights, experts, owners)
        return self.by_sum(hidden, expert_ids, weights, experts, owners)

    def owners(self, expert_ids: torch.Tensor) -> torch.Tensor:
        """Return the group that computes each pair of token and expert, [T, A]."""
        turns = torch.arange(len(expert_ids), device=expert_ids.device).unsqueeze(1) % self._num_holders[expert_ids]
        return self._holders[expert_ids, turns]

    def by_sum(
        self,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        experts: Sequence[Expert],
        owners: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the pairs that are this group's; the others count as zero."""
        is_other = owners != self.place.ep_rank
        local = self._local[expert_ids].masked_fill_(is_other, len(experts))
        mine = weights.masked_fill(is_other, 0.0)
        return self.ranks.sum_all(self.dispatch(hidden, local, mine, [*experts, torch.zeros_like]))

    def by_exchange(
        self,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        experts: Sequence[Expert],
        owners: torch.Tensor,
    ) -> torch.Tensor:
        """Look after a share of the tokens, and compute what other groups send."""
        num_groups, me = self.place.config.ep, self.place.ep_rank
        shares = [even_share(len(hidden), num_groups, group) for group in range(num_groups)]
        counts = [owners[s.start : s.stop].flatten().bincount(minlength=num_groups).tolist() for s in shares]
        mine = slice(shares[me].start, shares[me].stop)
        order = owners[mine].flatten().argsort(stable=True)
        rows = hidden[mine][order // expert_ids.shape[1]]
        sends, takes = counts[me], [count[me] for count in counts]
        taken = self.ranks.exchange(rows, sends, takes)
        ids = self._local[expert_ids][owners == me]  # in the order of tokens, so that of groups, as they arrive
        answers = self.ranks.exchange(self._compute(taken, ids, experts), takes, sends)
        by_pair = torch.empty_like(answers)
        by_pair[order] = answers
        by_token = by_pair.view(*expert_ids[mine].shape, hidden.shape[1])
        summed = torch.bmm(weights[mine].unsqueeze(1), by_token).squeeze(1)
        return self.ranks.join(self.ranks.sum_within(summed), [len(share) for share in shares])

    def _compute(self, rows: torch.Tensor, ids: torch.Tensor, experts: Sequence[Expert]) -> torch.Tensor:
        if not len(rows):
            return rows
        return self.dispatch(rows, ids.unsqueeze(1), rows.new_ones(len(rows), 1), experts)
