"""Broken inputs, end to end: one line, the documented exit code, nothing left behind.

Each room tests its own inputs in detail; here they pass through the whole command.
"""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken import shard_name, with_header
from conftest import Call
from tiny_models import build

Damage = Callable[[Path], object]


def edit_json(name: str, **changes: object) -> Damage:
    """Set keys of a JSON side file; None removes a key."""

    def damage(folder: Path) -> None:
        path = folder / name
        document = json.loads(path.read_text()) if path.exists() else {}
        document |= {key: value for key, value in changes.items() if value is not None}
        for key in [key for key, value in changes.items() if value is None]:
            document.pop(key, None)
        path.write_text(json.dumps(document))

    return damage


def replace_file(name: str, content: bytes) -> Damage:
    """Write a side file."""
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Damage:
    """Delete a side file."""
    return lambda folder: (folder / name).unlink()


def put_weight(name: str, value: float, at: int = 3) -> Damage:
    """Overwrite one BF16 weight of a tensor."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        (length,) = struct.unpack("<Q", data[:8])
        begin = json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
        bits = np.float32(value).view(np.uint32) >> 16
        struct.pack_into("<H", data, 8 + length + begin + 2 * at, int(bits))
        path.write_bytes(data)

    return damage


def with_tensors(change: Callable[[dict], object]) -> Damage:
    """Change the header of model.safetensors, keeping the data."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        path.write_bytes(with_header(json.dumps(header).encode(), data[8 + length :]))

    return damage


def truncate(n: int) -> Damage:
    """Cut bytes off the end of the weights."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-n])

    return damage


def one_shard_of_three(folder: Path) -> None:
    """The others were never downloaded."""
    (folder / "model.safetensors").rename(folder / shard_name(1, 3))


def pickle_only(folder: Path) -> None:
    """A repository of the time before safetensors."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


Q = "model.layers.0.self_attn.q_proj.weight"

CASES: dict[str, tuple[Damage, int, list[str]]] = {
    "empty weights": (replace_file("model.safetensors", b""), 3, ["model.safetensors"]),
    "header beyond the end": (
        replace_file("model.safetensors", struct.pack("<Q", 1 << 62)),
        3,
        ["model.safetensors"],
    ),
    "header is not JSON": (
        replace_file("model.safetensors", with_header(b"{nope")),
        3,
        ["model.safetensors"],
    ),
    "two bytes short": (truncate(2), 3, ["model.safetensors"]),
    "git lfs pointer": (
        replace_file("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        3,
        ["LFS", "git lfs pull"],
    ),
    "zip in disguise": (replace_file("model.safetensors", b"PK\x03\x04" * 9), 3, ["ZIP"]),
    "integer weight": (
        with_tensors(lambda h: h[Q].update(dtype="I16")),
        4,
        [Q, "I16"],
    ),
    "a tensor under a strange name": (
        with_tensors(lambda h: h.update({"../\x1b[2J": h.pop(Q)})),
        3,
        ["model.safetensors"],
    ),
    "tensor missing": (with_tensors(lambda h: h.update({"x": h.pop(Q)})), 3, [Q]),
    "one shard of three": (one_shard_of_three, 3, ["model-00002-of-00003"]),
    "pickle only": (pickle_only, 4, ["pytorch_model.bin"]),
    "config missing": (remove("config.json"), 3, ["config.json"]),
    "config is a list": (replace_file("config.json", b"[]"), 3, ["config.json"]),
    "unknown architecture": (
        edit_json("config.json", architectures=["LlamoForCausalLM"]),
        4,
        ["LlamoForCausalLM", "LlamaForCausalLM"],
    ),
    "already quantized": (
        edit_json("config.json", quantization_config={"quant_method": "gptq"}),
        4,
        ["gptq"],
    ),
    "hidden size disagrees": (edit_json("config.json", hidden_size=128), 3, ["hidden_size"]),
    "too many layers": (edit_json("config.json", num_hidden_layers=3), 3, ["num_hidden_layers"]),
    "too few layers": (edit_json("config.json", num_hidden_layers=1), 3, ["num_hidden_layers"]),
    "no heads": (edit_json("config.json", num_attention_heads=0), 3, ["num_attention_heads"]),
    "heads do not divide": (
        edit_json("config.json", num_key_value_heads=3),
        3,
        ["num_key_value_heads"],
    ),
    "no output head": (with_tensors(lambda h: h.pop("lm_head.weight")), 3, ["safetensors"]),
    "tied, but another head": (
        edit_json("config.json", tie_word_embeddings=True),
        3,
        ["lm_head.weight", "model.embed_tokens.weight"],
    ),
    "vocabulary too large": (edit_json("config.json", vocab_size=1024), 3, ["vocab_size"]),
    "tokenizer missing": (remove("tokenizer.json"), 3, ["tokenizer.json"]),
    "tokenizer broken": (replace_file("tokenizer.json", b"{"), 3, ["tokenizer.json"]),
    "template not a string": (
        edit_json("tokenizer_config.json", chat_template=5),
        3,
        ["chat template"],
    ),
    "template too long": (
        edit_json("tokenizer_config.json", chat_template="x" * ((1 << 20) + 1)),
        3,
        ["chat template"],
    ),
    "NaN": (put_weight(Q, np.nan), 3, [Q, "nan", "row 0, column 3"]),
    "infinity": (put_weight(Q, -np.inf, at=2 * 256 + 5), 3, [Q, "inf", "column 5"]),
    "beyond the scale range": (put_weight(Q, 3e38), 3, [Q, "2.99076e+38", "BF16 or F32"]),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_checkpoint(tmp_path: Path, call: Call, case: str) -> None:
    damage, code, words = CASES[case]
    source = build(tmp_path / "source", "llama", "gqa")
    damage(source)
    found = call("convert", source, "--type", "Q4_0,Q8_0")
    assert found.failed_with(code, *words)


def test_bf16_too_large_for_f16(tmp_path: Path, call: Call) -> None:
    source = build(tmp_path / "source", "llama", "gqa")
    put_weight(Q, 1e5)(source)
    assert call("convert", source, "--type", "F16").failed_with(3, Q, "99840", "BF16 or F32")


def test_refused_fallback(tmp_path: Path, call: Call) -> None:
    source = build(tmp_path / "source", "llama", "odd")
    refused = call("convert", source, "--type", "Q4_K_M", "--on-fallback", "error")
    assert refused.failed_with(3, "not a multiple of 256", "--tensor-type")


def imatrix(path: Path, values: dict[str, np.ndarray]) -> Path:
    """A legacy importance matrix."""
    data = struct.pack("<i", len(values))
    for name, row in values.items():
        text = name.encode()
        data += struct.pack("<i", len(text)) + text + struct.pack("<ii", 1, row.size)
        data += row.astype("<f4").tobytes()
    path.write_bytes(data + struct.pack("<ii", 7, 4) + b"text")
    return path


def rows(value: float = 1.0) -> dict[str, np.ndarray]:
    """One entry per quantized matrix of the tiny Llama."""
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    wide = {"ffn_down": 512}
    return {
        f"blk.{i}.{name}.weight": np.full(wide.get(name, 256), value, np.float32)
        for i in range(2)
        for name in names
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["blk.0.attn_q.weight"].__setitem__(3, np.nan), ["blk.0.attn_q.weight"]),
        (lambda r: r["blk.0.attn_q.weight"].__setitem__(3, -1.0), ["blk.0.attn_q.weight"]),
        (lambda r: r.pop("blk.1.ffn_up.weight"), ["blk.1.ffn_up.weight", "no entry"]),
        (lambda r: r.update({"blk.1.ffn_up.weight": np.ones(255)}), ["255", "256"]),
    ],
)
def test_bad_imatrix(tmp_path: Path, call: Call, change: Callable, words: list[str]) -> None:
    source = build(tmp_path / "source", "llama", "gqa")
    values = rows()
    change(values)
    file = imatrix(tmp_path / "x.dat", values)
    assert call("convert", source, "--imatrix", file).failed_with(3, "x.dat", *words)


