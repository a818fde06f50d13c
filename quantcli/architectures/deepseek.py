"""DeepSeek-V2 and its Lite model: latent attention, and experts behind a few dense blocks.

Keys of metadata are those of llama.cpp's converter after its split of kv_b_proj: there is one kv
head, whose values are the latent vector and whose keys are that vector and what rope turns.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.config import Config, bad, positive, show
from quantcli.architectures.layers import (
    RMS_EPS,
    check_experts,
    expert_counts,
    experts,
    gated_mlp,
    lengths_without,
    norm,
)
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import (
    LATENT,
    LATENT_FOLDS,
    LATENT_QUERIES,
    LATENT_QUERIES_FOLDS,
    Mixture,
    Wiring,
)
from quantcli.errors import UnsupportedError

_ROPE = RopeStyle(scalings=("yarn",))
_SOFTMAX = 1  # LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX
_EPS = 1e-6
_QUERY = "num_attention_heads*qk_nope_head_dim+num_attention_heads*qk_rope_head_dim"
_KEYS_VALUES = "num_attention_heads*qk_nope_head_dim+num_attention_heads*v_head_dim"


def _dense_blocks(config: Config) -> int:
    return config.count("first_k_dense_replace", least=0)


def _dense(config: Config, block: int) -> bool:
    return block < _dense_blocks(config)


def _sparse(config: Config, block: int) -> bool:
    return not _dense(config, block)


def _plain_queries(config: Config, _: int) -> bool:
    return config.get("q_lora_rank") is None


def _latent_queries(config: Config, block: int) -> bool:
    return not _plain_queries(config, block)


def _rows(*, of_value: bool) -> Callable[[Config], np.ndarray]:
    """The numbers of the rows of kv_b_proj that make keys, or values: each head has both."""

    def order(config: Config) -> np.ndarray:
        heads, key = config.count("num_attention_heads"), config.count("qk_nope_head_dim")
        rows = np.arange(config.size(_KEYS_VALUES)).reshape(heads, -1)
        return (rows[:, key:] if of_value else rows[:, :key]).reshape(-1)

    return order


def _heads() -> tuple[Tensor, Tensor]:
    """Matrices of each head. That of keys is turned: it moves a query into the latent's space,
    where kv_b_proj moves a key out of it.
    """
    source, heads = "model.layers.{}.self_attn.kv_b_proj", "num_attention_heads"
    return (
        Tensor(
            "blk.{}.attn_k_b",
            source,
            (heads, "kv_lora_rank", "qk_nope_head_dim"),
            order=_rows(of_value=False),
            whole=_KEYS_VALUES,
            turned=True,
        ),
        Tensor(
            "blk.{}.attn_v_b",
            source,
            (heads, "v_head_dim", "kv_lora_rank"),
            order=_rows(of_value=True),
            whole=_KEYS_VALUES,
        ),
    )


def _attention() -> tuple[Tensor, ...]:
    gguf, source, lora = "blk.{}.attn_", "model.layers.{}.self_attn.", "q_lora_rank"
    latent = replace(norm("attn_q_a_norm", "self_attn.q_a_layernorm", lora), when=_latent_queries)
    hidden = "hidden_size"
    return (
        Tensor(f"{gguf}q", f"{source}q_proj", (_QUERY, hidden), when=_plain_queries),
        Tensor(f"{gguf}q_a", f"{source}q_a_proj", (lora, hidden), when=_latent_queries),
        latent,
        Tensor(f"{gguf}q_b", f"{source}q_b_proj", (_QUERY, lora), when=_latent_queries),
        Tensor(
            f"{gguf}kv_a_mqa",
            f"{source}kv_a_proj_with_mqa",
            ("kv_lora_rank+qk_rope_head_dim", hidden),
        ),
        norm("attn_kv_a_norm", "self_attn.kv_a_layernorm", "kv_lora_rank"),
        *_heads(),
        Tensor(f"{gguf}output", f"{source}o_proj", (hidden, "num_attention_heads*v_head_dim")),
    )


def _check_queries(config: Config) -> None:
    """llama.cpp tells from the number of blocks whether queries have a latent vector."""
    blocks, vocabulary = config.count("num_hidden_layers"), config.count("vocab_size")
    lite = blocks in (26, 27) or (blocks == 48 and vocabulary == 128256)
    if lite != _plain_queries(config, 0):
        raise UnsupportedError(
            f"config.json: q_lora_rank = {show(config.get('q_lora_rank'))} with num_hidden_layers ="
            f" {blocks} is not supported (llama.cpp takes models of 26 or 27 blocks for those"
            " without q_lora_rank, and no others)"
        )


def _check_heads(config: Config) -> None:
    heads, groups = config.count("num_attention_heads"), config.count("num_key_value_heads")
    if heads != groups:
        raise UnsupportedError(
            f"config.json: num_key_value_heads = {groups} with {heads} heads is not supported"
            " (each head makes keys and values of its own)"
        )


def _check_blocks(config: Config) -> None:
    dense = _dense_blocks(config)
    if dense >= config.count("num_hidden_layers"):
        raise UnsupportedError(
            f"config.json: first_k_dense_replace = {dense} leaves no block with experts, which is"
            " not supported for this family"
        )


def _check_eps(config: Config) -> None:
    """The norms of latent vectors have the default of their class, whatever the others have."""
    if config.number("rms_norm_eps") != _EPS:
        raise UnsupportedError(
            f"config.json: rms_norm_eps = {show(config.get('rms_norm_eps'))} is not supported (the"
            f" norms of latent vectors have {_EPS}, and llama.cpp computes one for all)"
        )


def _check_rope(config: Config) -> None:
    """llama.cpp makes of mscale_all_dim a scale of attention, and takes mscale for the same."""
    rope = _ROPE.read(config)
    kind, given = rope["rope_type"], [rope.get(key) for key in ("mscale", "mscale_all_dim")]
    if kind not in ("default", "yarn"):
        raise UnsupportedError(
            f"config.json: rope type {show(kind)} is not supported for this family"
            " (supported: default, yarn)"
        )
    if kind == "default":
        return
    if None in given or given[0] != given[1]:
        raise UnsupportedError(
            f"config.json: yarn with mscale = {show(given[0])} and mscale_all_dim ="
            f" {show(given[1])} is not supported (llama.cpp computes with equal ones)"
        )
    positive("mscale_all_dim", given[1])
    if rope.get("attention_factor") is not None or rope.get("attn_factor") is not None:
        raise UnsupportedError(
            "config.json: yarn with attention_factor is not supported for this family (llama.cpp"
            " tells it from mscale)"
        )
    if positive("rope factor", rope.get("factor")) < 1:
        raise bad(f"rope factor = {show(rope['factor'])}, expected one from 1")


def _yarn_log_multiplier(config: Config) -> np.float32 | None:
    scale = _ROPE.read(config).get("mscale_all_dim")
    return None if scale is None else np.float32(0.1 * positive("mscale_all_dim", scale))


def _gating(config: Config) -> np.uint32 | None:
    return None if config.get("scoring_func") is None else np.uint32(_SOFTMAX)


_EXPERTS = experts(
    "num_experts",
    "moe_intermediate_size",
    "mlp.gate",
    "mlp.experts.{}",
    ("gate_proj", "up_proj", "down_proj"),
)
_SHARED = gated_mlp(
    width="n_shared_experts*moe_intermediate_size", source="mlp.shared_experts", gguf="_shexp"
)

_PLAIN = Wiring(
    rope="norm",
    sites=LATENT,
    folds=LATENT_FOLDS,
    mixture=Mixture(normalized=False, shared=True, shared_gate=False, scaled=True),
    latent=True,
)
_QUERIES = replace(_PLAIN, sites=LATENT_QUERIES, folds=LATENT_QUERIES_FOLDS)

DEEPSEEK2 = Architecture(
    name="DeepSeek-V2",
    classes=("DeepseekV2ForCausalLM",),
    gguf="deepseek2",
    parameters=(
        *lengths_without("attention.head_count_kv"),
        RMS_EPS,
        *expert_counts("num_experts"),
        Parameter("expert_group_count", "n_group", optional=True),
        Parameter("expert_group_used_count", "topk_group", optional=True),
        Parameter("expert_feed_forward_length", "moe_intermediate_size"),
        Parameter("expert_shared_count", "n_shared_experts"),
        Parameter("expert_weights_scale", "routed_scaling_factor", np.float32),
        Parameter("vocab_size", "vocab_size"),
        Parameter("attention.q_lora_rank", "q_lora_rank", optional=True),
        Parameter("attention.kv_lora_rank", "kv_lora_rank"),
        Parameter("attention.key_length", "kv_lora_rank+qk_rope_head_dim"),
        Parameter("attention.value_length", "kv_lora_rank"),
        Parameter("attention.key_length_mla", "qk_nope_head_dim+qk_rope_head_dim"),
        Parameter("attention.value_length_mla", "v_head_dim"),
        Parameter("rope.dimension_count", "qk_rope_head_dim"),
    ),
    constants={"attention.head_count_kv": np.uint32(1)},
    computed={
        "leading_dense_block_count": lambda config: np.uint32(_dense_blocks(config)),
        "expert_gating_func": _gating,
        "rope.scaling.yarn_log_multiplier": _yarn_log_multiplier,
    },
    block=(
        norm("attn_norm", "input_layernorm"),
        *_attention(),
        norm("ffn_norm", "post_attention_layernorm"),
        *(replace(tensor, when=_dense) for tensor in gated_mlp()),
        *(replace(tensor, when=_sparse) for tensor in (*_EXPERTS, *_SHARED)),
    ),
    defaults={
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": _EPS,
        "rope_theta": 10000.0,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "num_experts": 64,
        "n_shared_experts": 2,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 1.0,
        "moe_intermediate_size": 1407,
        "vocab_size": 102400,
    },
    aliases={"num_experts": "n_routed_experts"},
    derived={"head_dim": lambda config: config.count("qk_rope_head_dim")},  # what rope turns
    rope=_ROPE,
    # Groups of experts are compared in another way by llama.cpp, that of DeepSeek-V3.
    accepts={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "topk_method": ("greedy",),
        "n_group": (1,),
        "topk_group": (1,),
        "scoring_func": ("softmax",),
        "norm_topk_prob": (False,),
        "moe_layer_freq": (1,),
    },
    checks=(_check_queries, _check_heads, _check_blocks, check_experts, _check_eps, _check_rope),
    wiring=replace(_PLAIN, with_tensor={"attn_q_a": _QUERIES}),
)
