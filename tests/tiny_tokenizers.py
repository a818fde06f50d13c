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
VOCAB_SIZE = {"llama3": 512, "qwen2": 512, "gpt2": 448, "llama2": 641, "gemma": 680}
VOCAB_SIZE |= {"bert": 416, "t5": 448, "xlmr": 402, "qwen1": 704, "kimi": 752}
# Those with a tokenizer.json; the rest are ranks alone.
STYLES = tuple(style for style in VOCAB_SIZE if style not in ("qwen1", "kimi"))
# Of single families, in their cases and checkpoints only.
VOCAB_SIZE |= {"glm": 448, "internlm2": 640, "gemma4": 682}
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
            "eos_token_id": 2 if self.style == "internlm2" else [2, 3],  # it needs one
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


def _overlaps(folder: Path) -> None:
    """Added tokens that are in the vocabulary, and a hole in it."""

    def change(document: dict[str, Any]) -> None:
        model, flags = document["model"], {"single_word": False, "lstrip": True, "rstrip": False}
        parts = {part for merge in model["merges"] for part in merge}
        # The last but two that nothing is merged from.
        hole = [text for text in model["vocab"] if len(text) > 1 and text not in parts][-3]
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) != hole]
        del model["vocab"][hole]
        for text, special, normalized in (("the", True, False), ("Ġa", False, True)):
            token = {"id": model["vocab"][text], "content": text, "special": special}
            document["added_tokens"].append({**token, **flags, "normalized": normalized})

    edit(folder / "tokenizer.json", change)
    edit(folder / "config.json", lambda config: config.update(pad_token_id=None))


def _beyond(folder: Path) -> None:
    """Added tokens beyond the embedding, one that renames a piece, ids that name no token."""

    def change(config: dict[str, Any]) -> None:
        flags = {"lstrip": True, "normalized": True, "rstrip": True, "single_word": True}
        names = {"300": ("<▁renamed▁piece>", False), "9999": ("<beyond>", True)}
        for token_id, (text, special) in names.items():
            token = {**flags, "content": text, "special": special}
            config["added_tokens_decoder"][token_id] = token

    edit(folder / "tokenizer_config.json", change)
    edit(folder / "config.json", lambda config: config.update(sep_token_id=9999, mask_token_id=641))


def _templates(folder: Path) -> None:
    """Templates in every place but tokenizer_config.json."""
    edit(folder / "tokenizer_config.json", lambda config: config.pop("chat_template"))
    (folder / "chat_template.json").write_text('{"chat_template": "last"}')
    (folder / "chat_template.jinja").write_text("{{ first }}")
    (folder / "additional_chat_templates").mkdir()
    for name in ("rag", "tool use-2", "default"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(f"of {name}")


def _listed_templates(folder: Path) -> None:
    """A list with a template that is none and a name that becomes another's."""
    found = [("a b", "1"), ("none", None), ("default", "2"), ("ü", "3"), ("a-c", "4")]
    listed = [{"name": name, "template": template} for name, template in found]
    edit(folder / "tokenizer_config.json", lambda config: config.update(chat_template=listed))


def _two_files(folder: Path) -> None:
    """vocab.json and merges.txt, as the older classes save a tokenizer."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    model = document["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def describe(config: dict[str, Any]) -> None:
        qwen = "<|im_end|>" in model["vocab"] or len(document["added_tokens"]) > 1
        config["tokenizer_class"] = "Qwen2Tokenizer" if qwen else "GPT2Tokenizer"
        added = [dict(token) for token in document["added_tokens"]]
        if qwen:
            config["added_tokens_decoder"] = {str(token.pop("id")): token for token in added}

    edit(folder / "tokenizer_config.json", describe)


def _oldest_two_files(folder: Path) -> None:
    """The same, with the added tokens in a file of their own."""
    _two_files(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    added = config.pop("added_tokens_decoder")
    names = {token["content"]: int(i) for i, token in added.items() if token["special"]}
    (folder / "added_tokens.json").write_text(json.dumps(names))
    config["additional_special_tokens"] = ["<|im_start|>"]
    file.write_text(json.dumps(config))


def _no_template(folder: Path) -> None:
    """Neither an end nor what stands before a text: the converter fills in its own."""
    edit(folder / "tokenizer.json", lambda document: document["post_processor"]["processors"].pop())
    edit(folder / "tokenizer_config.json", lambda config: config.pop("eos_token"))


def _described_elsewhere(folder: Path) -> None:
    """The added tokens in tokenizer.json, of which the converter reads no more."""

    def describe(config: dict[str, Any]) -> None:
        named = config.pop("added_tokens_decoder")
        added = [{"id": int(i), **token} for i, token in named.items()]
        vocab = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
        model = {"type": "BPE", "vocab": vocab, "merges": ["a b"], "byte_fallback": True}
        document = {"model": model, "added_tokens": added}
        (folder / "tokenizer.json").write_text(json.dumps(document))

    edit(folder / "tokenizer_config.json", describe)


def _config_gone(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def _base_model(folder: Path) -> None:
    """Nothing ends a turn."""

    def rename(config: dict[str, Any]) -> None:
        added = config["added_tokens_decoder"].values()
        next(t for t in added if t["content"] == "<|im_end|>")["content"] = "<|im_stop|>"

    edit(folder / "tokenizer_config.json", rename)


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
    "gpt2-overlaps": Case("gpt2", "Starcoder2ForCausalLM", _overlaps),
    "llama2-beyond": Case("llama2", "LlamaForCausalLM", _beyond),
    "llama3-templates": Case("llama3", "LlamaForCausalLM", _templates),
    "llama3-listed-templates": Case("llama3", "LlamaForCausalLM", _listed_templates),
    "gpt2-two-files": Case("gpt2", "Starcoder2ForCausalLM", _two_files),
    "qwen2-two-files": Case("qwen2", "Qwen2ForCausalLM", _two_files),
    "qwen2-two-files-old": Case("qwen2", "Qwen2ForCausalLM", _oldest_two_files),
    "glm": Case("glm", "GlmForCausalLM"),
    "glm4": Case("glm", "Glm4ForCausalLM", _no_template),
    "internlm2": Case("internlm2", "InternLM2ForCausalLM"),
    "internlm2-json": Case("internlm2", "InternLM2ForCausalLM", _described_elsewhere),
    "internlm2-base": Case("internlm2", "InternLM2ForCausalLM", _base_model),
    "internlm2-alone": Case("internlm2", "InternLM2ForCausalLM", _config_gone),
    "mistral": Case("llama2", "MistralForCausalLM"),
    "gemma2": Case("gemma", "Gemma2ForCausalLM"),
    "gemma3": Case("gemma", "Gemma3ForCausalLM"),
    "gemma4": Case("gemma4", "Gemma4ForCausalLM"),
    "gemma4-names": Case("gemma4", "Gemma4ForConditionalGeneration", _other_names),
}
