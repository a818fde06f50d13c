"""InternLM2: one tensor of the checkpoint is three of the file, and a turn's end ends the text."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Call
from gguf_contents import contents
from hub_client import Start
from packers import CASES
from packing import write_pair
from tiny_adapters import ADAPTERS, Spec, build_adapter, delta_of
from tiny_models import build
from tiny_tokenizers import VOCAB_SIZE, edit, write_tokenizer
from tokenizer_source import FolderSource

import quantcli
from quantcli.checkpoint import AdapterRef
from quantcli.gguf_file import read_header, read_tensor
from quantcli.model import open_model
from quantcli.tokenizer import read_tokenizer

pytest_plugins = ["hub_fixtures"]

FUSED = "model.layers.1.attention.wqkv.weight"
HEAD, HIDDEN = 32, 96  # of the variant "odd", with three query heads for one kv head


def parts(wqkv: np.ndarray) -> dict[str, np.ndarray]:
    """q, k and v of the odd variant, heads of q and k in ggml's adjacent pairs."""

    def paired(rows: np.ndarray) -> np.ndarray:
        heads = rows.reshape(-1, HEAD, rows.shape[1])
        halves = [np.stack([h[: HEAD // 2], h[HEAD // 2 :]], axis=1) for h in heads]
        return np.concatenate([both.reshape(HEAD, -1) for both in halves])

    return {
        "attn_q": paired(wqkv[:HIDDEN]),
        "attn_k": paired(wqkv[HIDDEN : HIDDEN + HEAD]),
        "attn_v": wqkv[HIDDEN + HEAD :],
    }


def test_an_adapter_of_the_fused_tensor_reaches_all_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADAPTERS, "fused", Spec("internlm2", "odd", ("wqkv", "w2")))
    base = build(tmp_path / "base", "internlm2", "odd")
    lora = AdapterRef(str(build_adapter(tmp_path / "adapter", "fused")))
    merged, alone = tmp_path / "merged.gguf", tmp_path / "alone.gguf"
    quantcli.convert(quantcli.Job(str(base), types=("F32",), output=merged, lora=(lora,)))
    quantcli.convert_adapter(quantcli.Job(str(base), types=("F32",), output=alone, lora=(lora,)))
    before, after = open_model(str(base)), open_model(str(merged))
    factors = read_header(alone).tensors
    delta = delta_of("fused", FUSED)
    assert delta is not None
    for short, expected in parts(delta).items():
        name = f"blk.1.{short}.weight"
        np.testing.assert_allclose(after.rows(name) - before.rows(name), expected, atol=2e-6)
        a, b = (
            np.asarray(read_tensor(factors[f"{name}.lora_{letter}"])).view(np.float32)
            for letter in "ab"
        )
        scaling = 16 / 8
        np.testing.assert_allclose(scaling * (b @ a), expected, atol=2e-6)


def test_a_split_tensor_cannot_be_streamed(hub: Start, call: Call, tmp_path: Path) -> None:
    hub({"org/name": build(tmp_path / "source", "internlm2", "gqa")})
    done = call("convert", "org/name", "--stream", "-t", "Q8_0", "-o", "x.gguf")
    assert done.failed_with(4, "--stream", "split", "InternLM2")


@pytest.mark.parametrize("name", ["fp8 block cut off", "gptq 4 bits", "awq", "bnb nf4 nested"])
def test_quantized_tensors_are_split_like_their_values(name: str, tmp_path: Path) -> None:
    files = []
    for folder in write_pair(tmp_path, CASES[name], 3, model=("internlm2", "odd")):
        files.append(folder.with_suffix(".gguf"))
        quantcli.convert(quantcli.Job(str(folder), types=("F32",), output=files[-1]))
    packed, plain = (contents(file)["tensors"] for file in files)
    assert packed == plain


def test_files_leave_the_cache_after_their_last_part(hub: Start, tmp_path: Path) -> None:
    source = build(tmp_path / "source", "internlm2", "gqa")
    hub({"org/name": source})
    kept, freed = tmp_path / "x.gguf", tmp_path / "y.gguf"
    quantcli.convert(quantcli.Job(str(source), types=("Q8_0",), output=kept))
    job = quantcli.Job("org/name", types=("Q8_0",), output=freed, delete_source=True)
    quantcli.convert(job)
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    assert contents(freed)["tensors"] == contents(kept)["tensors"]


def test_a_chat_model_without_a_model_file_ends_with_its_turns(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama2")
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "config.json").write_text('{"architectures": ["InternLM2ForCausalLM"]}')
    source, rows = FolderSource(tmp_path), VOCAB_SIZE["llama2"] + 1
    before = read_tokenizer(source, rows)
    end = {"id": rows - 1, "content": "<|im_end|>", "special": True}
    edit(tmp_path / "tokenizer.json", lambda document: document["added_tokens"].append(end))
    after = read_tokenizer(source, rows)
    assert before["tokenizer.ggml.eos_token_id"] == 2
    assert after["tokenizer.ggml.eos_token_id"] == rows - 1
    assert after["tokenizer.ggml.tokens"][rows - 1] == "<|im_end|>"
    assert after["tokenizer.ggml.add_space_prefix"] is True
