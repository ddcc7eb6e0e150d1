"""Completions over gRPC, as the commands stream and show them."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scripts.launcher import chat_command
from scripts.launcher.chat_command import Conversation
from scripts.launcher.client import Answer, Chunk, CompletionError, LlmClient, Sampling, chat_inputs, text_inputs
from scripts.launcher.paths import ROOT
from scripts.launcher.ports import free_ports
from tests.load import fake_kserve


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server, port = fake_kserve.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def client(url: str) -> Iterator[LlmClient]:
    with LlmClient(url) as opened:
        yield opened


def names(inputs: list) -> dict[str, str]:
    return {tensor.name(): tensor.datatype() for tensor in inputs}


def test_only_the_options_that_are_given_are_sent() -> None:
    assert names(text_inputs("hi", Sampling())) == {"text_input": "BYTES", "stream": "BOOL"}
    assert names(chat_inputs([{"role": "user", "content": "hi"}], Sampling(5, 0.0, 0.5, 3, 2**64 - 1))) == {
        "messages": "BYTES",
        "stream": "BOOL",
        "max_tokens": "INT32",
        "temperature": "FP32",
        "top_p": "FP32",
        "top_k": "INT32",
        "random_seed": "UINT64",
    }


def test_stream_yields_chunks_up_to_the_one_with_a_reason(client: LlmClient) -> None:
    chunks = list(client.stream(text_inputs("hello", Sampling(max_tokens=3)), timeout=10))
    assert [chunk.text for chunk in chunks] == ["h1 ", "h2 ", "h3 "]
    assert [chunk.finish_reason for chunk in chunks] == ["", "", "length"]
    assert chunks[-1].num_tokens == 3


def test_one_client_serves_one_stream_after_the_other(client: LlmClient) -> None:
    for count in (1, 2):
        assert len(list(client.stream(text_inputs("hello", Sampling(max_tokens=count)), timeout=10))) == count


def test_refusal_is_an_error_with_the_servers_words(client: LlmClient) -> None:
    with pytest.raises(CompletionError, match="the prompt is empty"):
        list(client.stream(text_inputs("refuse", Sampling()), timeout=10))


def test_leaving_a_stream_early_cancels_it(client: LlmClient) -> None:
    stream = client.stream(text_inputs("endless", Sampling()), timeout=10)
    next(stream)
    stream.close()
    assert list(client.stream(text_inputs("hello", Sampling(max_tokens=1)), timeout=10))


def test_silent_server_is_an_error_after_the_time(client: LlmClient) -> None:
    stream = client.stream(text_inputs("hello", Sampling(max_tokens=2)), timeout=0.0)
    with pytest.raises(CompletionError, match="silent for 0 s"):
        list(stream)


def test_only_a_model_that_is_served_is_ready(client: LlmClient) -> None:
    assert client.is_ready()
    assert not client.is_ready("other")
    with LlmClient(f"127.0.0.1:{free_ports(1)[0]}") as nobody:
        assert not nobody.is_ready()


def test_answer_shows_tokens_time_to_the_first_and_speed() -> None:
    answer = Answer(started=10.0)
    assert answer.summary() == "no tokens"
    for number in (1, 2, 3):
        answer.add(Chunk(f"{number}", "", number, 1))
    answer.first, answer.last = 10.25, 10.75
    assert answer.text == "123"
    assert answer.summary() == "3 tokens, first after 250 ms, 4 tokens/s"


def test_conversation_remembers_both_sides(client: LlmClient, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(Sampling(max_tokens=2), raw=False, system="be kind")
    conversation.ask(client, "hello")
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]
    assert capsys.readouterr().out == "[1 [2 \n"
    assert conversation.messages[-1]["content"] == "[1 [2 "


def test_refused_question_is_forgotten(client: LlmClient) -> None:
    conversation = Conversation(Sampling(), raw=True)
    with pytest.raises(CompletionError):
        conversation.ask(client, "refuse")
    assert conversation.messages == []


def test_interrupted_answer_keeps_what_was_said(client: LlmClient, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Answer):
        def add(self, chunk: Chunk) -> None:
            super().add(chunk)
            raise KeyboardInterrupt

    monkeypatch.setattr(chat_command, "Answer", Interrupted)
    answer = Conversation(Sampling(), raw=True).ask(client, "endless")
    assert answer.text == "e0 "


def chat(*options: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.launcher.chat_command", *options]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, input=text, capture_output=True, text=True, check=False
    )


def test_chat_prints_one_answer_on_stdout_and_its_speed_on_stderr(url: str) -> None:
    result = chat("--url", url, "--prompt", "hello", "--raw", "--max-tokens", "2")
    assert (result.returncode, result.stdout) == (0, "h1 h2 \n")
    assert "2 tokens, first after" in result.stderr


def test_chat_goes_on_until_its_input_ends(url: str) -> None:
    result = chat("--url", url, "--raw", "--max-tokens", "1", text="hello\n\n/new\nrefuse\nworld\n")
    assert result.returncode == 0
    assert "h1 \n" in result.stdout
    assert "w1 \n" in result.stdout
    assert "error: the prompt is empty" in result.stderr


def test_interrupt_ends_the_answer_and_not_the_conversation(url: str) -> None:
    command = [sys.executable, "-m", "scripts.launcher.chat_command", "--url", url, "--raw", "--max-tokens", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as talk:
        assert talk.stdin
        assert talk.stdout
        talk.stdin.write("endless\n")
        talk.stdin.flush()
        assert talk.stdout.read(5) == "> e0 "
        talk.send_signal(signal.SIGINT)
        out, err = talk.communicate("world\n", timeout=60)
    assert talk.returncode == 0
    assert "w1 " in out
    assert "[cancelled]" in err
    assert "Traceback" not in err


def test_chat_in_a_terminal_ends_with_ctrl_d(url: str) -> None:
    command = [sys.executable, "-m", "scripts.launcher.chat_command", "--url", url, "--raw", "--max-tokens", "1"]
    ours, its = pty.openpty()
    with subprocess.Popen(command, cwd=ROOT, stdin=its, stdout=its, stderr=its) as talk:
        os.close(its)
        shown = read_until(ours, b"> ")
        os.write(ours, b"hello\n")
        shown += read_until(ours, b"]\r\n> ")
        os.write(ours, b"\x04")
        assert talk.wait(timeout=60) == 0
    os.close(ours)
    assert b"h1 " in shown
    assert b"Traceback" not in shown


def read_until(terminal: int, end: bytes) -> bytes:
    """Return what a terminal shows up to `end`."""
    shown = b""
    while not shown.endswith(end):
        shown += os.read(terminal, 1024)
    return shown


def test_chat_without_any_input_ends_at_once(url: str) -> None:
    command = f"exec {sys.executable} -m scripts.launcher.chat_command --url {url} --raw <&-"
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr


def test_chat_says_so_where_nothing_listens() -> None:
    result = chat("--url", f"127.0.0.1:{free_ports(1)[0]}", "--prompt", "hello")
    assert result.returncode == 2
    assert "Cure: run scripts/serve" in result.stderr
    assert "Traceback" not in result.stderr


def test_chat_fails_where_its_one_question_is_refused(url: str) -> None:
    result = chat("--url", url, "--prompt", "refuse", "--raw")
    assert (result.returncode, result.stdout) == (1, "")
