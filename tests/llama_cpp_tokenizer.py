"""Text to ids in stock llama.cpp, through the metadata that we make of a folder's tokenizer."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizer_source import FolderSource

from quantcli.tokenizer import read_tokenizer

xllamacpp = pytest.importorskip("xllamacpp")

WIDTH = 32


def write_model(path: Path, metadata: dict[str, Any], n_vocab: int) -> None:
    """A llama of zeros with the given tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case str():
                writer.add_string(key, value)
            case np.uint32():
                writer.add_uint32(key, int(value))
            case np.ndarray(dtype=np.uint8):
                writer.add_array(key, value.tobytes())
            case _:
                writer.add_array(key, list(value) if isinstance(value, list) else value.tolist())
    shapes = {"token_embd": (n_vocab, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{name}_norm": (WIDTH,) for name in ("attn", "ffn")}
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}": (WIDTH, WIDTH) for name in names}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def llama_cpp(
    folder: Path, n_vocab: int, pre_tokenizer: str | None = None, **extra: Any
) -> Iterator[Callable[[str], list[int]]]:
    """llama.cpp's tokenization with the tokenizer in `folder`, BOS included."""
    metadata = read_tokenizer(FolderSource(folder), n_vocab, pre_tokenizer) | extra
    templates = [key for key in metadata if "chat_template" in key]
    for key in templates:
        del metadata[key]
    write_model(folder / "model.gguf", metadata, n_vocab)
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "model.gguf")
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 64, 1, False, -1
    server = xllamacpp.Server(params)

    def tokenize(content: str) -> list[int]:
        body = {"content": content, "add_special": True, "parse_special": True}
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["tokens"]

    yield tokenize
