"""What a model can never serve, found before a request costs anything.

Knows token ids, lengths and the model's limits. Does not know tensors or text. Preprocessing, the client and the core
ask the same question here.
"""

from collections.abc import Sequence

from engine.errors import InvalidRequest, PromptTooLong
from engine.messages import ModelInfo
from engine.sampling_params import SamplingParams
from engine.task_params import DEFAULT_TASK, TaskParams


def check_request(
    prompt_ids: Sequence[int],
    params: SamplingParams,
    info: ModelInfo,
    resume_ids: Sequence[int] = (),
    task: TaskParams = DEFAULT_TASK,
) -> None:
    """Refuse what the model can never serve.

    Args:
        prompt_ids: the prompt.
        params: the options.
        info: the model's limits.
        resume_ids: the completion's first tokens, where it is to be continued.
        task: what to compute.

    Raises:
        InvalidRequest: the prompt is empty, ids lie outside the vocabulary, or more is to be resumed than asked for; or
            an embedding is asked for with options of a completion.
        PromptTooLong: prompt and output together exceed the model's limit.
    """
    if not prompt_ids:
        raise InvalidRequest("the prompt is empty: at least 1 token is needed")
    biased = [token_id for token_id, _ in params.logit_bias]
    lists = {"prompt": prompt_ids, "stop_token_ids": params.stop_token_ids, "logit_bias": biased}
    lists["resume_token_ids"] = resume_ids
    for name, ids in lists.items():
        _check_ids(name, ids, info.vocab_size)
    if task.embed:
        _check_embedding(prompt_ids, params, info, resume_ids)
        return
    if params.speculation == "draft" and not info.has_draft_model:
        raise InvalidRequest("speculation by draft is not possible: the engine has no draft_model")
    if resume_ids and params.n > 1:
        raise InvalidRequest(f"resume_token_ids can continue one sequence only, and n is {params.n}")
    if params.max_tokens is not None and len(resume_ids) > params.max_tokens:
        raise InvalidRequest(f"resume_token_ids holds {len(resume_ids)} tokens; max_tokens is {params.max_tokens}")
    _check_length(len(prompt_ids), params.max_tokens, len(resume_ids), info.max_model_len)


def resumed_output(prompt_ids: Sequence[int], params: SamplingParams, resume_ids: Sequence[int]) -> tuple[int, ...]:
    """Return those of the delivered tokens that belong to the completion: with `echo` the prompt's came first.

    Raises:
        InvalidRequest: the delivered tokens do not begin with the echoed prompt.
    """
    if not params.echo:
        return tuple(resume_ids)
    num_echoed = min(len(resume_ids), len(prompt_ids))
    if list(resume_ids[:num_echoed]) != list(prompt_ids[:num_echoed]):
        raise InvalidRequest("resume_token_ids do not begin with the prompt, although echo was asked for")
    return tuple(resume_ids[num_echoed:])


def _check_embedding(
    prompt_ids: Sequence[int], params: SamplingParams, info: ModelInfo, resume_ids: Sequence[int]
) -> None:
    if params != SamplingParams():
        raise InvalidRequest(f"embed takes no options of sampling or stopping, got {params.to_json()}")
    if resume_ids:
        raise InvalidRequest(f"embed gives no tokens to resume, got {len(resume_ids)} resume_token_ids")
    if len(prompt_ids) > info.max_model_len:
        raise PromptTooLong(len(prompt_ids), info.max_model_len)


def _check_length(num_prompt_tokens: int, max_tokens: int | None, num_resumed: int, max_model_len: int) -> None:
    """Refuse what has no room for the output that was asked for; that is one token where nothing was said."""
    if max_tokens is not None:
        num_tokens, output = max_tokens, f"with max_tokens {max_tokens} that is"
    elif num_resumed:
        num_tokens, output = num_resumed, f"with {num_resumed} resume_token_ids that is"
    else:
        num_tokens, output = 1, "with one token of output that is"
    if num_prompt_tokens + num_tokens > max_model_len:
        raise PromptTooLong(num_prompt_tokens, max_model_len, output)


def _check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    worst = min(ids, default=0) if min(ids, default=0) < 0 else max(ids, default=0)
    if not 0 <= worst < vocab_size:
        raise InvalidRequest(f"{name} holds the token id {worst}; the vocabulary has ids 0 to {vocab_size - 1}")
