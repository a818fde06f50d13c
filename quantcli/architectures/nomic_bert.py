"""Nomic-BERT (nomic-embed-text v1, v1.5): BERT with rope and a gated mlp, without most biases."""

import numpy as np

from quantcli.architectures.architecture import Architecture
from quantcli.architectures.config import Config, show
from quantcli.architectures.layers import LAYER_EPS, equal_heads, lengths_without
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import FUSED_QKV, Wiring, folds_without
from quantcli.errors import UnsupportedError

_LAYER = "encoder.layers.{}."

# The only context that llama.cpp's converter takes: what the file says, and what it was trained on.
_POSITIONS, _TRAINED = 8192, 2048

# What the model's own code would compute and llama.cpp does not.
_FIXED = {
    "activation_function": "swiglu",
    "causal": False,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "use_rms_norm": False,
}


def _published(config: Config) -> None:
    """Refuse all but the dense models: UnsupportedError."""
    if config.get("moe_every_n_layers"):
        raise UnsupportedError(
            "config.json: moe_every_n_layers ="
            f" {show(config.get('moe_every_n_layers'))}: Nomic-BERT with experts (v2) is not"
            " supported, v1 and v1.5 are; make an F16 GGUF file with llama.cpp and convert that"
        )
    fixed = {**_FIXED, "max_position_embeddings": _POSITIONS, "max_trained_positions": _TRAINED}
    for key, expected in fixed.items():
        value = config.get(key)
        if value is not None and value != expected:
            raise UnsupportedError(
                f"config.json: {key} = {show(value)} is not supported for Nomic-BERT"
                f" (llama.cpp computes {expected!r})"
            )


def _context(config: Config) -> np.uint32:
    return np.uint32(_TRAINED)


def _linear(gguf: str, source: str, rows: str, columns: str) -> Tensor:
    return Tensor(f"blk.{{}}.{gguf}", f"{_LAYER}{source}", (rows, columns))


def _norm(gguf: str, source: str) -> Tensor:
    return Tensor(f"blk.{{}}.{gguf}", f"{_LAYER}{source}", ("hidden_size",), bias=True)


NOMIC_BERT = Architecture(
    name="Nomic-BERT",
    classes=("NomicBertModel",),
    gguf="nomic-bert",
    parameters=(*lengths_without("attention.head_count_kv", "context_length"), LAYER_EPS),
    constants={"attention.causal": False},
    computed={"context_length": _context},
    embedding=Tensor("token_embd", "embeddings.word_embeddings", ("vocab_size", "hidden_size")),
    more=(
        Tensor(
            "token_types", "embeddings.token_type_embeddings", ("type_vocab_size", "hidden_size")
        ),
        Tensor("token_embd_norm", "emb_ln", ("hidden_size",), bias=True),
    ),
    block=(
        _linear("attn_qkv", "attn.Wqkv", "3*hidden_size", "hidden_size"),
        _linear("attn_output", "attn.out_proj", "hidden_size", "hidden_size"),
        _norm("attn_output_norm", "norm1"),
        _linear("ffn_up", "mlp.fc11", "intermediate_size", "hidden_size"),
        _linear("ffn_gate", "mlp.fc12", "intermediate_size", "hidden_size"),
        _linear("ffn_down", "mlp.fc2", "hidden_size", "intermediate_size"),
        _norm("layer_output_norm", "norm2"),
    ),
    final_norm=None,
    head=None,
    defaults={
        "max_position_embeddings": _POSITIONS,
        "layer_norm_eps": 1e-12,
        "rope_theta": 1000.0,
        "type_vocab_size": 2,
    },
    aliases={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "layer_norm_eps": "layer_norm_epsilon",
        "rope_theta": "rotary_emb_base",
    },
    rope=RopeStyle(scalings=()),
    accepts={"num_key_value_heads": ()},
    checks=(_published, equal_heads),
    wiring=Wiring(
        rope="neox",
        token_types=True,
        embedding_norm=True,
        causal=False,
        sites=FUSED_QKV,
        folds=folds_without("attn", "ffn", "output", fused_qkv=True),
        norm="layer",
        norm_bias=True,
        norms=("", ""),
        sum_norms=("attn_output_norm", "layer_output_norm"),
        embeds=True,
    ),
)
