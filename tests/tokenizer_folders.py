"""Tiny tokenizer folders in the manner of Llama-2, Llama-3 and Qwen, built on the spot."""

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Once upon a time there was a little girl who lived in the forest.",
    "The cat sat on the mat, and the dog said: hello, hello! 12345",
    "你好世界。今天天气很好。日本語のテキスト、日本。",
    "naïve café — “quotes” … 😀😀 👨‍👩‍👧 🏳️‍🌈",
    "def main():\n    return [x for x in range(10)]\n",
] * 4
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SMALL_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def make_byte_level(folder: Path, *, vocab_size: int = 420, config: dict[str, Any] | None = None) -> Path:
    """Byte-level BPE as Qwen has it: no BOS, ChatML tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    return _write(folder, tokenizer, {**options, **(config or {})})


def make_llama3(folder: Path) -> Path:
    """Byte-level BPE whose post-processor of tokenizer.json puts a BOS in front."""
    make_byte_level(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|begin_of_text|>", special=True)])
    bos_id = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos_id)]
            ),
        ]
    )
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|im_end|>",
    }
    return _write(folder, tokenizer, options)


def make_byte_fallback(folder: Path, *, config: dict[str, Any] | None = None) -> Path:
    """Sentencepiece-like BPE with metaspace and byte fallback as Llama-2 has it; knows few characters."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=200, limit_alphabet=60, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    trained.train_from_iterator([c for c in CORPUS if c.isascii()], trainer)
    tokenizer = _with_byte_tokens(trained)
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    for text in ("<unk>", "<s>", "</s>"):
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
    options = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
    }
    return _write(folder, tokenizer, {**options, **(config or {})})


def make_unigram(folder: Path) -> Path:
    """Sentencepiece-like Unigram whose decoder is Metaspace alone, as T5 has it; knows some characters."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=180,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list(string.printable),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _write(folder, tokenizer, {"eos_token": "</s>", "unk_token": "<unk>"})


def _with_byte_tokens(trained: Tokenizer) -> Tokenizer:
    state = json.loads(trained.to_str())["model"]
    names = sorted(state["vocab"], key=state["vocab"].__getitem__)
    ordered = [*names[:3], *(f"<0x{b:02X}>" for b in range(256)), *names[3:]]
    vocab = {name: i for i, name in enumerate(ordered)}
    merges = [(a, b) for a, b in state["merges"]]
    return Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def _write(folder: Path, tokenizer: Tokenizer, options: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", options)
    vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
    write_json(folder / "config.json", {"vocab_size": vocab_size} | SMALL_LLAMA)
    return folder
