"""How long requests wait for their first token, between tokens, and altogether.

Knows outputs and their timings. Does not know metrics' names beyond those it feeds, or who exports them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.outputs import RequestOutput


@dataclass(slots=True)
class OutputTimer:
    """Turns outputs, as they arrive, into observed durations; used by one thread.

    Attributes:
        observe: takes a histogram's name, seconds, and how many times.
        clock: the machine's monotonic clock, as in `Timings`.
    """

    observe: Callable[[str, float, int], None]
    clock: Callable[[], float]
    _last_seen: dict[tuple[int, int], float] = field(default_factory=dict)

    def see(self, output: RequestOutput) -> None:
        """Take the durations that `output` makes known."""
        now = self.clock()
        key = output.request_id, output.sequence_index
        previous = self._last_seen.pop(key, None)
        count = len(output.token_ids)
        times = output.timings
        if previous is None and count and times.first_token and output.sequence_index == 0:
            self.observe("llm_queue_seconds", times.scheduled - times.arrived, 1)
            self.observe("llm_prefill_seconds", times.first_token - times.scheduled, 1)
            self.observe("llm_ttft_seconds", times.first_token - times.arrived, 1)
        elif previous is not None and count:
            self.observe("llm_itl_seconds", (now - previous) / count, count)
        if output.finish_reason is None:
            self._last_seen[key] = now if count else previous or now
        elif output.ends_request and times.finished and times.arrived:
            self.observe("llm_e2e_seconds", times.finished - times.arrived, 1)
            if times.first_token:
                self.observe("llm_decode_seconds", times.finished - times.first_token, 1)
            elif times.scheduled:  # an embedding, or over during prefill
                self.observe("llm_queue_seconds", times.scheduled - times.arrived, 1)
