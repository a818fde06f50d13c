"""Gemma 2 and Gemma 3: norms of 1 + weight, sliding windows, soft caps."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from quantcli.architectures.architecture import FINAL_NORM, Architecture, Parameter
from quantcli.architectures.config import Config, show
from quantcli.architectures.layers import HEAD_DIM, SIZES, attention, gated_mlp, norm, qk_norm
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.wiring import Wiring
from quantcli.errors import UnsupportedError


def _attention_scale(largest: int) -> Callable[[Config], None]:
    """llama.cpp scales by head_dim, in the model of `largest` blocks by hidden size per head."""

    def check(config: Config) -> None:
        scale = config.number("query_pre_attn_scalar")
        computed = config.count("head_dim")
        if config.count("num_hidden_layers") == largest:
            computed = config.count("hidden_size") // config.count("num_attention_heads")
        if scale != computed:
            raise UnsupportedError(
                f"config.json: query_pre_attn_scalar = {scale:g} is not supported"
                f" (llama.cpp computes with {computed} for these sizes)"
            )

    return check


def _global_every(period: int) -> Callable[[Config], None]:
    """llama.cpp fixes which blocks see the whole context: every `period`-th, or all of them."""

    def check(config: Config) -> None:
        step = 1 if config.get("sliding_window_pattern") == 1 else period
        blocks = range(1, config.count("num_hidden_layers") + 1)
        kinds = ["sliding_attention" if block % step else "full_attention" for block in blocks]
        given = config.get("layer_types")
        if given is not None and given != kinds:
            raise UnsupportedError(
                f"config.json: layer_types = {show(given)} is not supported"
                f" (llama.cpp attends to the whole context in one block of {step})"
            )

    return check


_NORMS = (
    norm("attn_norm", "input_layernorm", add=1.0),
    norm("post_attention_norm", "post_attention_layernorm", add=1.0),
    norm("ffn_norm", "pre_feedforward_layernorm", add=1.0),
    norm("post_ffw_norm", "post_feedforward_layernorm", add=1.0),
)

_POST_NORMS = ("post_attention_norm", "post_ffw_norm")

GEMMA2 = Architecture(
    name="Gemma 2",
    classes=("Gemma2ForCausalLM",),
    gguf="gemma2",
    parameters=(
        *SIZES,
        *HEAD_DIM,
        Parameter("attn_logit_softcapping", "attn_logit_softcapping", np.float32),
        Parameter("final_logit_softcapping", "final_logit_softcapping", np.float32),
        Parameter("attention.sliding_window", "sliding_window"),
    ),
    block=(*_NORMS, *attention(), *gated_mlp()),
    final_norm=replace(FINAL_NORM, add=1.0),
    head=None,
    ignores=("lm_head.weight",),
    defaults={
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    rope=RopeStyle(scalings=(), stored=False),
    accepts={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "tie_word_embeddings": (True,),
        "use_bidirectional_attention": (False,),
        "is_causal": (True,),
    },
    checks=(_attention_scale(largest=46), _global_every(2)),
    tokenizer={"tokenizer.ggml.add_space_prefix": False},
    wiring=Wiring(
        rope="neox",
        activation="gelu",
        post_norms=_POST_NORMS,
        scaled_embedding=True,
        wide_blocks=46,
        global_every=2,
        window=4096,
        attention_cap=50.0,
        logit_cap=30.0,
    ),
)

# query_pre_attn_scalar and layer_types have no key in GGUF: see the checks.
GEMMA3 = Architecture(
    name="Gemma 3",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    gguf="gemma3",
    parameters=(
        *SIZES,
        *HEAD_DIM,
        Parameter("final_logit_softcapping", "final_logit_softcapping", np.float32, optional=True),
        Parameter(
            "attention.sliding_window", "sliding_window", unless=("sliding_window_pattern", 1)
        ),
    ),
    block=(*_NORMS, *attention(), *qk_norm(add=1.0), *gated_mlp()),
    final_norm=replace(FINAL_NORM, add=1.0),
    towers=("vision_tower.", "multi_modal_projector."),
    defaults={
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
    rope=RopeStyle(local=True),
    accepts={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attn_logit_softcapping": (),
        "sliding_window_pattern": (1, 6),
        "use_bidirectional_attention": (False,),
        "is_causal": (True,),
    },
    checks=(_attention_scale(largest=62), _global_every(6)),
    tokenizer={"tokenizer.ggml.add_space_prefix": False},
    wiring=Wiring(
        rope="neox",
        activation="gelu",
        post_norms=_POST_NORMS,
        qk_norm=True,
        scaled_embedding=True,
        wide_blocks=62,
        global_every=6,
        local_rope=True,
        logit_cap=0.0,
    ),
)
