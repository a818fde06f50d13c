"""The sizes of latent attention, read from GGUF metadata."""

import math
from dataclasses import dataclass, replace

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.transformer.keys import Keys
from quantcli.transformer.rope import Rope


@dataclass(frozen=True)
class Latent:
    """Sizes of latent attention.

    n, n_query: of the latent vectors of keys and values, and of queries (0 for none); n_still: what
    does not turn of a head's query; n_value: of a head's value.
    """

    n: int
    n_query: int
    n_still: int
    n_value: int


def read_latent(keys: Keys, n_rot: int, *, queries: bool) -> Latent:
    """queries: they have a latent vector, too.

    Raises BadInputError, UnsupportedError (keys and values that an older converter wrote).
    """
    if keys.get("attention.key_length_mla") is None:
        raise UnsupportedError(
            f"metadata: no {keys.name('attention.key_length_mla')}: this file keeps keys and values"
            " in one tensor, as older converters did, which the forward pass does not compute;"
            " convert the checkpoint again"
        )
    n, key = keys.count("attention.kv_lora_rank"), keys.count("attention.key_length_mla")
    stored = keys.count("attention.key_length"), keys.count("attention.value_length")
    if stored != (n + n_rot, n) or key <= n_rot or n_rot % 2:
        raise BadInputError(
            f"metadata: key_length = {stored[0]}, value_length = {stored[1]}, kv_lora_rank = {n},"
            f" key_length_mla = {key}, rope.dimension_count = {n_rot} contradict each other"
        )
    n_query = keys.count("attention.q_lora_rank") if queries else 0
    return Latent(n, n_query, key - n_rot, keys.count("attention.value_length_mla"))


def latent_rope(keys: Keys, rope: Rope) -> tuple[Rope, float]:
    """How latent attention turns, and what llama.cpp multiplies its scale by: yarn's magnitude.

    The key holds a tenth of what multiplies the logarithm of yarn's factor (see deepseek2.cpp).
    """
    key = "rope.scaling.yarn_log_multiplier"
    if rope.factor == 1:
        return replace(rope, magnitude=1.0), 1.0
    if not rope.yarn or keys.get(key) is None:
        raise UnsupportedError(
            f"metadata: a rope stretched without {keys.name(key)}: the forward pass does not"
            " compute that for this architecture, converting works"
        )
    return replace(rope, magnitude=1.0), (1 + keys.number(key) * math.log(rope.factor)) ** 2
