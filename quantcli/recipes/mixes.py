"""The mixes: what a tensor gets beyond the base type of its file, by file type and role.

They reproduce the decisions of llama-quantize (llama_tensor_get_type in llama.cpp's
src/llama-quant.cpp). A role that is not listed gets the base type.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcli.errors import BadInputError

Metadata = dict[str, Any]
BLOCK = re.compile(r"blk\.(\d+)\.")

# The number of blocks that makes llama.cpp call a model of that architecture 70B; of some of them
# only with grouped queries.
BLOCKS_OF_70B = {
    "llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68,
}  # fmt: skip
GROUPED_70B = ("llama", "llama-embed")
# Parts of names that every mix of an architecture leaves at 8 bits.
Q8_0_PARTS_OF = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}

# What a name must contain to have a role; checked in this order, after the exact names.
ROLES = {
    "attn_qkv.weight": "attn_v",
    "attn_kv_b.weight": "attn_v",
    "attn_v.weight": "attn_v",
    "attn_k.weight": "attn_k",
    "attn_q.weight": "other",
    "attn_output.weight": "attn_output",
    "ffn_up": "other",
    "ffn_gate": "other",
    "ffn_down": "ffn_down",
}
EXACT_ROLES = {
    "output.weight": "output",
    "token_embd.weight": "token_embd",
    "per_layer_token_embd.weight": "token_embd",
}


def role_of(name: str) -> str:
    """output, token_embd, attn_v, attn_k, attn_output, ffn_down or other."""
    if name in EXACT_ROLES:
        return EXACT_ROLES[name]
    return next((role for part, role in ROLES.items() if part in name), "other")


def block_of(name: str) -> int:
    """The number of the transformer block, -1 outside of the blocks."""
    found = BLOCK.match(name)
    return int(found[1]) if found else -1


@dataclass(frozen=True)
class Model:
    """What the rules ask about a model; `counts` is how many tensors a role has."""

    counts: dict[str, int]
    architecture: str
    n_gqa: int
    n_expert: int
    is_70b: bool
    tied: bool
    has_imatrix: bool

    @classmethod
    def of(cls, metadata: Metadata, names: Sequence[str], has_imatrix: bool) -> "Model":
        """Read the hyperparameters under the architecture's prefix.

        Raises:
            BadInputError: when the number of blocks is missing, or a value is not an integer.
        """
        arch = metadata.get("general.architecture")
        n_block = _number(metadata, f"{arch}.block_count")
        if n_block is None:
            raise BadInputError(f"metadata has no number of blocks ({f'{arch}.block_count'!r})")
        heads = _number(metadata, f"{arch}.attention.head_count") or 0
        kv_heads = _number(metadata, f"{arch}.attention.head_count_kv")
        kv_heads = heads if kv_heads is None else kv_heads
        experts = _number(metadata, f"{arch}.expert_count") or 0
        predicting = _number(metadata, f"{arch}.nextn_predict_layers") or 0
        large = n_block - predicting == BLOCKS_OF_70B.get(str(arch))
        return cls(
            counts={
                "attn_v": sum(role_of(n) == "attn_v" for n in names),
                "ffn_down": _computed_blocks(str(arch), metadata, n_block),
            },
            architecture=str(arch),
            n_gqa=heads // kv_heads if kv_heads else 0,
            n_expert=experts,
            is_70b=large and not (arch in GROUPED_70B and heads == kv_heads),
            tied="output.weight" not in names,
            has_imatrix=has_imatrix,
        )


def _computed_blocks(arch: str, metadata: Metadata, n_block: int) -> int:
    """Blocks as llama.cpp counts them once it has read the hyperparameters."""
    if arch == "graniteswitch":
        return n_block + 1  # its router is one more
    if arch == "nanbeige":
        return n_block * (_number(metadata, f"{arch}.num_loops") or 1)
    return n_block


def _number(metadata: Metadata, key: str) -> int | None:
    """An integer hyperparameter; of one value per block, the first."""
    if key not in metadata:
        return None
    values = np.ravel(metadata[key])
    if not values.size or not np.issubdtype(values.dtype, np.integer):
        raise BadInputError(f"metadata {key!r} must be an integer, not {str(values)[:40]!r}")
    return int(values[0])


When = Callable[[int, int, Model], bool]  # (index i within the role, number n of the role, model)


def always(i: int, n: int, model: Model) -> bool:
    return True


def grouped(i: int, n: int, model: Model) -> bool:
    return model.n_gqa >= 4


def more_bits(i: int, n: int, model: Model) -> bool:
    """The first and the last eighth, and every third between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def first(count: int) -> When:
    return lambda i, n, model: i < count


