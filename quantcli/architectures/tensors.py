"""Matching a checkpoint's tensors to those of the GGUF file: names, shapes, row order."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from quantcli.architectures.config import Config, bad, show
from quantcli.errors import BadInputError, UnsupportedError

Shape = tuple[int, ...]

# Buffers that old checkpoints carry and no runtime reads.
_BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")

# What a norm's weight and bias are called in the first checkpoints of BERT.
_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a family, or one per block where the names contain "{}".

    gguf, source: names without ".weight"; shape: config.json keys, products with "*";
    bias: False none, True always, None where the checkpoint has one; heads: the key with the
    number of heads whose rows change from rotate-half order to the adjacent pairs that ggml's
    rope turns; order: numbers of the source rows in their new order; add: added to every value
    (Gemma's norms multiply by 1 + weight); experts: the key with the number of experts, whose
    matrices of that shape are stacked (their number is the second "{}" of `source`);
    transposed: the checkpoint holds the transpose of the weight (GPT-2's Conv1D); when: whether a
    block of that number has it, None: all do; whole: the number of rows of the source where `order`
    takes some of them, and other tensors the others; turned: of a stack, see OutputTensor; bare:
    the source's name has no ".weight"; part: what ends the name, "bias" for one of many experts.
    """

    gguf: str
    source: str
    shape: tuple[str, ...]
    bias: bool | None = False
    heads: str = ""
    order: Callable[[Config], np.ndarray] | None = None
    add: float = 0.0
    experts: str = ""
    transposed: bool = False
    when: Callable[[Config, int], bool] | None = None
    whole: str = ""
    turned: bool = False
    bare: bool = False
    part: str = "weight"


@dataclass(frozen=True, eq=False)
class OutputTensor:
    """One tensor of the GGUF file and how to make it; `shape` is (rows, columns).

    Take `source` (or the generated float32 `data`, or the matrices `stack`, one on the other:
    `shape` is (matrices, rows, columns) then), reorder rows so that row i is source row
    rows[i] (there may be more, which other tensors take), add `add` in float32. `must_equal` names
    another source tensor that has to hold the same bytes: llama.cpp reads this one where
    transformers reads the other. `transposed`: row i is column i of the source. `turned`: `shape`
    is (matrices, rows, columns), and `rows` are the columns of one matrix after the other.
    """

    name: str
    shape: Shape
    source: str | None = None
    rows: np.ndarray | None = None
    add: float = 0.0
    data: np.ndarray | None = None
    must_equal: str | None = None
    stack: tuple[str, ...] = ()
    transposed: bool = False
    turned: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """All tensors of the checkpoint that it is made of."""
        return self.stack if self.source is None else (self.source,)


