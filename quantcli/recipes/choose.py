"""Choose the tensor type of every tensor, with the decisions of llama-quantize.

Where llama-quantize writes garbage we do not follow: a type given for the output or embedding
tensor falls back like any other when the row does not divide into its blocks. And overrides by
name also work for F32, F16 and BF16 files, where llama-quantize ignores them.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantcli.errors import UsageError
from quantcli.recipes.file_types import FileType, file_type
from quantcli.recipes.mixes import Q8_0_PARTS_OF, Model, block_of, mixed_type, role_of
from quantcli.recipes.recipe import Recipe
from quantcli.recipes.unquantized import is_quantizable, plain_type
from quantcli.tensor_types import get

Metadata = dict[str, Any]

# The type to use instead when the row is no multiple of the block; then F16.
FALLBACKS = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


@dataclass(frozen=True)
class Choice:
    """The type of one tensor.

    `wanted` is what the recipe asks for; `type` differs from it only with a `fallback`, the reason
    in words. `override` is the pattern, or the key of the recipe, that decided instead of the mix.
    """

    name: str
    type: str
    wanted: str
    fallback: str | None = None
    override: str | None = None


def choose_types(
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    metadata: Metadata,
    recipe: Recipe,
    has_imatrix: bool = False,
    unquantized: str = "F16",
    stored: Mapping[str, str] | None = None,
    in_order: bool = False,
) -> list[Choice]:
    """One Choice for each (name, shape in numpy order), in the order given.

    `metadata` holds the hyperparameters under GGUF keys. `unquantized` is the type (F32, F16 or
    BF16) of matrices that a quantized file leaves unquantized; pass the checkpoint's own.
    `stored` are the types of a source that is a GGUF file: what nothing quantizes keeps its own.
    in_order: count tensors in the order given, as llama-quantize does to keep shards.

    Raises:
        UsageError: when the recipe has no file type.
        BadInputError: when metadata lacks the number of blocks.
    """
    if recipe.file_type is None:
        raise UsageError("no file type was chosen; give one with --type or in the recipe")
    kind = file_type(recipe.file_type)
    model = Model.of(metadata, [name for name, _ in tensors], has_imatrix)
    float_type = unquantized if kind.quantized else kind.base
    chooser = _Chooser(kind, recipe, model, float_type, stored)
    ordered = tensors if in_order else sorted(tensors, key=lambda tensor: usual_order(tensor[0]))
    choices = {name: chooser.choose(name, shape) for name, shape in ordered}
    return [choices[name] for name, _ in tensors]


def usual_order(name: str) -> tuple[int, str]:
    """Sorts tensors as llama.cpp does, in which the rules count them: by block, then by name."""
    return block_of(name), name


def unused_patterns(recipe: Recipe, choices: Sequence[Choice]) -> list[str]:
    """The recipe's patterns that decided no tensor: misspelt, or hidden by an earlier one."""
    used = {choice.override for choice in choices}
    return [pattern for pattern, _ in recipe.tensors if pattern not in used]


class _Chooser:
    """Chooses for one tensor after the other; remembers how many of each role the mix has seen."""

    def __init__(
        self,
        kind: FileType,
        recipe: Recipe,
        model: Model,
        float_type: str,
        stored: Mapping[str, str] | None,
    ) -> None:
        self.kind, self.recipe, self.model, self.float_type = kind, recipe, model, float_type
        self.stored = stored
        # Names are lower case; llama-quantize lowers the pattern to match in any case.
        self.patterns = [(re.compile(p, re.IGNORECASE), p, t) for p, t in recipe.tensors]
        self.seen: Counter[str] = Counter()

    def choose(self, name: str, shape: tuple[int, ...]) -> Choice:
        kept = self.recipe.leave_output_tensor and name == "output.weight"
        if kept or not is_quantizable(name, shape, self.model.architecture):
            plain = self.stored[name] if self.stored else plain_type(name, shape, self.float_type)
            return Choice(name, plain, plain)
        wanted, override = self._overridden(name) or (self._by_type(name, shape), None)
        fits = fitting(wanted, shape[-1])
        reason = None
        if fits != wanted:
            size = get(wanted).block_size
            reason = f"a row of {shape[-1]} values is not a multiple of {size}"
        return Choice(name, fits, wanted, reason, override)

    def _overridden(self, name: str) -> tuple[str, str] | None:
        """(type, who says so) where the recipe names a type for this tensor."""
        role, recipe = role_of(name), self.recipe
        by_pattern = next(((t, p) for rx, p, t in self.patterns if rx.search(name)), None)
        if role == "token_embd" and recipe.token_embedding_type:
            # Per-layer embeddings are a large table of their own: a pattern may name them.
            if by_pattern and name == "per_layer_token_embd.weight":
                return by_pattern
            return recipe.token_embedding_type, "token_embedding_type"
        if role == "output" and recipe.output_tensor_type:
            return recipe.output_tensor_type, "output_tensor_type"
        if by_pattern:
            return by_pattern
        if role == "token_embd" and self.model.tied and self._mixes and recipe.output_tensor_type:
            return recipe.output_tensor_type, "output_tensor_type"
        return None

    @property
    def _mixes(self) -> bool:
        return self.kind.quantized and not self.recipe.pure

    def _by_type(self, name: str, shape: tuple[int, ...]) -> str:
        if not self.kind.quantized:
            return self.kind.base if self.stored else plain_type(name, shape, self.kind.base)
        if self.recipe.pure:
            return self.kind.base
        if any(part in name for part in Q8_0_PARTS_OF.get(self.model.architecture, ())):
            return "Q8_0"
        role = role_of(name)
        i = self.seen[role]
        self.seen[role] += 1
        if role == "ffn_down" and self.model.n_expert > 1:
            i = block_of(name)  # a block may have several of them
        return mixed_type(self.kind.name, self.kind.base, role, i, self.model)


def fitting(wanted: str, row: int) -> str:
    """`wanted`, or the first type of its fallbacks whose blocks divide a row."""
    while row % get(wanted).block_size:
        wanted = FALLBACKS.get(wanted, "F16")
    return wanted
