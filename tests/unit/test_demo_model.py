"""What the default model and the random-weight models are promised to be."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.make_random_model import Shape, tensor_shapes, write_model
from scripts.random_tokenizer import resize_tokenizer

DEMO = Path(__file__).resolve().parents[2] / "demo_model"
LARGEST_FOLDER = 16_000_000
LARGEST_PERPLEXITY = 80.0  # 63.9 when trained
HELD_OUT = (
    "And now the old king gathered together his court, and asked all his kingdom to come and celebrate the wedding of"
    " his son and the princess. And young and old, noble and squire, gentle and simple, came at once on the summons;"
    " and among the rest came the friendly dwarf, with the sugarloaf hat, and a new scarlet cloak.",
    "The little tailor went onwards, always following his own pointed nose. After he had walked for a long time, he"
    " came to the courtyard of a royal palace, and as he felt weary, he lay down on the grass and fell asleep.",
)
COMMON_WORDS = frozenset(
    re.findall(
        r"\S+",
        """
        a about after again all am an and answered any are as asked at away be because bed began best better big
        bird but by called came can castle child children come could cried daughter day dear did do door down eat
        every eyes father fire first for forest found from garden gave get girl give go going gold golden good great
        had hand happy have he head heard heart her here him his home horse house how i if in into is it just king
        king's know last let life like little long looked made make man many may me men more morning most mother
        much must my never nice night no not nothing now of off old on once one only or other our out over poor
        prince princess put queen ran said sat saw say see set she should sir sister sleep so some son soon stood
        story such take tell than that the their them then there they thing think this thought three till time to
        told took tree two under until up upon us very was water way we well went were what when where which while
        who wife will wish with woman wood word would years yes you young your
        """,
    )
)
TINY = Shape(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, vocabulary=300, positions=64)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO, local_files_only=True, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO, local_files_only=True)


def continuation(model: Any, tokenizer: Any, prompt: str, num_tokens: int) -> list[int]:
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_demo_folder_is_small_enough_for_the_repository():
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= LARGEST_FOLDER


def test_demo_weights_are_bfloat16_and_fill_the_configured_shape(model: Any):
    c = model.config
    shape = Shape(c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, c.intermediate_size,
                  c.vocab_size, c.max_position_embeddings, c.tie_word_embeddings)  # fmt: skip
    with safe_open(DEMO / "model.safetensors", "pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == dict(tensor_shapes(shape))  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_demo_tokenizer_and_model_agree_on_vocabulary_and_special_tokens(model: Any, tokenizer: Any):
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == 0


def test_once_upon_a_time_goes_on_in_common_english_words(model: Any, tokenizer: Any):
    text = tokenizer.decode(continuation(model, tokenizer, "Once upon a time", 64), skip_special_tokens=True)
    words = re.findall(r"[a-z']+", text.lower())[:-1]
    assert len(words) >= 20
    assert sum(word in COMMON_WORDS for word in words) / len(words) >= 0.6


def test_once_upon_a_time_does_not_go_round_in_circles(model: Any, tokenizer: Any):
    ids = continuation(model, tokenizer, "Once upon a time", 64)
    runs = [tuple(ids[i : i + 5]) for i in range(len(ids) - 4)]
    assert len(set(runs)) / len(runs) >= 0.8


def test_perplexity_of_held_out_passages_stays_where_training_left_it(model: Any, tokenizer: Any):
    passages = [tokenizer(text, return_tensors="pt")["input_ids"] for text in HELD_OUT]
    with torch.no_grad():
        losses = [float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1) for ids in passages]
    assert math.exp(sum(losses) / sum(ids.shape[1] - 1 for ids in passages)) < LARGEST_PERPLEXITY


def test_chat_template_marks_turns_and_opens_the_answer(tokenizer: Any):
    turns = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Once."},
        {"role": "user", "content": "More."},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Hello!<|assistant|>Once.<|endoftext|><|user|>More.<|assistant|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [i for i in ids if i in tokenizer.all_special_ids] == [1, 2, 0, 1, 2]


def test_every_byte_has_a_token_of_its_own():
    assert set(ByteLevel.alphabet()) == {token for token in demo_tokenizer().get_vocab() if len(token) == 1}


@given(text=st.text())
def test_every_text_comes_back_from_the_tokenizer_unchanged(text: str):
    tokenizer = demo_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def demo_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_model_loads_in_transformers_with_every_weight_in_place(
    tmp_path: Path, tied: bool, dtype: Literal["float32", "bfloat16"]
):
    shape = Shape(32, 2, 4, 2, 48, 300, 64, tied)
    write_model(tmp_path, shape, dtype)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, local_files_only=True)
    model, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == getattr(torch, dtype)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_random_model_is_the_same_for_the_same_seed_and_another_for_another(tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_model(tmp_path / name, TINY, seed=seed)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == again != other


@pytest.mark.parametrize("tied", [True, False])
def test_random_model_does_not_say_one_word_again_and_again(tmp_path: Path, tied: bool):
    write_model(tmp_path, Shape(32, 2, 4, 2, 48, 300, 64, tied))
    random_model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    prompt = torch.arange(100, 116)[None]
    ids = random_model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False)
    assert len(set(ids[0, 16:].tolist())) >= 15


def test_default_random_model_has_135_million_parameters():
    assert round(sum(math.prod(dims) for _, dims in tensor_shapes(Shape())) / 1e6) == 135


@pytest.mark.parametrize(
    "shape",
    [Shape(heads=7), Shape(hidden=45, heads=9), Shape(kv_heads=2), Shape(vocabulary=258)],
    ids=["heads do not divide width", "odd head", "kv heads do not divide heads", "bytes do not fit"],
)
def test_impossible_shape_is_refused_and_nothing_written(tmp_path: Path, shape: Shape):
    with pytest.raises(typer.BadParameter):
        write_model(tmp_path / "model", shape)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("size", [259, 260, 1000, 4096, 49152])
def test_resized_tokenizer_has_the_size_and_keeps_text_and_ids(size: int):
    text = "Once upon a time — żółw 🐢\n\t  \x00 end"
    base = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_str(json.dumps(resize_tokenizer(base, size)))
    ids = tokenizer.encode(text).ids
    assert tokenizer.get_vocab_size() == size
    assert tokenizer.decode(ids) == text
    assert size < 4096 or ids == demo_tokenizer().encode(text).ids
    assert all(tokenizer.decode([i]) for i in itertools.islice(range(4096, size), 50))
