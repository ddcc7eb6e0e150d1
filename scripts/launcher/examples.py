"""Ready-to-paste commands against a running system.

Knows the addresses. Does not know whether anything listens: whoever prints an example has checked it.
"""

TRITONCLIENT = """\
.venv/bin/python - <<'END'
import numpy as np, tritonclient.grpc as triton
client = triton.InferenceServerClient("{grpc_url}")
prompt = triton.InferInput("text_input", [1], "BYTES")
prompt.set_data_from_numpy(np.array([b"Once upon a time"], dtype=np.object_))
limit = triton.InferInput("max_tokens", [1], "INT32")
limit.set_data_from_numpy(np.array([64], dtype=np.int32))
client.start_stream(lambda result, error: print(error or result.as_numpy("text_output")[0].decode(), end=""))
client.async_stream_infer("llm", [prompt, limit])
client.stop_stream()
END"""

CURL = """\
curl -N http://{http_url}/v2/models/llm/generate_stream \\
  -d '{{"text_input": "Once upon a time", "max_tokens": 64, "stream": true}}'"""

OPENAI = """\
.venv/bin/python - <<'END'
from openai import OpenAI
client = OpenAI(base_url="http://{http_url}/v1", api_key="none")
for event in client.completions.create(model="llm", prompt="Once upon a time", max_tokens=64, stream=True):
    print(event.choices[0].text, end="", flush=True)
END"""


def tritonclient_example(grpc_url: str) -> str:
    """Return a shell command that streams a completion with tritonclient."""
    return TRITONCLIENT.format(grpc_url=grpc_url)


def curl_example(http_url: str) -> str:
    """Return a shell command that streams a completion from one tritonserver's own HTTP port."""
    return CURL.format(http_url=http_url)


def openai_example(http_url: str) -> str:
    """Return a shell command that streams a completion with OpenAI's client."""
    return OPENAI.format(http_url=http_url)
