"""What has been asked and answered; refuses a second answer, tokens after the end, and answers nobody asked for."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.outputs import FinishReason, RequestOutput
from tests.reliability.random_requests import RandomRequest


@dataclass
class Account:
    """One request's answers, by sequence."""

    request: RandomRequest
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, FinishReason] = field(default_factory=dict)


@dataclass
class Ledger:
    """Accounts of all requests by id."""

    open: dict[int, Account] = field(default_factory=dict)
    ended: dict[int, Account] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    reasons: Counter[FinishReason] = field(default_factory=Counter)

    def take_all(self, outputs: Iterable[RequestOutput]) -> None:
        """Book what one call has returned."""
        for output in outputs:
            self.take(output)

    def take(self, output: RequestOutput) -> None:
        """Book an output and check that it may come now."""
        account = self.open[output.request_id]
        index, params = output.sequence_index, account.request.params
        assert index not in account.reasons, "a sequence has two ends"
        assert index < params.n
        tokens = account.token_ids.setdefault(index, [])
        tokens += output.token_ids
        if output.log_probs is not None:
            assert len(output.log_probs) == len(output.token_ids)
        assert len(tokens) + len(account.request.resume_ids) <= (params.max_tokens or 0)
        assert output.num_accepted_tokens <= output.num_draft_tokens
        if output.finish_reason is None:
            return
        account.reasons[index] = output.finish_reason
        assert output.ends_request == (output.finish_reason is FinishReason.ERROR or len(account.reasons) == params.n)
        if output.ends_request:
            self._close(output, output.finish_reason)

    def _close(self, output: RequestOutput, reason: FinishReason) -> None:
        self.ended[output.request_id] = self.open.pop(output.request_id)
        self.reasons[reason] += 1
        if reason is FinishReason.ERROR:
            assert output.error
            self.errors[output.request_id] = output.error
