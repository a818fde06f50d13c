"""Checkpoints of any size that cost no time to make: sparse files of zeros with 8B-like rows."""

import json
import shutil
import struct
from pathlib import Path

DEMO = Path(__file__).parent / "models" / "demo"
HIDDEN, FFN, VOCABULARY, HEADS, KV_HEADS = 2048, 8192, 2048, 16, 4


def build_big(folder: Path, gigabytes: float) -> Path:
    """A Llama checkpoint of about that many GB in BF16."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    block = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
        "self_attn.v_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    block_bytes = 2 * sum(rows * (rest[0] if rest else 1) for rows, *rest in block.values())
    n_blocks = max(1, round(gigabytes * 1e9 / block_bytes))
    shapes = {
        "model.embed_tokens": (VOCABULARY, HIDDEN),
        "model.norm": (HIDDEN,),
        "lm_head": (VOCABULARY, HIDDEN),
    }
    for i in range(n_blocks):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    config = json.loads((DEMO / "config.json").read_text()) | {
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": n_blocks,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write_sparse(folder / "model.safetensors", shapes)
    return folder


def _write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        offsets = [end, end + size]
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        end += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + end)
