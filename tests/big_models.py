"""Checkpoints of any size with the rows of real models: of zeros that take no disk, or of noise."""

import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DEMO = Path(__file__).parent / "models" / "demo"


@dataclass(frozen=True)
class Sizes:
    """A Llama's hyperparameters; the vocabulary is the demo tokenizer's."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int = 2048

    def block(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one transformer block."""
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }


LIKE_1B = Sizes(2048, 8192, 16, 4)
LIKE_8B = Sizes(4096, 14336, 32, 8)


def build_big(folder: Path, gigabytes: float, sizes: Sizes = LIKE_1B) -> Path:
    """A Llama checkpoint of about that many GB in BF16: a sparse file, all zeros."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    block = sizes.block()
    n_blocks = max(1, round(gigabytes * 1e9 / sum(_nbytes(shape) for shape in block.values())))
    shapes = {
        "model.embed_tokens": (sizes.vocabulary, sizes.hidden),
        "model.norm": (sizes.hidden,),
        "lm_head": (sizes.vocabulary, sizes.hidden),
    }
    for i in range(n_blocks):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    config = json.loads((DEMO / "config.json").read_text()) | {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": n_blocks,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.hidden // sizes.heads,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write_sparse(folder / "model.safetensors", shapes)
    return folder


def build_8b_shaped(folder: Path) -> Path:
    """1.3 GB of heavy-tailed noise (Student's t, 5 degrees of freedom) in rows of an 8B model."""
    build_big(folder, 1.3, LIKE_8B)
    path = folder / "model.safetensors"
    rng = np.random.default_rng(1)
    with path.open("r+b") as file:
        (head,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + head)
        left = (path.stat().st_size - 8 - head) // 2
        while left:
            count = min(left, 1 << 23)
            values = (0.02 * rng.standard_t(5, count)).astype(np.float32)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            left -= count
    return folder


def _nbytes(shape: tuple[int, ...]) -> int:
    return 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)


def _write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        offsets = [end, end + _nbytes(shape)]
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        end = offsets[1]
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + end)
