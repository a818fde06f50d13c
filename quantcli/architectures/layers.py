"""Tables that most decoder families share. An entry may use them, extend them or write its own."""

from collections.abc import Callable

import numpy as np

from quantcli.architectures.architecture import Parameter
from quantcli.architectures.config import Config, bad, show
from quantcli.architectures.tensors import Tensor
from quantcli.errors import UnsupportedError

_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS

LENGTHS = (
    Parameter("block_count", "num_hidden_layers"),
    Parameter("context_length", "max_position_embeddings"),
    Parameter("embedding_length", "hidden_size"),
    Parameter("feed_forward_length", "intermediate_size"),
    Parameter("attention.head_count", "num_attention_heads"),
    Parameter("attention.head_count_kv", "num_key_value_heads"),
)

RMS_EPS = Parameter("attention.layer_norm_rms_epsilon", "rms_norm_eps", np.float32)
LAYER_EPS = Parameter("attention.layer_norm_epsilon", "layer_norm_eps", np.float32)

SIZES = (*LENGTHS, RMS_EPS)


def lengths_without(*keys: str) -> tuple[Parameter, ...]:
    """LENGTHS but for these GGUF keys."""
    return tuple(length for length in LENGTHS if length.key not in keys)


def fourfold_mlp(key: str) -> Callable[[Config], None]:
    """A check: refuse an inner size that the converter, which writes 4 hidden_size, does not see.

    key: of config.json. What it returns raises UnsupportedError.
    """

    def check(config: Config) -> None:
        given, computed = config.get(key), config.size("4*hidden_size")
        if given not in (None, computed):
            raise UnsupportedError(
                f"config.json: {key} = {show(given)} is not supported for this family (llama.cpp"
                f" computes 4*hidden_size = {computed})"
            )

    return check


HEAD_DIM = (
    Parameter("attention.key_length", "head_dim"),
    Parameter("attention.value_length", "head_dim"),
)


def norm(
    gguf: str, source: str, size: str = "hidden_size", add: float = 0.0, *, bias: bool = False
) -> Tensor:
    """A norm of each block."""
    return Tensor(f"blk.{{}}.{gguf}", f"model.layers.{{}}.{source}", (size,), bias, add=add)


def attention(
    *, bias: bool | None = None, output_bias: bool | None = False, paired: bool = False
) -> tuple[Tensor, ...]:
    """q, k, v and output of grouped-query attention.

    bias: of q, k, v; paired: rows of q and k change to ggml's adjacent rope pairs.
    """
    q, kv = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
    q_heads, k_heads = ("num_attention_heads", "num_key_value_heads") if paired else ("", "")
    gguf, source = "blk.{}.attn_", "model.layers.{}.self_attn."
    return (
        Tensor(f"{gguf}q", f"{source}q_proj", (q, "hidden_size"), bias, q_heads),
        Tensor(f"{gguf}k", f"{source}k_proj", (kv, "hidden_size"), bias, k_heads),
        Tensor(f"{gguf}v", f"{source}v_proj", (kv, "hidden_size"), bias),
        Tensor(f"{gguf}output", f"{source}o_proj", ("hidden_size", q), output_bias),
    )


def qk_norm(add: float = 0.0) -> tuple[Tensor, ...]:
    """One norm for all query heads, one for all key heads."""
    return (
        norm("attn_q_norm", "self_attn.q_norm", "head_dim", add),
        norm("attn_k_norm", "self_attn.k_norm", "head_dim", add),
    )


def gated_mlp(
    *,
    bias: bool | None = False,
    width: str = "intermediate_size",
    source: str = "mlp",
    gguf: str = "",
) -> tuple[Tensor, ...]:
    """gate, up and down of a gated feed-forward layer; gguf: the ending of their names."""
    wide, narrow = (width, "hidden_size"), ("hidden_size", width)
    prefix = f"model.layers.{{}}.{source}."
    return (
        Tensor(f"blk.{{}}.ffn_gate{gguf}", f"{prefix}gate_proj", wide, bias),
        Tensor(f"blk.{{}}.ffn_up{gguf}", f"{prefix}up_proj", wide, bias),
        Tensor(f"blk.{{}}.ffn_down{gguf}", f"{prefix}down_proj", narrow, bias),
    )


def equal_heads(config: Config) -> None:
    """Refuse a head size that no key of the family's GGUF tells: UnsupportedError."""
    size, computed = config.count("head_dim"), config.size("hidden_size")
    if size * config.count("num_attention_heads") != computed:
        raise UnsupportedError(
            f"config.json: head_dim = {size} is not supported for this family (llama.cpp computes"
            f" hidden_size / num_attention_heads = {computed}"
            f" / {config.count('num_attention_heads')})"
        )


def sliding_blocks(config: Config, period: int) -> np.ndarray:
    """bool: which blocks see a window only; all but every `period`-th unless the file says.

    Raises BadInputError.
    """
    n_blocks = config.count("num_hidden_layers")
    given = config.get("layer_types")
    if given is None:
        return np.array([number % period != 0 for number in range(1, n_blocks + 1)])
    if (
        not isinstance(given, list)
        or len(given) != n_blocks
        or not all(kind in ("full_attention", "sliding_attention") for kind in given)
    ):
        raise bad(f"layer_types = {show(given)}, expected {n_blocks} kinds of attention")
    return np.array([kind == "sliding_attention" for kind in given])


def experts(
    count: str, width: str, router: str, source: str, names: tuple[str, str, str]
) -> tuple[Tensor, ...]:
    """The router, and gate, up and down of all experts.

    count: key of their number; width: of their inner size; source: of one expert, without block.
    """
    inner, outer = (width, "hidden_size"), ("hidden_size", width)
    prefix = f"model.layers.{{}}.{source}."
    return (
        Tensor("blk.{}.ffn_gate_inp", f"model.layers.{{}}.{router}", (count, "hidden_size")),
        *(
            Tensor(f"blk.{{}}.ffn_{role}_exps", prefix + name, shape, experts=count)
            for role, name, shape in zip(
                ("gate", "up", "down"), names, (inner, inner, outer), strict=True
            )
        ),
    )


def expert_counts(count: str) -> tuple[Parameter, ...]:
    """How many experts there are, and how many of them a token sees."""
    return (
        Parameter("expert_count", count),
        Parameter("expert_used_count", "num_experts_per_tok"),
    )


def check_experts(config: Config) -> None:
    """Raises BadInputError when a token would see more experts than there are."""
    count, used = config.count("num_experts"), config.count("num_experts_per_tok")
    if used > count:
        raise bad(f"num_experts_per_tok = {used}, but there are {count} experts")
    if count > _MAX_EXPERTS:
        raise UnsupportedError(
            f"config.json: {count} experts, llama.cpp handles at most {_MAX_EXPERTS}"
        )
