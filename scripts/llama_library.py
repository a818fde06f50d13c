"""llama.cpp's own library, through the llama-cpp-python package, as the other scripts use it."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from quantcli.calibration import read_imatrix

WINDOW = 512
_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
llama_cpp.llama_log_set(_SILENT, None)


class Runtime:
    """One GGUF file; `callback` is ggml's cb_eval."""

    def __init__(self, path: Path, threads: int, callback: Any = None) -> None:
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = WINDOW
        params.n_threads = params.n_threads_batch = threads
        if callback is not None:
            params.cb_eval = callback
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def windows(self, text: str, count: int) -> Iterator[np.ndarray]:
        """The first windows of the text, each with BOS in the place of its first token."""
        data = text.encode()[: 16 * WINDOW * count]
        ids = (ctypes.c_int32 * len(data))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, False)
        tokens = np.array(ids[:n], np.int32)
        for start in range(0, min(n // WINDOW, count) * WINDOW, WINDOW):
            window = tokens[start : start + WINDOW].copy()
            window[0] = llama_cpp.llama_vocab_bos(self.vocab)
            yield window

    def logits(self, window: np.ndarray) -> np.ndarray:
        """Float32 [255, n_vocab]: those that predict the second half of a window."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(len(window), 0, 1)
        batch.n_tokens = len(window)
        for i, token in enumerate(window.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= WINDOW // 2
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        flat = llama_cpp.llama_get_logits(self.context)
        found = np.ctypeslib.as_array(flat, (WINDOW // 2, self.n_vocab))[:-1].copy()
        llama_cpp.llama_batch_free(batch)
        return found


def llama_quantize(
    source: Path, output: Path, type_id: int, imatrix: Path | None = None, threads: int = 2
) -> None:
    """llama.cpp's own quantizer; the importance matrix is passed as it passes it to itself."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = type_id, threads
    keep: list[object] = []
    if imatrix is not None:
        params.imatrix = ctypes.cast(imatrix_array(imatrix, keep), type(params.imatrix))
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), params)
    if code != 0:
        raise SystemExit(f"llama_model_quantize failed with {code}")


def imatrix_array(path: Path, keep: list[object]) -> ctypes.Array:
    """The C array, ended by a null name; `keep` holds what it points to."""
    imatrix = read_imatrix(path)
    array = (llama_cpp.llama_model_imatrix_data * (len(imatrix.entries) + 1))()
    for slot, (name, entry) in zip(array, imatrix.entries.items(), strict=False):
        values = np.ascontiguousarray(imatrix.importance(name, entry.sums.size), np.float32)
        keep.append(values)
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    keep.append(array)
    return array
