"""A model that predicts a little worse: the weights of a checkpoint, crudely rounded.

The rounding is simple arithmetic that will never change, so that what others computed of it can
be kept.
"""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from quantcli.checkpoint import open_checkpoint

STEPS = 12  # from 0 to the largest magnitude of a row


def build_crude(source: Path, folder: Path) -> Path:
    """Copy a checkpoint; each row of its matrices becomes multiples of max|row| / STEPS."""
    shutil.copytree(source, folder)
    checkpoint = open_checkpoint(str(source))
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        w = checkpoint.float32(name)
        if len(tensor.shape) > 1:
            step = np.abs(w).max(axis=1, keepdims=True) / np.float32(STEPS)
            w = np.rint(w / step) * step
        tensors[name] = w
    save_file(tensors, folder / "model.safetensors")
    return folder
