"""How a checkpoint's hidden states become one embedding, as sentence-transformers stores it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantcli.checkpoint.checkpoint import Checkpoint
from quantcli.checkpoint.files import MODULES, parse_json, show
from quantcli.errors import BadInputError, UnsupportedError

# llama.cpp's numbers (enum llama_pooling_type), by the value of `pooling_mode`.
MEAN, CLS, LAST = np.uint32(1), np.uint32(2), np.uint32(3)
_MODES = {"mean": MEAN, "cls": CLS, "lasttoken": LAST}
_FLAGS = {
    "pooling_mode_mean_tokens": MEAN,
    "pooling_mode_cls_token": CLS,
    "pooling_mode_lasttoken": LAST,
}
# The length of an embedding makes no difference to angles, and llama.cpp sets it to 1.
_MODULES = ("Transformer", "Pooling", "Normalize")


def pooling_type(checkpoint: Checkpoint) -> np.uint32 | None:
    """The number that llama.cpp's converter writes; None where no file says it.

    Raises: BadInputError (files that are broken), UnsupportedError (what llama.cpp does not do).
    """
    path = _folder(checkpoint)
    if path is None:
        return None
    name = f"{path}/config.json"
    config = checkpoint.json(name)
    if config is None:
        raise BadInputError(f"{MODULES} names the folder {show(path)}, but {show(name)} is missing")
    flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(flags) > 1:
        raise UnsupportedError(f"{name}: {' and '.join(sorted(flags))} at once: {_only()}")
    if flags:
        kind, what = _FLAGS.get(flags[0]), flags[0]
    else:
        mode = config.get("pooling_mode")
        kind, what = _MODES.get(mode) if isinstance(mode, str) else None, f"pooling_mode = {mode!r}"
    if kind is None:
        raise UnsupportedError(f"{name}: {show(what)} is not supported: {_only()}")
    return kind


def _only() -> str:
    return f"llama.cpp takes one of {', '.join(_MODES)}"


def _folder(checkpoint: Checkpoint) -> str | None:
    """The folder of the pooling module, if there is one."""
    data = checkpoint.file(MODULES)
    if data is None:
        return None
    modules = parse_json(data, MODULES)
    found = None
    for module in modules if isinstance(modules, list) else [None]:
        kind, path = _described(module)
        if kind not in _MODULES:
            raise UnsupportedError(
                f"{MODULES}: a module {show(kind)} changes the embedding, which llama.cpp does not"
                f" do (it takes {', '.join(_MODULES)})"
            )
        if kind == "Pooling" and found is None:
            found = path
    return found


def _described(module: Any) -> tuple[str, str]:
    match module:
        case {"type": str(kind), "path": str(path)} if isinstance(module, Mapping):
            return kind.rpartition(".")[2], path.strip("/")
        case _:
            raise BadInputError(f"{MODULES} is no list of modules with type and path")
