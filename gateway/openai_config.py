"""What can be set about OpenAI's API. Knows fields, not requests."""

from pydantic import Field

from gateway.strict import Strict
from gateway.tool_calls import Form


class OpenAiConfig(Strict):
    """OpenAI's API on the HTTP port."""

    tool_calls: Form = Field(
        default="auto",
        description="how the model writes calls of tools: as Hermes and Qwen, as Llama 3, either way; or all is text",
    )
