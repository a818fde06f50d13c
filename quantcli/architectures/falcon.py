"""Falcon 7B, 40B and 180B: attention and mlp side by side, q, k, v in one tensor, no biases."""

from dataclasses import replace

import numpy as np

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.config import Config
from quantcli.architectures.layers import LAYER_EPS, fourfold_mlp, lengths_without
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import FUSED, Wiring, folds_without

_LAYER, _INNER = "transformer.h.{}.", "4*hidden_size"


def _kv_heads(config: Config) -> int:
    """One for all query heads, one for each, or in the newer architecture what the file says."""
    if config.flag("new_decoder_architecture"):
        given = config.get("num_kv_heads") is not None
        return config.count("num_kv_heads" if given else "num_attention_heads")
    return 1 if config.flag("multi_query") else config.count("num_attention_heads")


def _two_norms(config: Config) -> bool:
    newer = config.flag("new_decoder_architecture")
    return newer and config.get("num_ln_in_parallel_attn") != 1


def _one_norm(config: Config) -> bool:
    return not _two_norms(config)


def _heads_apart(config: Config) -> np.ndarray:
    """int64: all rows of q, then of k, then of v, where the source has groups of query heads, each
    with the key head and the value head that they share.
    """
    groups, size = config.count("num_key_value_heads"), config.count("head_dim")
    queries = config.count("num_attention_heads") // groups
    numbers = np.arange(groups * (queries + 2) * size).reshape(groups, queries + 2, size)
    parts = numbers[:, :queries], numbers[:, queries], numbers[:, queries + 1]
    return np.concatenate([part.reshape(-1) for part in parts])


def _norm(gguf: str, source: str, two: bool) -> Tensor:
    when = _two_norms if two else _one_norm
    return Tensor(f"blk.{{}}.{gguf}", _LAYER + source, ("hidden_size",), bias=True, when=when)


_ONE_NORM = Wiring(
    rope="neox",
    activation="gelu",
    gated=False,
    sites=FUSED,
    folds=folds_without("attn", "ffn", "ffn_down", fused_qkv=True),
    norm="layer",
    norm_bias=True,
    norms=("attn_norm", "attn_norm"),
    parallel=True,
)
_TWO_NORMS = replace(
    _ONE_NORM,
    norms=("attn_norm_2", "attn_norm"),
    folds={
        **folds_without("ffn_down", fused_qkv=True),
        "attn": "attn_norm_2",
        "ffn": "attn_norm",
    },
)

# llama.cpp computes the tanh form of gelu in place of the exact one.
FALCON = Architecture(
    name="Falcon",
    classes=("FalconForCausalLM",),
    gguf="falcon",
    parameters=(
        *lengths_without("context_length", "feed_forward_length"),
        Parameter("feed_forward_length", _INNER),
        LAYER_EPS,
    ),
    # That q, k and v lie apart has a name.
    constants={"context_length": np.uint32(2048), "tensor_data_layout": "jploski"},
    embedding=Tensor("token_embd", "transformer.word_embeddings", ("vocab_size", "hidden_size")),
    block=(
        _norm("attn_norm", "input_layernorm", two=False),
        _norm("attn_norm", "ln_mlp", two=True),
        _norm("attn_norm_2", "ln_attn", two=True),
        Tensor(
            "blk.{}.attn_qkv",
            f"{_LAYER}self_attention.query_key_value",
            ("num_attention_heads*head_dim+2*num_key_value_heads*head_dim", "hidden_size"),
            order=_heads_apart,
        ),
        Tensor(
            "blk.{}.attn_output", f"{_LAYER}self_attention.dense", ("hidden_size", "hidden_size")
        ),
        Tensor("blk.{}.ffn_up", f"{_LAYER}mlp.dense_h_to_4h", (_INNER, "hidden_size")),
        Tensor("blk.{}.ffn_down", f"{_LAYER}mlp.dense_4h_to_h", ("hidden_size", _INNER)),
    ),
    final_norm=Tensor("output_norm", "transformer.ln_f", ("hidden_size",), bias=True),
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "multi_query": True,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    aliases={"layer_norm_eps": "layer_norm_epsilon"},
    derived={"num_key_value_heads": _kv_heads},
    rope=RopeStyle(scalings=(), stored=False),
    accepts={
        "activation": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        "alibi": (False,),
        "apply_residual_connection_post_layernorm": (False,),
        "bias": (False,),
        "head_dim": (),
        "num_ln_in_parallel_attn": (1, 2),
        "parallel_attn": (True,),
    },
    checks=(fourfold_mlp("ffn_hidden_size"),),
    wiring=replace(_ONE_NORM, with_tensor={"attn_norm_2": _TWO_NORMS}),
)
