"""A LoRA adapter: low-rank updates of a checkpoint's matrices, validated against it at the door."""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantcli.checkpoint.adapter_config import CONFIG, AdapterConfig, read_adapter_config
from quantcli.checkpoint.checkpoint import Checkpoint
from quantcli.checkpoint.files import Folder, open_regular, show
from quantcli.checkpoint.safetensors import SafetensorsFile, to_float32
from quantcli.checkpoint.source_tensor import WEIGHT_DTYPES, SourceTensor
from quantcli.errors import BadInputError, UnsupportedError

WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_CHUNK = 1 << 20

_FACTOR = re.compile(r"(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterRef:
    """What a user asks for: a folder or hub id, and a factor on top of the adapter's own."""

    source: str
    scale: float = 1.0


@dataclass(frozen=True)
class Update:
    """scaling * B A, to be added to one tensor of the base.

    `a` and `b` are names in the adapter's file: of [rank, n_in] and [n_out, rank], for a linear's
    weight [n_out, n_in]; an `embedding` is [n_in, n_out].
    """

    a: str
    b: str
    rank: int
    scaling: float
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """An opened adapter that fits its base.

    `updates` and `replaced` are by the name of the base's tensor; the latter's values are names in
    the adapter's file, whose content takes the place of the base's. `sha256` is of that file.
    """

    id: str
    revision: str | None
    scale: float
    sha256: str
    config: AdapterConfig
    side_files: Folder
    file: SafetensorsFile
    updates: Mapping[str, Update]
    replaced: Mapping[str, str]

    @property
    def changed(self) -> set[str]:
        """The tensors of the base that are not what they were."""
        return self.updates.keys() | self.replaced.keys()

    def float32(self, name: str, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """Float32 rows of a tensor in the adapter's file."""
        raw = self.file.raw(name)
        return to_float32(raw if rows is None else raw[rows], self.file.header.tensors[name].dtype)

    def columns(self, name: str, columns: slice | np.ndarray) -> np.ndarray:
        """Float32 columns of a matrix in the adapter's file, as rows."""
        raw = np.ascontiguousarray(self.file.raw(name)[:, columns].T)
        return to_float32(raw, self.file.header.tensors[name].dtype)


def check_files(names: Collection[str], label: str) -> None:
    """Refuse what is no adapter in safetensors, by the names of its files.

    Raises: BadInputError, UnsupportedError (pickles).
    """
    if CONFIG not in names:
        raise BadInputError(f"{label} is no LoRA adapter: it has no {CONFIG}")
    if WEIGHTS not in names and _PICKLE in names:
        raise UnsupportedError(
            f"{label} has only pickled weights ({_PICKLE}), never loaded because they may run code:"
            f" save the adapter as {WEIGHTS}"
        )
    if WEIGHTS not in names:
        raise BadInputError(f"{label} has no {WEIGHTS}")


def read_adapter(
    root: Path, id: str, revision: str | None, scale: float, base: Checkpoint
) -> Adapter:
    """Open the adapter in the resolved folder `root` and read all of its few weights once.

    Raises: BadInputError (not an adapter, not of this base, NaN), UnsupportedError, AccessError.
    """
    side_files = Folder(root)
    check_files(side_files.names, show(id))
    config = read_adapter_config(side_files.json(CONFIG) or {})
    file = SafetensorsFile(root, WEIGHTS)
    updates, replaced = _match(file, config, base)
    adapter = Adapter(
        id, revision, scale, _sha256(root), config, side_files, file, updates, replaced
    )
    for name in file.header.tensors:
        _check_finite(adapter, name)
    return adapter


def _match(
    file: SafetensorsFile, config: AdapterConfig, base: Checkpoint
) -> tuple[dict[str, Update], dict[str, str]]:
    """What the tensors in the file are to those of the base."""
    # Multimodal checkpoints nest the language model, in places that change with the classes.
    known = {_plain(name): tensor for name, tensor in base.tensors.items()}
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name, tensor in file.header.tensors.items():
        if tensor.dtype not in WEIGHT_DTYPES:
            raise UnsupportedError(f"{WEIGHTS}: tensor {show(name)}: {tensor.dtype} is no weight")
        if match := _FACTOR.fullmatch(name):
            kind = f"embedding_{match[3]}" if match[3] else match[2]
            factors.setdefault(match[1], {})[kind] = name
        else:
            target = _replaced(name, config, known)
            if target.shape != tensor.shape:
                raise _misfit(name, tensor.shape, target)
            replaced[target.name] = name
    updates = dict(_update(file, config, m, found, known) for m, found in factors.items())
    if len(updates) < len(factors):
        raise BadInputError(f"{WEIGHTS} updates a tensor of the base twice")
    return updates, replaced


def _plain(name: str) -> str:
    return name.replace("language_model.", "")


def _replaced(name: str, config: AdapterConfig, known: Mapping[str, SourceTensor]) -> SourceTensor:
    """The base's tensor that one in the file, no factor of an update, takes the place of."""
    whole = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
    module = whole.rpartition(".")[0]
    saved = any(m and module.endswith(m) for m in config.saved)
    target = known.get(_plain(whole))
    if target is None or not (saved or ".base_layer." in name):
        raise UnsupportedError(
            f"{WEIGHTS}: tensor {show(name)} is neither lora_A nor lora_B nor of a module in"
            " modules_to_save that the base has"
        )
    return target


def _update(
    file: SafetensorsFile,
    config: AdapterConfig,
    path: str,
    found: dict[str, str],
    known: Mapping[str, SourceTensor],
) -> tuple[str, Update]:
    """The name of the tensor to update, and how. `found`: the factors by their kind."""
    module = path.removeprefix(_PREFIX)
    embedding = any(kind.startswith("embedding") for kind in found)
    kinds = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(found) != set(kinds):
        raise BadInputError(f"{WEIGHTS}: module {show(module)} needs one lora_A, one lora_B")
    target = known.get(_plain(f"{module}.weight"))
    if target is None:
        raise BadInputError(
            f"{WEIGHTS}: the base has no tensor {show(f'{module}.weight')}: the adapter was made"
            f" for {show(config.base) if config.base else 'another model'}"
        )
    a, b = (found[kind] for kind in kinds)
    shape_a, shape_b = (file.header.tensors[name].shape for name in (a, b))
    rank = config.rank_of(module)
    if len(shape_a) != 2 or len(shape_b) != 2 or (shape_a[0], shape_b[1]) != (rank, rank):
        raise BadInputError(
            f"{WEIGHTS}: {show(module)} has lora_A {shape_a} and lora_B {shape_b}, but {CONFIG}"
            f" says rank {rank}"
        )
    made = (shape_a[1], shape_b[0]) if embedding else (shape_b[0], shape_a[1])
    if made != target.shape:
        raise _misfit(f"{module}.weight", made, target)
    return target.name, Update(a, b, rank, config.scaling(module), embedding)


def _misfit(name: str, shape: tuple[int, ...], target: SourceTensor) -> BadInputError:
    return BadInputError(
        f"{WEIGHTS}: {show(name)} is for a tensor of shape {shape}, the base's {show(target.name)}"
        f" has {target.shape}: the adapter was made for another base"
    )


def _check_finite(adapter: Adapter, name: str) -> None:
    shape = adapter.file.header.tensors[name].shape
    n_rows = shape[0] if shape else 1
    step = max(1, _CHUNK // max(1, int(np.prod(shape[1:]))))
    for start in range(0, n_rows, step):
        rows = slice(start, start + step) if shape else None
        if not np.isfinite(adapter.float32(name, rows)).all():
            raise BadInputError(
                f"{WEIGHTS}: tensor {show(name)} holds NaN or infinity: the adapter is broken"
            )


def _sha256(root: Path) -> str:
    with open_regular(root, WEIGHTS) as file:
        sha = hashlib.sha256()
        while chunk := file.read(4 * _CHUNK):
            sha.update(chunk)
    return sha.hexdigest()
