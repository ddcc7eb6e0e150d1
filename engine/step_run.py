"""What a step has computed: on its way from the device, and read.

Knows pending tensors and what they belong to. Does not know the model, scheduling or what tokens mean to anybody.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from engine.device_link import DeviceLink, Download
from engine.errors import RequestFailed
from engine.log_probs import LoggedRows
from engine.sampler import PendingTokens, SampledTokens, sample
from engine.sequence import Sequence
from engine.step_plan import ScheduledSequence

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepRun:
    """What a step says about the sequences whose last token it computed.

    Attributes:
        items: these sequences.
        sampled: the tokens behind their last ones, in the same order.
        draft_logits: [D, V], behind each draft token, in the same order.
        states: hidden states, [n, C], of the last n of the step's tokens, of items that pool them.
        link: the way to the device.
    """

    items: list[ScheduledSequence]
    sampled: SampledTokens
    draft_logits: torch.Tensor
    states: list[tuple[ScheduledSequence, np.ndarray]]
    link: DeviceLink

    @torch.inference_mode()
    def sample_behind(self, indexes: list[int], number: int) -> SampledTokens:
        """Sample behind draft token `number`, from 1, of some of the items; it is their sequences' last one by now."""
        starts = np.cumsum([0, *(len(item.draft_ids) for item in self.items)])
        try:
            [rows] = self.link.upload([torch.from_numpy(starts[indexes] + number - 1)])
            return sample(self.draft_logits[rows], [self.items[index].sequence for index in indexes], self.link)
        except Exception as error:
            logger.exception("%d sequences could not be sampled behind their drafts", len(indexes))
            return SampledTokens.failed(RequestFailed(f"the next token could not be chosen: {error!r}"), len(indexes))


@dataclass(slots=True)
class PendingPrompts:
    """Log-probabilities of prompts' tokens.

    Attributes:
        prompts: sequences, and how many of the rows, in order, belong to each.
        logged: the rows.
        download: brings their values to the host.
    """

    prompts: list[tuple[Sequence, int]]
    logged: LoggedRows
    download: Download

    def read(self) -> None:
        """Wait for the values and add them to their sequences."""
        log_probs, tops = self.logged.read(self.download.wait())
        start = 0
        for sequence, count in self.prompts:
            sequence.prompt_log_probs += log_probs[start : start + count]
            for top in tops[start : start + count]:
                sequence.prompt_top.extend(top)
            start += count


@dataclass(slots=True)
class PendingStep:
    """A step that the device computes, or has computed; `tokens` and the like are as in `StepRun`."""

    items: list[ScheduledSequence]
    tokens: PendingTokens
    draft_logits: torch.Tensor
    prompts: PendingPrompts | None
    pooling: list[tuple[ScheduledSequence, int]]
    pooled: Download
    link: DeviceLink

    def read(self) -> StepRun:
        """Wait for everything; prompts' log-probabilities go to their sequences."""
        sampled = self.tokens.read()
        if self.prompts is not None:
            self.prompts.read()
        states: list[tuple[ScheduledSequence, np.ndarray]] = []
        if self.pooling:
            ends = np.cumsum([count for _, count in self.pooling])
            parts = np.split(self.pooled.wait()[0], ends[:-1])
            states = [(item, part) for (item, _), part in zip(self.pooling, parts, strict=True)]
        return StepRun(self.items, sampled, self.draft_logits, states, self.link)


def read_or_fail(step: PendingStep) -> StepRun:
    """Wait for a step; what goes wrong on the way from the device, other than the device, is an error of each row.

    Raises:
        torch.AcceleratorError: the device has failed.
    """
    try:
        return step.read()
    except torch.AcceleratorError:
        raise
    except Exception as error:
        logger.exception("a step of %d sequences could not be read", len(step.items))
        failed = SampledTokens.failed(RequestFailed(f"the step could not be read: {error!r}"), len(step.items))
        return StepRun(step.items, failed, step.draft_logits, [], step.link)


def log_prompts(logits: torch.Tensor, prompts: list[tuple[Sequence, int]], link: DeviceLink) -> PendingPrompts | None:
    """Begin to work out what the rows of `logits` say about the prompts' next tokens."""
    if not prompts:
        return None
    next_ids: list[int] = []
    num_top: list[int] = []
    for sequence, count in prompts:
        known = len(sequence.prompt_log_probs)
        next_ids += sequence.token_ids[known + 1 : known + 1 + count]
        num_top += [sequence.params.top_logprobs] * count
    [moved] = link.upload([torch.tensor(next_ids, dtype=torch.int64)])
    logged = LoggedRows(logits, num_top)
    return PendingPrompts(prompts, logged, link.download(logged.of(moved)))
