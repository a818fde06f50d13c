"""Record what ggml makes of generated weights: tests/data/tensor_types/ggml.json.

Needs llama-cpp-python (any build: its libggml is called through ctypes) and gguf:

    python scripts/record/tensor_types.py
"""

import ctypes
import hashlib
import json
import platform
import runpy
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

DATA = Path(__file__).parents[2] / "tests" / "data" / "tensor_types"
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
TYPES += ["IQ4_NL", "IQ4_XS"]


def quantizer() -> ctypes._CFuncPtr:
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    return function


def sha256(x: np.ndarray) -> str:
    return hashlib.sha256(x.tobytes()).hexdigest()


def rmse(error: np.ndarray, importance: np.ndarray | None) -> float:
    squares = error.astype(np.float64) ** 2
    return float(np.sqrt(np.average(squares.mean(axis=0), weights=importance)))


def main() -> None:
    inputs = runpy.run_path(str(DATA / "inputs.py"))
    weights, importances = inputs["weights"](), {"none": None, **inputs["importances"]()}
    quantize = quantizer()
    results = {}
    for name in TYPES:
        qtype = gguf.GGMLQuantizationType[name]
        block_size, type_size = gguf.GGML_QUANT_SIZES[qtype]
        for which, w in weights.items():
            for how, importance in importances.items():
                rows, cols = w.shape
                packed = np.empty((rows, cols // block_size * type_size), np.uint8)
                row = None if importance is None else importance.ctypes.data
                quantize(qtype, w.ctypes.data, packed.ctypes.data, 0, rows, cols, row)
                error = gguf.dequantize(packed, qtype) - w
                results[f"{name} {which} {how}"] = [rmse(error, importance), sha256(packed)]
    record = {
        "made_by": "scripts/record/tensor_types.py",
        "versions": {
            "llama-cpp-python": version("llama-cpp-python"),
            "gguf": version("gguf"),
            "numpy": version("numpy"),
            "machine": platform.machine(),
        },
        "inputs_sha256": {which: sha256(w) for which, w in weights.items()}
        | {how: sha256(row) for how, row in importances.items() if row is not None},
        "rmse_and_sha256": results,
    }
    (DATA / "ggml.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
