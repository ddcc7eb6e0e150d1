"""Each reply has what it needs: everything at a sequence's ends, little in between."""

from engine.outputs import FinishReason, RequestOutput, Timings
from engine.reply_stream import Reply
from engine.reply_tensors import ReplyTensors
from engine.text.detokenizer import Chunk

ALWAYS = {"text_window", "token_ids", "finish_reason", "token_index", "prompt_tokens", "completion_tokens"}
FACTS = {
    "cached_tokens",
    "preemptions",
    "queue_seconds",
    "ttft_seconds",
    "e2e_seconds",
    "clock_ns",
    "detokenize_seconds",
}


def spell(token_id: int) -> bytes:
    return b"\xff" * token_id


def reply(reason: FinishReason | None = None, log_probs: list[float] | None = None, sequence: int = 0) -> Reply:
    times = Timings(arrived=1.0, scheduled=2.0, first_token=3.0)
    last = RequestOutput(1, [5], finish_reason=reason, timings=times, sequence_index=sequence)
    return Reply(Chunk([5], []), log_probs or [], 0, last)


def test_the_ends_of_a_stream_have_all_facts_and_the_middle_has_its_tokens_only() -> None:
    tensors = ReplyTensors(spell)
    first, middle = tensors.arrays(reply()), tensors.arrays(reply())
    last = tensors.arrays(reply(FinishReason.LENGTH))
    assert first.keys() == last.keys() == ALWAYS | FACTS
    assert middle.keys() == ALWAYS
    assert first["queue_seconds"].tolist() == [1.0]


def test_what_a_request_asked_for_comes_with_every_reply() -> None:
    tensors = ReplyTensors(spell, num_sequences=2)
    tensors.arrays(reply())
    assert tensors.arrays(reply(log_probs=[-1.0])).keys() == ALWAYS | {"log_probs", "token_bytes", "sequence_index"}


def test_logged_tokens_come_with_their_bytes_text_or_not() -> None:
    assert ReplyTensors(spell).arrays(reply(log_probs=[-1.0]))["token_bytes"].tolist() == [b"\xff" * 5]


def test_each_sequence_has_a_first_reply_of_its_own() -> None:
    tensors = ReplyTensors(spell, num_sequences=2)
    tensors.arrays(reply())
    second = tensors.arrays(reply(sequence=1))
    assert second.keys() >= FACTS
    assert second["sequence_index"].tolist() == [1]


def test_draft_tokens_are_told_where_there_were_any() -> None:
    made = ReplyTensors(spell).arrays(
        Reply(Chunk([5], []), [], 0, RequestOutput(1, num_draft_tokens=9, num_accepted_tokens=4))
    )
    assert made["draft_tokens"].tolist() == [9, 4]
