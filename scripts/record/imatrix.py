r"""Record what llama.cpp's own forward pass gives to llama-imatrix.

    python scripts/record/imatrix.py tests/data/calibration/demo.json tests/models/demo \
        --text tests/data/tokenizer/text.txt

Needs llama-cpp-python. The model folder is converted to F32; each window of the text is run as
tools/imatrix does, with an F32 cache and without flash attention; sums of squares are collected
from the inputs of the matrix products. Weights that share their input are recorded once.
"""

import argparse
import ctypes
import json
import runpy
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

import quantcli
from quantcli.calibration import read_text
from quantcli.planning import Job

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))  # where `quality` finds what it imports
F32 = 0
NO_FLASH_ATTENTION = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=3)
    parser.add_argument("--text", required=True)
    args = parser.parse_args()
    text = read_text(args.text)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(str(args.model), ("F32",), Path(scratch))
        base = Path(quantcli.convert(job).outputs[0].paths[0])
        windows, collector = collect(base, text.content, args.context, args.chunks)
    record = {
        "made_with": {
            "script": "scripts/record/imatrix.py",
            "llama_cpp_python": version("llama-cpp-python"),
        },
        "text": text.name,
        "context": args.context,
        "windows": windows.tolist(),
        "weights": sorted(collector.sums),
        "counts": sorted({int(c[0]) for c in collector.counts.values() if len(c) == 1}),
        "experts": {n: c.tolist() for n, c in sorted(collector.counts.items()) if len(c) > 1},
        "sums": shared(collector.sums),
    }
    args.output.write_text(json.dumps(record, separators=(",", ":")) + "\n")


def collect(path: Path, text: str, context: int, chunks: int) -> tuple[np.ndarray, Any]:
    """Run the first chunks of a text; the windows and the collector with what came together."""
    collector = runpy.run_path(str(ROOT / "scripts" / "quality"))["Collector"]()
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = context
    params.type_k = params.type_v = F32
    params.flash_attn_type = NO_FLASH_ATTENTION
    params.n_threads = params.n_threads_batch = 1
    params.cb_eval = collector.callback
    runtime = llama_cpp.llama_init_from_model(model, params)
    windows = cut(llama_cpp.llama_model_get_vocab(model), text, context, chunks)
    for window in windows:
        run(runtime, window)
    llama_cpp.llama_free(runtime)
    llama_cpp.llama_model_free(model)
    return windows, collector


def cut(vocab: Any, text: str, context: int, chunks: int) -> np.ndarray:
    """Windows as tools/imatrix cuts them: BOS replaces the first token of each."""
    data = text.encode()[: 16 * context * chunks]
    ids = (ctypes.c_int32 * (len(data) + 1))()
    n = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), True, False)
    windows = np.array(ids[:n], np.int32)[: chunks * context].reshape(chunks, context)
    if llama_cpp.llama_vocab_get_add_bos(vocab):
        windows[:, 0] = llama_cpp.llama_vocab_bos(vocab)
    return windows


def run(runtime: Any, window: np.ndarray) -> None:
    """Decode one window from an empty cache; every token asks for its logits."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(runtime), True)
    batch = llama_cpp.llama_batch_init(len(window), 0, 1)
    batch.n_tokens = len(window)
    for i, token in enumerate(window.tolist()):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = True
    if llama_cpp.llama_decode(runtime, batch) != 0:
        raise SystemExit("llama_decode failed")
    llama_cpp.llama_batch_free(batch)


def shared(sums: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """One entry for weights with the same sums, the first by name, to seven digits.

    Those of experts follow each other.
    """
    found: dict[bytes, str] = {}
    for name in sorted(sums):
        if not name.startswith("output."):
            found.setdefault(sums[name].tobytes(), name)
    return {name: [float(f"{x:.7g}") for x in sums[name].flat] for name in found.values()}


if __name__ == "__main__":
    main()