class SourceTensors:
    """The tensors of one checkpoint under the names that the family's own classes use."""

    def __init__(
        self,
        config: Config,
        shapes: Mapping[str, Shape],
        ignores: Iterable[str],
        prefix: str = "",
    ) -> None:
        """`ignores`: substrings of names to leave out; `prefix`: see Architecture.prefix.

        Raises BadInputError for a name twice.
        """
        self._config = config
        self._shapes = shapes
        self._original: dict[str, str] = {}
        self._shared: dict[str, str] = {}  # taken, but for some of their rows
        for original in shapes:
            # Multimodal files nest the language model: "model.language_model.layers.0...".
            name = original.replace("language_model.", "").removeprefix(prefix)
            for old, new in _OLD_ENDINGS.items():
                name = name.removesuffix(old) + new if name.endswith(old) else name
            if name.endswith(_BUFFERS) or any(part in name for part in ignores):
                continue
            if name in self._original:
                raise BadInputError(
                    f"tensors {show(self._original[name])} and {show(original)} are the same one"
                )
            self._original[name] = original

    def has(self, name: str) -> bool:
        """True until the tensor is taken."""
        return name in self._original

    def check_blocks(self, block: Tensor, expected: int) -> None:
        """Raises BadInputError unless blocks 0..expected-1, and no others, are there."""
        prefix = block.source.partition("{}")[0]
        numbers = {
            name[len(prefix) :].partition(".")[0]
            for name in self._original
            if name.startswith(prefix)
        }
        found = {number for number in numbers if number.isascii() and number.isdecimal()}
        if found != {str(i) for i in range(expected)}:
            raise bad(
                f"num_hidden_layers = {expected}, but the checkpoint has tensors of"
                f" {len(found)} layers ({prefix}0 and on)"
            )

    def take(self, tensor: Tensor, block: int = 0) -> list[OutputTensor]:
        """The weight and, where there is one, the bias; each can be taken once.

        Raises BadInputError when one is missing or its shape disagrees with the config.
        """
        if tensor.when and not tensor.when(self._config, block):
            return []
        if tensor.experts:
            return [self._stack(tensor, block)]
        source, gguf = tensor.source.format(block), tensor.gguf.format(block)
        weight = source if tensor.bare else f"{source}.weight"
        taken = [self._one(tensor, weight, f"{gguf}.{tensor.part}", tensor.shape)]
        if tensor.bias or (tensor.bias is None and self.has(f"{source}.bias")):
            bias = replace(tensor, add=0.0, transposed=False)
            taken.append(self._one(bias, f"{source}.bias", f"{gguf}.bias", tensor.shape[:1]))
        return taken

    def check_nothing_left(self, gguf: str) -> None:
        """Raises UnsupportedError naming the first tensor that nothing took."""
        for original in self._original.values():
            raise UnsupportedError(
                f"tensor {show(original)} has no place in llama.cpp's {gguf!r} architecture"
                f" ({len(self._original)} such tensors)"
            )

    def _stack(self, tensor: Tensor, block: int) -> OutputTensor:
        count = self._config.count(tensor.experts)
        name = f"{tensor.gguf.format(block)}.weight"
        taken = [
            self._one(tensor, f"{tensor.source.format(block, expert)}.weight", name, tensor.shape)
            for expert in range(count)
        ]
        if self.has(f"{tensor.source.format(block, count)}.weight"):
            raise bad(f"{tensor.experts} = {count}, but the checkpoint has more experts")
        stack = tuple(one.source for one in taken if one.source is not None)
        return OutputTensor(name, (count, *taken[0].shape), stack=stack)

    def _one(self, tensor: Tensor, source: str, gguf: str, sizes: tuple[str, ...]) -> OutputTensor:
        original = self._original.pop(source, None)
        if tensor.whole and original is not None:
            self._shared[source] = original
        original = original or self._shared.get(source)
        if original is None:
            raise BadInputError(f"tensor {source!r} is missing from the checkpoint")
        shape = tuple(self._config.size(size) for size in sizes)
        if tensor.whole:
            sizes = (tensor.whole, sizes[-2] if tensor.turned else sizes[-1])
        made = tuple(self._config.size(size) for size in sizes)
        expected = made[::-1] if tensor.transposed else made
        if tuple(self._shapes[original]) != expected:
            implied = ", ".join(
                f"{size} = {value}" for size, value in zip(sizes, made, strict=True)
            )
            raise BadInputError(
                f"tensor {show(original)} has shape {show(tuple(self._shapes[original]))},"
                f" but config.json says {expected} ({implied})"
            )
        rows = None
        if tensor.heads:
            rows = _paired_rows(made[0], self._config.count(tensor.heads))
        elif tensor.order:
            rows = tensor.order(self._config)
        return OutputTensor(
            gguf,
            shape,
            original,
            rows,
            tensor.add,
            transposed=tensor.transposed,
            turned=tensor.turned,
        )


@lru_cache(maxsize=16)
def _paired_rows(n_rows: int, n_heads: int) -> np.ndarray:
    """int64[n_rows]: within each head, rows j and j + head_dim/2 become neighbours."""
    order = np.arange(n_rows).reshape(n_heads, 2, -1).swapaxes(1, 2).reshape(-1)
    order.flags.writeable = False
    return order
