"""The demo checkpoint cut into any number of shards, in the order of its blocks."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from broken import shard_name, with_header, write_index

FIRST, LAST = "model.embed_tokens.weight", "model.norm.weight"


def _place(name: str) -> tuple[int, str]:
    parts = name.split(".")
    block = int(parts[2]) if parts[1] == "layers" else -1
    return (-1 if name == FIRST else 1 << 30) if block < 0 else block, name


def cut_demo(folder: Path, demo: Path, count: int, *, nan_at_the_end: bool = False) -> Path:
    """Write the demo's tensors into `count` files and return the folder."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    content = (demo / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    names = sorted(header, key=_place)
    where = {}
    for i in range(count):
        part = names[i * len(names) // count : (i + 1) * len(names) // count]
        described: dict[str, Any] = {}
        data = b""
        for name in part:
            begin, end = (8 + length + offset for offset in header[name]["data_offsets"])
            stored = content[begin:end]
            if nan_at_the_end and name == names[-1]:
                stored = stored[:-2] + b"\xff\x7f"  # of BF16
            described[name] = header[name] | {"data_offsets": [len(data), len(data) + len(stored)]}
            data += stored
        (folder / shard_name(i + 1, count)).write_bytes(
            with_header(json.dumps(described).encode(), data)
        )
        where |= dict.fromkeys(part, shard_name(i + 1, count))
    write_index(folder, where)
    return folder
