"""Texts of errors, as our models and Triton write them, and the codes they mean."""

import pytest

from engine.errors import GRPC_CODES, EngineUnavailable, InvalidRequest, QueueFull, RequestFailed
from engine.wire_errors import triton_code, triton_error
from gateway.instance_errors import failure_of_message, failure_of_text
from gateway.status import Code
from tests.gateway.protos import pb


@pytest.mark.parametrize("code", sorted(set(GRPC_CODES.values())))
@pytest.mark.parametrize("prefix", ["", "in ensemble 'llm', "])
def test_every_code_of_the_engine_is_known_by_what_its_models_write(code: str, prefix: str) -> None:
    _, text = triton_code(code, "what went wrong: UNAVAILABLE: or not")
    assert failure_of_text(prefix + text).code is Code[code]


@pytest.mark.parametrize(
    ("error", "is_retryable"),
    [
        (QueueFull("3 requests wait", 3), True),
        (EngineUnavailable("the engine core is restarting"), True),
        (InvalidRequest("top_p must be at most 1"), False),
        (RequestFailed("a request broke"), False),
    ],
)
def test_what_another_instance_may_do_better_is_retryable(error: Exception, is_retryable: bool) -> None:
    _, text = triton_error(error)  # type: ignore[arg-type]
    assert failure_of_text(f"in ensemble 'llm', {text}").is_retryable is is_retryable


@pytest.mark.parametrize(
    ("what", "is_death"),
    [
        ("ended unexpectedly (exit code -9) while the request was running", True),
        ("is being shut down while the request was running", False),
        ("has just died; it is being restarted", False),
    ],
)
def test_an_engine_that_died_of_its_requests_is_told_from_one_that_refuses(what: str, is_death: bool) -> None:
    _, text = triton_error(EngineUnavailable(f"the engine core {what}"))
    assert failure_of_text(f"in ensemble 'llm', {text}").is_death is is_death


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("in ensemble 'llm', Stub process 'llm_engine_0_0' is not healthy.", Code.UNAVAILABLE),
        ("Request for unknown model: 'llm' is not found", Code.NOT_FOUND),
        ("in ensemble 'llm', Request for unknown model: 'llm_engine' has no available versions", Code.UNAVAILABLE),
        ("Request for unknown model: 'llm' version 1 is not at ready state", Code.UNAVAILABLE),
        ("Server is stopping, scheduler for model has stopped accepting new inference requests", Code.UNAVAILABLE),
        ("Exceeds maximum queue size", Code.RESOURCE_EXHAUSTED),
        ("Request timeout expired", Code.DEADLINE_EXCEEDED),
        ("Failed to process the request(s) for model instance 'x', message: ValueError", Code.INTERNAL),
        ("[request id: 1] unexpected inference input 'x' for model 'llm'", Code.INVALID_ARGUMENT),
        ("unknown sampling parameter 'UNAVAILABLE: '", Code.INVALID_ARGUMENT),
        ("", Code.INVALID_ARGUMENT),
    ],
)
def test_tritons_own_forms_and_words_without_a_code(text: str, code: Code) -> None:
    failure = failure_of_text(text)
    assert (failure.code, failure.message) == (code, text)


def test_an_encoded_error_is_read_and_a_malformed_one_is_an_internal_error() -> None:
    encoded = pb.ModelStreamInferResponse(error_message="UNAVAILABLE: ä").SerializeToString()
    assert failure_of_message(encoded).code is Code.UNAVAILABLE
    assert failure_of_message(encoded[:-1]).code is Code.INTERNAL
