"""Small tokenizers (450 to 680 tokens) in the styles that published checkpoints use.

They are stored under tests/data/tokenizer/ and were made by scripts/record/tokenizer_fixtures.py.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "tokenizer"

# Rows of the embedding to give a model with this tokenizer; qwen2 has 499 tokens and needs padding.
VOCAB_SIZE = {"llama3": 512, "qwen2": 512, "gpt2": 448, "llama2": 641, "gemma": 680, "gemma4": 682}
VOCAB_SIZE |= {"bert": 416, "t5": 448, "xlmr": 402, "qwen1": 704, "kimi": 752}
# Those that a tokenizer.json tells; the rest are ranks alone, or told by the class of the model.
STYLES = tuple(style for style in VOCAB_SIZE if style not in ("qwen1", "kimi", "gemma4"))
BPE_STYLES = ("llama3", "qwen2", "gpt2", "llama2", "gemma")


def text() -> str:
    """Several scripts, code, numbers and emoji."""
    return (DATA / "text.txt").read_text(encoding="utf-8")


def write_tokenizer(folder: Path, style: str) -> None:
    """Put the tokenizer files of `style` next to a checkpoint's config.json in `folder`."""
    shutil.copytree(DATA / style, folder, dirs_exist_ok=True)


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the JSON object in `file`."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """A tokenizer inside a checkpoint of one class, with changed files."""

    style: str
    architecture: str
    change: Callable[[Path], object] = lambda folder: None
    pre_tokenizer: str | None = None
    type_vocab_size: int | None = None

    def write(self, folder: Path) -> None:
        """Write the tokenizer and a config.json that llama.cpp's converter takes."""
        write_tokenizer(folder, self.style)
        config = {
            "architectures": [self.architecture],
            "vocab_size": VOCAB_SIZE[self.style],
            "num_hidden_layers": 1,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "bos_token_id": 1,
            "eos_token_id": [2, 3],
            "pad_token_id": 5,
        }
        if self.type_vocab_size is not None:
            config["type_vocab_size"] = self.type_vocab_size
        (folder / "config.json").write_text(json.dumps(config))
        self.change(folder)


def _old_llama(folder: Path) -> None:
    """Files as older releases of transformers wrote them."""

    def describe(config: dict[str, Any]) -> None:
        del config["added_tokens_decoder"], config["chat_template"]
        for kind in ("bos", "eos"):
            token = {"__type": "AddedToken", "content": config[f"{kind}_token"]}
            config[f"{kind}_token"] = token

    edit(folder / "tokenizer_config.json", describe)
    (folder / "added_tokens.json").write_text('{"<pad>": 640, "<|beyond|>": 641}')


def _ends_with_other_token(folder: Path) -> None:
    """The post-processor closes a text with a token that is not the configured end."""

    def append(document: dict[str, Any]) -> None:
        template = document["post_processor"]["processors"][1]
        end = {"SpecialToken": {"id": "<|end_of_text|>", "type_id": 0}}
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        template["single"].append(end)
        template["pair"] = [first, end, second]
        template["special_tokens"]["<|end_of_text|>"] = {
            "id": "<|end_of_text|>",
            "ids": [505],
            "tokens": ["<|end_of_text|>"],
        }

    edit(folder / "tokenizer.json", append)


def _model_alone(folder: Path) -> None:
    """Nothing but the SentencePiece model, and tokens beyond it in the oldest of the files."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text('{"<tool>": 440, "<|beyond|>": 9999}')


def _cased(folder: Path) -> None:
    options = {"lowercase": False, "strip_accents": False}
    edit(folder / "tokenizer.json", lambda document: document["normalizer"].update(options))
    options = {"do_lower_case": False, "strip_accents": False}
    edit(folder / "tokenizer_config.json", lambda config: config.update(options))


def _edges(folder: Path) -> None:
    """Flags that a GGUF file has no place for, a token that only looks special.

    And chat templates as a list without a default one.
    """
    flags = {"single_word": True, "lstrip": True, "rstrip": True, "normalized": False}
    added = [
        {"id": 499, "content": "<|looks|>", "special": False, **flags},
        {"id": 500, "content": "tool call", "special": False, **flags, "normalized": True},
        {"id": 501, "content": "<mask>", "special": False, **flags},
    ]
    edit(folder / "tokenizer.json", lambda document: document["added_tokens"].extend(added))
    templates = [
        {"name": "tool use", "template": "{{ 1 }}"},
        {"name": "rag", "template": "{{ 2 }}"},
    ]
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template=templates))


def _other_names(folder: Path) -> None:
    """Special tokens in a list, in a dictionary, by description; one that nothing names."""

    def rename(config: dict[str, Any]) -> None:
        del config["mask_token"], config["sot_token"]
        config["extra_special_tokens"] = {"image_token": "<|video|>"}
        config["additional_special_tokens"] = ["<table>", "<more>"]
        config["pad_token"] = {"content": "<pad>", "__type": "AddedToken"}

    edit(folder / "tokenizer_config.json", rename)


CASES = {
    "llama3": Case("llama3", "LlamaForCausalLM"),
    "llama3-other-end": Case("llama3", "LlamaForCausalLM", _ends_with_other_token),
    "qwen2": Case("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Case("qwen2", "Qwen3ForCausalLM"),
    "gpt2": Case("gpt2", "LlamaForCausalLM"),
    "llama2": Case("llama2", "LlamaForCausalLM"),
    "llama2-old": Case("llama2", "LlamaForCausalLM", _old_llama),
    "llama2-bare": Case(
        "llama2", "LlamaForCausalLM", lambda folder: (folder / "tokenizer_config.json").unlink()
    ),
    "llama2-model-alone": Case("llama2", "LlamaForCausalLM", _model_alone),
    "qwen2-edges": Case("qwen2", "Qwen2ForCausalLM", _edges),
    "bert": Case("bert", "BertModel", type_vocab_size=2),
    "bert-cased": Case("bert", "BertModel", _cased),
    "t5": Case("t5", "T5ForConditionalGeneration"),
    "t5-bare": Case("t5", "T5ForConditionalGeneration", _model_alone),
    "xlmr": Case("xlmr", "XLMRobertaModel", type_vocab_size=1),
    "qwen1": Case("qwen1", "QWenLMHeadModel"),
    "kimi": Case("kimi", "DeepseekV3ForCausalLM", pre_tokenizer="kimi-k2"),
    "mistral": Case("llama2", "MistralForCausalLM"),
    "gemma2": Case("gemma", "Gemma2ForCausalLM"),
    "gemma3": Case("gemma", "Gemma3ForCausalLM"),
    "gemma4": Case("gemma4", "Gemma4ForCausalLM"),
    "gemma4-names": Case("gemma4", "Gemma4ForConditionalGeneration", _other_names),
}