def first_of(parts: int) -> When:
    return lambda i, n, model: i < n // parts


def first_of_with_imatrix(parts: int) -> When:
    return lambda i, n, model: model.has_imatrix and i < n // parts


def first_of_without_imatrix(parts: int) -> When:
    return lambda i, n, model: not model.has_imatrix and i < n // parts


# file type -> role -> (tensor type, when), the first that holds.
MIXES: dict[str, dict[str, list[tuple[str, When]]]] = {
    "Q2_K_S": {
        "attn_v": [("Q4_K", grouped)],
        "ffn_down": [("Q4_K", first_of(8))],
    },
    "Q2_K": {
        "attn_v": [("Q4_K", grouped), ("Q3_K", always)],
        "attn_output": [("Q3_K", always)],
        "ffn_down": [("Q3_K", always)],
    },
    "Q3_K_M": {
        "attn_v": [("Q5_K", first(2)), ("Q4_K", always)],
        "attn_output": [("Q4_K", always)],
        "ffn_down": [("Q5_K", first_of(16)), ("Q4_K", always)],
    },
    "Q3_K_L": {
        "attn_v": [("Q5_K", always)],
        "attn_output": [("Q5_K", always)],
        "ffn_down": [("Q5_K", always)],
    },
    "Q4_0": {"ffn_down": [("Q4_1", first_of_with_imatrix(8))]},
    "Q4_K_S": {
        "attn_v": [("Q5_K", first(4))],
        "ffn_down": [("Q5_K", first_of(8))],
    },
    "Q4_K_M": {
        "attn_v": [("Q6_K", more_bits)],
        "ffn_down": [("Q6_K", more_bits)],
    },
    "IQ4_XS": {
        "attn_v": [("Q5_K", grouped)],
        "ffn_down": [("Q5_K", first_of_without_imatrix(8))],
    },
    "IQ4_NL": {
        "attn_v": [("Q5_K", grouped)],
        "ffn_down": [("Q5_K", first_of_without_imatrix(8))],
    },
    "Q5_0": {"ffn_down": [("Q5_1", first_of_with_imatrix(8))]},
    "Q5_K_M": {
        "attn_v": [("Q6_K", more_bits)],
        "ffn_down": [("Q6_K", more_bits)],
    },
}

# Falcon's own rows, in place of those above.
FALCON: dict[str, dict[str, list[tuple[str, When]]]] = {
    "Q3_K_M": {"ffn_down": [("Q5_K", first_of(16)), ("Q4_K", more_bits)], "attn_output": []},
    "Q3_K_L": {"ffn_down": [("Q4_K", always)], "attn_output": [("Q4_K", always)]},
    "Q2_K": {"attn_output": []},
    "Q4_K_S": {"ffn_down": []},
    "Q4_K_M": {"ffn_down": [("Q6_K", first_of(16)), ("Q5_K", more_bits)]},
}

# With exactly 8 experts the attention is a small part of the file: these replace the rows above,
# and attn_output is Q5_K in some file types and the base type in the others.
EIGHT_EXPERTS = {"attn_v": "Q8_0", "attn_k": "Q8_0"}
EIGHT_EXPERTS_Q5_K_OUTPUT = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"),
    *("IQ4_XS", "IQ4_NL"),
)


def mixed_type(file_type: str, base: str, role: str, i: int, model: Model) -> str:
    """The tensor type that the mix gives to the i-th tensor of a role."""
    falcon = model.architecture == "falcon"
    if role == "output" or (role == "token_embd" and model.tied):
        return "Q8_0" if falcon or base == "Q8_0" else "Q6_K"
    if model.n_expert == 8 and role in EIGHT_EXPERTS:
        return EIGHT_EXPERTS[role]
    if model.n_expert == 8 and role == "attn_output" and not falcon:
        return "Q5_K" if file_type in EIGHT_EXPERTS_Q5_K_OUTPUT else base
    rules = MIXES.get(file_type, {}).get(role, [])
    if falcon:
        rules = FALCON.get(file_type, {}).get(role, rules)
    n = model.counts.get(role, 0)
    kind = next((kind for kind, when in rules if when(i, n, model)), base)
    # Many query heads share one attn_v there: it is small, so more bits cost little.
    if role == "attn_v" and model.is_70b and kind in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return kind