def test_imatrix_is_used_and_recorded(tmp_path: Path, call: Call) -> None:
    """A column that alone matters is stored better; the file says where its importance is from."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    source = build(tmp_path / "source", "llama", "gqa")
    values = rows()
    for row in values.values():
        row[::16] = 1000.0
    assert call("convert", source, "-t", "F32", "-o", "f32.gguf").code == 0
    assert call("convert", source, "-t", "Q4_K_S", "-o", "plain.gguf").code == 0
    file = imatrix(tmp_path / "x.dat", values)
    assert call("convert", source, "-t", "Q4_K_S", "-o", "i.gguf", "--imatrix", file).code == 0

    def error(name: str) -> float:
        exact, found = (
            next(t for t in GGUFReader(call.work / file).tensors if t.name == "blk.0.ffn_up.weight")
            for file in ("f32.gguf", name)
        )
        difference = dequantize(found.data, found.tensor_type) - exact.data
        return float(np.square(difference)[:, ::16].sum())

    assert error("i.gguf") < 0.5 * error("plain.gguf")
    fields = GGUFReader(call.work / "i.gguf").fields
    assert fields["quantize.imatrix.file"].contents() == "x.dat"
    assert fields["quantize.imatrix.entries_count"].contents() == len(values)
    assert fields["quantize.imatrix.chunks_count"].contents() == 7


def test_output_is_the_input(tmp_path: Path, call: Call) -> None:
    source = build(tmp_path / "source", "llama", "gqa")
    weights = source / "model.safetensors"
    (call.work / "x.gguf").symlink_to(weights)
    before = weights.read_bytes()
    found = call("convert", source, "-o", "x.gguf", "--force")
    assert found.code == 2
    assert "is the input" in found.stderr
    assert weights.read_bytes() == before


def test_a_full_disk_is_known_before_the_work(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build(tmp_path / "source", "llama", "gqa")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert call("convert", source).failed_with(7, "1000", "free")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"PK\x03\x04"])
def test_inspecting_what_is_no_model(tmp_path: Path, call: Call, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert call("inspect", path).failed_with(3, "x.gguf")
