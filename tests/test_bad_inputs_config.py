"""Bad inputs 36 to 49, end to end: config.json, the tokenizer, and other kinds of checkpoints."""

import json
from pathlib import Path

import pytest
from bad_inputs import (
    WEIGHTS,
    Case,
    Cases,
    assert_refused,
    config,
    copy,
    each,
    edit_json,
    parts,
    remove,
    replace_file,
    weights,
    with_tensors,
)
from broken import with_header
from conftest import Call

HEAD = "lm_head.weight"
HEADS, GROUPS = "num_attention_heads", "num_key_value_heads"
TOKENIZER_CODE = {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}


def without_head(folder: Path) -> None:
    """Leave out the last tensor and its bytes."""
    header, data = parts(folder / WEIGHTS)
    begin, end = header.pop(HEAD)["data_offsets"]
    assert end == len(data)
    (folder / WEIGHTS).write_bytes(with_header(json.dumps(header).encode(), data[:begin]))


def pickle_only(folder: Path) -> None:
    """A repository of the time before safetensors; loading it would write a file."""
    (folder / WEIGHTS).unlink()
    opens_a_file = b"cbuiltins\nopen\n(Vpwned\nVw\ntR."
    (folder / "pytorch_model.bin").write_bytes(opens_a_file)


def tokenizer_with_code(folder: Path) -> None:
    """Only a module of the repository could read this vocabulary."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenization_x.py").write_text("open('pwned', 'w')")
    edit_json("tokenizer_config.json", auto_map=TOKENIZER_CODE)(folder)


def quantized(**settings: object) -> Case:
    """A checkpoint that says how it was quantized."""
    method = settings["quant_method"]
    return Case(config(quantization_config=settings), 4, [str(method), "original"])


def template(value: object, *words: str) -> Case:
    """A chat template that is none."""
    damage = edit_json("tokenizer_config.json", chat_template=value)
    return Case(damage, 3, ["tokenizer_config.json", "chat template", *words])


CASES: Cases = {
    (36, "config missing"): Case(remove("config.json"), 3, ["config.json is missing"]),
    (36, "config is a list"): Case(replace_file("config.json", b"[]"), 3, ["'config.json'"]),
    (36, "config is broken"): Case(replace_file("config.json", b'{"a":'), 3, ["'config.json'"]),
    (36, "config 100k deep"): Case(
        replace_file("config.json", b'{"a":' * 100_000), 3, ["'config.json'", "deep"]
    ),
    (37, "unknown architecture"): Case(
        config(architectures=["LlamoForCausalLM"]), 4, ["LlamoForCausalLM", "LlamaForCausalLM"]
    ),
    (38, "hidden size disagrees"): Case(config(hidden_size=128), 3, ["hidden_size = 128"]),
    (39, "too many layers"): Case(config(num_hidden_layers=3), 3, ["num_hidden_layers = 3"]),
    (39, "too few layers"): Case(config(num_hidden_layers=1), 3, ["num_hidden_layers = 1"]),
    (40, "no heads"): Case(config(num_attention_heads=0), 3, [HEADS, "0"]),
    (40, "negative heads"): Case(config(num_attention_heads=-4), 3, [HEADS, "-4"]),
    (40, "heads do not divide"): Case(config(num_key_value_heads=3), 3, [GROUPS, "3"]),
    (41, "no output head"): Case(without_head, 3, [HEAD, "tie_word_embeddings"]),
    (41, "another name for the head"): Case(
        with_tensors(lambda h: h.update(head=h.pop(HEAD))), 3, [HEAD, "tie_word_embeddings"]
    ),
    (42, "tied, but another head"): Case(
        config(tie_word_embeddings=True), 3, [HEAD, "model.embed_tokens.weight"]
    ),
    (43, "more tokens than rows"): Case(
        edit_json("tokenizer.json", added_tokens=[{"id": 4000, "content": "<far>"}]), 3, ["4000"]
    ),
    (43, "vocabulary larger than the embedding"): Case(
        config(vocab_size=1024), 3, ["vocab_size = 1024"]
    ),
    (44, "tokenizer missing"): Case(remove("tokenizer.json"), 3, ["tokenizer.json"]),
    (44, "tokenizer broken"): Case(replace_file("tokenizer.json", b"{"), 3, ["tokenizer.json"]),
    (44, "tokenizer needs remote code"): Case(tokenizer_with_code, 4, ["never run", "tokenizer"]),
    (46, "GPTQ for Marlin"): quantized(quant_method="gptq", bits=4, checkpoint_format="marlin"),
    (46, "AWQ of another layout"): quantized(quant_method="awq", bits=4, version="gemv"),
    (46, "AQLM"): quantized(quant_method="aqlm"),
    (46, "weights that are not"): Case(
        config(quantization_config={"quant_method": "fp8"}), 3, ["FP8", "remove quantization_co"]
    ),
    (46, "4 bits of MLX"): Case(config(quantization={"bits": 4}), 4, ["already quantized"]),
    (47, "pickle only"): Case(pickle_only, 4, ["pytorch_model.bin", "safetensors"]),
    (48, "zip renamed"): Case(weights(b"PK\x03\x04" * 9), 3, [WEIGHTS, "ZIP"]),
    (48, "pickle renamed"): Case(weights(b"\x80\x02}q\x00X\x05\0\0\0"), 3, [WEIGHTS, "pickle"]),
    (49, "template is a number"): template(5, "5"),
    (49, "template over 1 MiB"): template("x" * ((1 << 20) + 1), "over 1048576 bytes"),
}


@each(CASES)
def test_one_line_and_nothing_left(tmp_path: Path, call: Call, case: Case) -> None:
    assert_refused(call, copy(tmp_path / "source"), case)


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K"])
def test_45_a_refused_fallback(tmp_path: Path, call: Call, kind: str) -> None:
    source = copy(tmp_path / "source", "odd")
    refused = call("convert", source, "--type", kind, "--on-fallback", "error")
    assert refused.failed_with(
        3, "token_embd.weight", "96 values is not a multiple of 256", "--tensor-type"
    )
