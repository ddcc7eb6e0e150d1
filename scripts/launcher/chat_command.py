"""`scripts/chat`: talk to a running server in the terminal.

Knows the options and the conversation. Does not know how the server works: it is one more tritonclient.
"""

import signal
import sys
from typing import Annotated

import typer

from scripts.launcher.client import Answer, CompletionError, LlmClient, Sampling, chat_inputs, text_inputs
from scripts.launcher.errors import EXIT_CANNOT_START
from scripts.launcher.options import MaxTokens, Seed, Temperature, TopK, TopP
from scripts.launcher.progress import say

DEFAULT_MAX_TOKENS = 256
READY_SECONDS = 5.0

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Conversation:
    """The messages so far, and how the next one is asked for."""

    def __init__(self, sampling: Sampling, *, raw: bool, system: str | None = None) -> None:
        self.sampling = sampling
        self.raw = raw
        self.messages = [{"role": "system", "content": system}] if system else []

    def ask(self, client: LlmClient, text: str) -> Answer:
        """Stream the answer to stdout and remember it; a Ctrl-C ends the answer where it is.

        Raises:
            CompletionError: the server refused or broke the answer; the conversation is as before.
        """
        question = {"role": "user", "content": text}
        inputs = (
            text_inputs(text, self.sampling) if self.raw else chat_inputs([*self.messages, question], self.sampling)
        )
        answer = Answer()
        try:
            for chunk in client.stream(inputs):
                print(chunk.text, end="", flush=True)
                answer.add(chunk)
        except KeyboardInterrupt:
            say("\n[cancelled]")
        self.messages += [question, {"role": "assistant", "content": answer.text}]
        print()
        return answer


@app.command()
def chat(
    *,
    url: Annotated[str, typer.Option(help="Gateway or tritonserver, as HOST:GRPC_PORT.")] = "127.0.0.1:8001",
    prompt: Annotated[str | None, typer.Option(help="Ask this once, print the answer, and end.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text itself, without a chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
) -> None:
    """Talk to a served model. Ctrl-C ends the answer, Ctrl-D (or /quit) the conversation, /new begins another one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this in the background
    sampling = Sampling(max_tokens, temperature, top_p, top_k, seed)
    with LlmClient(url) as client:
        if not client.is_ready(timeout=READY_SECONDS):
            say(f"error: no server with model `llm` answers at {url}. Cure: run scripts/serve, or give --url HOST:PORT")
            raise typer.Exit(EXIT_CANNOT_START)
        conversation = Conversation(sampling, raw=raw, system=system)
        if prompt is not None:
            raise typer.Exit(0 if _exchange(conversation, client, prompt) else 1)
        _talk(conversation, client, system)


def _talk(conversation: Conversation, client: LlmClient, system: str | None) -> None:
    say("Ctrl-C ends an answer, Ctrl-D the conversation, /new begins another one")
    while (text := _read_line()) is not None and text != "/quit":
        if text == "/new":
            conversation = Conversation(conversation.sampling, raw=conversation.raw, system=system)
        elif text:
            _exchange(conversation, client, text)


def _exchange(conversation: Conversation, client: LlmClient, text: str) -> bool:
    try:
        answer = conversation.ask(client, text)
    except CompletionError as error:
        say(f"\nerror: {error}")
        return False
    say(f"[{answer.summary()}]")
    return True


def _read_line() -> str | None:
    """Return what is typed next, None where nothing more can come: an end of input, or no input at all (`<&-`)."""
    if sys.stdin is None:
        return None
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        say("")
        return None


if __name__ == "__main__":
    app(prog_name="scripts/chat")
