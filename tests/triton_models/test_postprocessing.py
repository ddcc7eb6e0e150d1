"""One response for each chunk, in order, and a malformed one harms nobody else."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from engine.text.detokenizer import Chunk
from engine.text.text_window import pack_window
from tests.triton_models.fake_pb_utils import InferenceRequest, TritonError


@pytest.fixture
def model(load_adapter: Callable[[str], ModuleType]) -> Any:
    made = load_adapter("postprocessing").TritonPythonModel()
    made.initialize({"model_name": "postprocessing"})
    yield made
    made.finalize()


def window(*values: int) -> InferenceRequest:
    return InferenceRequest(text_window=np.array(values, dtype=np.int32))


def test_chunks_become_text_in_order(model: Any):
    ids = model._tokenizer.encode("the cat 世界")
    chunks = [Chunk(ids[:2], []), Chunk(ids[2:], ids[:2]), Chunk([], ids)]
    responses = model.execute([window(*pack_window(chunk, 0)) for chunk in chunks])
    texts = [r.tensors["text_output"][0].decode() for r in responses]
    assert "".join(texts) == "the cat 世界"
    assert len(texts) == 3


def test_characters_of_a_stop_string_are_dropped(model: Any):
    ids = model._tokenizer.encode("the cat")
    response = model.execute([window(*pack_window(Chunk(ids, []), 4))])[0]
    assert response.tensors["text_output"][0] == b"the"


@pytest.mark.parametrize("values", [(), (0,), (0, 5, 1), (0, -1, 1), (-3, 0, 1)])
def test_a_malformed_chunk_fails_alone(model: Any, values: tuple[int, ...], caplog: pytest.LogCaptureFixture):
    good = window(*pack_window(Chunk([90], []), 0))
    responses = model.execute([good, window(*values), good])
    assert [r.has_error() for r in responses] == [False, True, False]
    assert responses[1].error().code() == TritonError.INTERNAL
    assert "malformed" in responses[1].error().message()
