"""What a model can never serve, found before a request costs anything.

Knows token ids, lengths and the model's limits. Does not know tensors or text. Preprocessing, the client and the core
ask the same question here.
"""

from engine.errors import InvalidRequest, PromptTooLong
from engine.messages import ModelInfo
from engine.sampling_params import SamplingParams


def check_request(prompt_ids: list[int], params: SamplingParams, info: ModelInfo) -> None:
    """Refuse what the model can never serve.

    Raises:
        InvalidRequest: the prompt is empty or has ids outside the vocabulary.
        PromptTooLong: prompt and output together exceed the model's limit.
    """
    if not prompt_ids:
        raise InvalidRequest("the prompt is empty: at least 1 token is needed")
    for name, ids in (("prompt", prompt_ids), ("stop_token_ids", params.stop_token_ids)):
        worst = min(ids, default=0) if min(ids, default=0) < 0 else max(ids, default=0)
        if not 0 <= worst < info.vocab_size:
            raise InvalidRequest(
                f"{name} holds the token id {worst}; the vocabulary has ids 0 to {info.vocab_size - 1}"
            )
    max_tokens = params.max_tokens if params.max_tokens is not None else 1
    if len(prompt_ids) + max_tokens > info.max_model_len:
        raise PromptTooLong(len(prompt_ids), max_tokens, info.max_model_len)
