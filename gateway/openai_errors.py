"""OpenAI-shaped errors, and the statuses that gRPC's codes become.

Knows bodies, statuses and headers. Does not know what went wrong.
"""

import math
import re

from starlette.responses import JSONResponse, Response

from gateway.instance_errors import ENSEMBLE
from gateway.kserve_messages import KserveError

STATUSES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}

TOO_LONG = re.compile(r"(the prompt|messages) has .*(the model's limit of (?P<tokens>\d+) tokens|at most \d+ can)")
OF_PROMPT = re.compile(r"(the )?prompt |text_input |input_ids |messages|(the|this) model.* chat template")
OF_FIELDS = (  # how else the model's complaints begin, and of what
    (re.compile(r"a stop string "), "stop"),
    (re.compile(r"guided\.ebnf |tools "), "tools"),
    (re.compile(r"guided\."), "response_format"),
    (re.compile(r"(this engine serves no|there is no|the) adapter"), "adapter"),
)
OF_NAMED = re.compile(r"(adapter|logit_bias|max_tokens|min_tokens|n|stop_token_ids|top_logprobs) ")


class ApiError(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Keep what the body and the headers say."""
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        kind = TYPES.get(status, "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """Return the answer itself."""
        return JSONResponse(self.body, self.status, self.headers)


def of_kserve(error: KserveError, prompt: str | None = None) -> ApiError:
    """Return the answer that a failed request becomes, whose prompt is in this field."""
    status = STATUSES.get(error.code, 500)
    if status == 429 and not error.may_retry:
        status = 413
    headers = None if error.retry_after is None else retry_headers(error.retry_after)
    message = ENSEMBLE.sub("", error.message)
    if status != 400:
        return ApiError(status, message, code=error.code.lower(), headers=headers)
    if too_long := TOO_LONG.match(message):
        told = f"; this model's maximum context length is {tokens} tokens" if (tokens := too_long["tokens"]) else ""
        code = "context_length_exceeded"  # and OpenAI's words, which clients look for
        return ApiError(400, message + told, prompt, code)
    return ApiError(400, message, _field_of(message, prompt), error.code.lower(), headers)


def _field_of(message: str, prompt: str | None) -> str | None:
    """Return the field that the model complains of, None where it does not say so at once."""
    if OF_PROMPT.match(message):
        return prompt
    if named := OF_NAMED.match(message):
        return named[1]
    return next((field for form, field in OF_FIELDS if form.match(message)), None)


def retry_headers(seconds: float) -> dict[str, str]:
    """Return when to try again, in HTTP's whole seconds and in the milliseconds that OpenAI's client reads first."""
    return {"retry-after": str(max(1, math.ceil(seconds))), "retry-after-ms": str(max(1, math.ceil(1000 * seconds)))}
