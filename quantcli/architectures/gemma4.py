"""Gemma 4 in its dense form (31B): wide heads in global blocks, whose keys are their values."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.config import Config, bad, show
from quantcli.architectures.layers import SIZES, gated_mlp, norm, sliding_blocks
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import KEYS_AS_VALUES, Wiring, folds_without
from quantcli.errors import UnsupportedError

_sliding = partial(sliding_blocks, period=6)

# What makes the other models of the family, and is not computed here.
_OTHERS = {
    "enable_moe_block": "the mixture of experts of Gemma 4 26B-A4B is",
    "hidden_size_per_layer_input": "the embeddings per layer of Gemma 4 E2B and E4B are",
    "num_kv_shared_layers": "layers that read the keys of others (Gemma 4 E2B and E4B) are",
    "use_double_wide_mlp": "mlps of two widths (Gemma 4 E2B) are",
}


def _slides(config: Config, number: int) -> bool:
    return bool(_sliding(config)[number])


def _sees_all(config: Config, number: int) -> bool:
    return not _slides(config, number)


def _dense(config: Config) -> None:
    """Refuse the other models of the family, each by what is missing: UnsupportedError."""
    for key, what in _OTHERS.items():
        if config.get(key) not in (None, False, 0):
            raise UnsupportedError(
                f"config.json: {key} = {show(config.get(key))} is not supported: {what} not"
                " computed here, llama.cpp's converter takes such a model"
            )
    if not config.flag("attention_k_eq_v"):
        raise UnsupportedError(
            "config.json: attention_k_eq_v = False is not supported: global layers with values of"
            " their own are not computed here, llama.cpp's converter takes such a model"
        )
    if not config.get("final_logit_softcapping"):
        raise UnsupportedError(
            "config.json: Gemma 4 without final_logit_softcapping is not supported (llama.cpp caps"
            " its logits at 30)"
        )
    if config.get("per_layer_config") is not None:
        raise UnsupportedError(
            "config.json: per_layer_config is not read here: say global_head_dim and"
            " num_global_key_value_heads in its place, as the published files do"
        )


def _global_heads(config: Config) -> None:
    """Head sizes of global blocks that make sense, and one of these at the end: BadInputError."""
    heads = config.count("num_attention_heads")
    groups, size = config.count("num_global_key_value_heads"), config.count("global_head_dim")
    if heads % groups or size % 2:
        raise bad(
            f"num_global_key_value_heads = {groups} and global_head_dim = {size} do not fit"
            f" num_attention_heads = {heads}"
        )
    if _sliding(config)[-1]:
        raise bad("layer_types: the last layer slides, that of Gemma 4 sees the whole context")


def _ropes(config: Config) -> None:
    """Refuse what the runtime has no key for: UnsupportedError."""
    for kind, key in (("full_attention", "factor"), ("sliding_attention", "partial_rotary_factor")):
        value = _rope(config, kind).get(key)
        if value not in (None, 1):
            raise UnsupportedError(
                f"config.json: rope of {kind} with {key} = {show(value)} is not supported"
                " (llama.cpp computes 1)"
            )
    whole = _rope(config, "full_attention")
    if whole.get("rope_type") == "proportional" and whole.get("partial_rotary_factor") is None:
        raise bad("no partial_rotary_factor in rope_parameters.full_attention")


def _rope(config: Config, kind: str) -> Mapping[str, Any]:
    ropes = config.get("rope_parameters")
    found = ropes.get(kind) if isinstance(ropes, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _key_heads(config: Config) -> np.ndarray | np.uint32:
    """One number, or one for each block where the config names those of global blocks."""
    local, whole = (config.count(f"num_{key}key_value_heads") for key in ("", "global_"))
    if config.get("num_global_key_value_heads") is None:
        return np.uint32(local)
    return np.where(_sliding(config), local, whole).astype(np.int32)


def _attention(groups: str, size: str, names: str) -> tuple[Tensor, ...]:
    """The linears `names` and "output", and the norms of q and k, for heads of that size."""
    heads = {"q": "num_attention_heads", "k": groups, "v": groups}
    gguf, source = "blk.{}.attn_", "model.layers.{}.self_attn."
    return (
        *(
            Tensor(
                f"{gguf}{name}", f"{source}{name}_proj", (f"{heads[name]}*{size}", "hidden_size")
            )
            for name in names
        ),
        Tensor(f"{gguf}output", f"{source}o_proj", ("hidden_size", f"num_attention_heads*{size}")),
        norm("attn_q_norm", "self_attn.q_norm", size),
        norm("attn_k_norm", "self_attn.k_norm", size),
    )


_LOCAL = _attention("num_key_value_heads", "head_dim", "qkv")
_GLOBAL = _attention("num_global_key_value_heads", "global_head_dim", "qk")

GEMMA4 = Architecture(
    name="Gemma 4 (dense)",
    classes=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    gguf="gemma4",
    parameters=(
        *(size for size in SIZES if size.source != "num_key_value_heads"),
        Parameter("attention.key_length", "global_head_dim"),
        Parameter("attention.value_length", "global_head_dim"),
        Parameter("attention.key_length_swa", "head_dim"),
        Parameter("attention.value_length_swa", "head_dim"),
        Parameter("rope.dimension_count", "global_head_dim"),
        Parameter("rope.dimension_count_swa", "head_dim"),
        Parameter("attention.sliding_window", "sliding_window"),
        Parameter("final_logit_softcapping", "final_logit_softcapping", np.float32),
    ),
    constants={
        "attention.shared_kv_layers": np.uint32(0),
        "embedding_length_per_layer_input": np.uint32(0),
    },
    computed={
        "attention.head_count_kv": _key_heads,
        "attention.sliding_window_pattern": _sliding,
    },
    block=(
        norm("attn_norm", "input_layernorm"),
        *(replace(tensor, when=_slides) for tensor in _LOCAL),
        *(replace(tensor, when=_sees_all) for tensor in _GLOBAL),
        norm("post_attention_norm", "post_attention_layernorm"),
        norm("ffn_norm", "pre_feedforward_layernorm"),
        *gated_mlp(),
        norm("post_ffw_norm", "post_feedforward_layernorm"),
        Tensor("blk.{}.layer_output_scale", "model.layers.{}.layer_scalar", ("1",), bare=True),
    ),
    towers=("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio."),
    defaults={
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "vocab_size": 262144,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "hidden_size_per_layer_input": 256,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
            },
        },
    },
    rope=RopeStyle(local=True, head="global_head_dim", proportional=True),
    accepts={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "use_bidirectional_attention": ("vision",),
        "is_causal": (True,),
    },
    checks=(_dense, _global_heads, _ropes),
    tokenizer={"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": True},
    wiring=Wiring(
        rope="neox",
        activation="gelu",
        post_norms=("post_attention_norm", "post_ffw_norm"),
        qk_norm=True,
        scaled_embedding=True,
        global_every=6,
        local_rope=True,
        logit_cap=30.0,
        attention_scale=1.0,
        local_heads=True,
        global_sites=KEYS_AS_VALUES,
        value_norm=True,
        block_scale=True,
        folds=folds_without("attn_output"),  # the norm of v undoes a scale
    ),
)
