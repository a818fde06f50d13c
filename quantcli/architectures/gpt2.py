"""GPT-2: learned positions, layer norms, q, k, v in one tensor, matrices stored transposed."""

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.config import Config, show
from quantcli.architectures.layers import LAYER_EPS, fourfold_mlp, lengths_without
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import FUSED, Wiring, folds_without
from quantcli.errors import UnsupportedError

_INNER = "4*hidden_size"


def _context(config: Config) -> None:
    """The runtime takes the table of positions for as long as the context: UnsupportedError."""
    given, positions = config.get("n_ctx"), config.count("max_position_embeddings")
    if given not in (None, positions):
        raise UnsupportedError(
            f"config.json: n_ctx = {show(given)} is not supported for GPT-2 (llama.cpp computes"
            f" n_positions = {positions})"
        )


def _not_quantized(config: Config) -> None:
    """Formats of quantized weights differ in whether they turn the matrices: UnsupportedError."""
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            raise UnsupportedError(
                f"config.json: {key} is not supported for GPT-2, whose matrices are stored"
                " transposed: convert the original"
            )


def _linear(gguf: str, source: str, rows: str, columns: str) -> Tensor:
    return Tensor(f"blk.{{}}.{gguf}", f"h.{{}}.{source}", (rows, columns), True, transposed=True)


GPT2 = Architecture(
    name="GPT-2",
    classes=("GPT2LMHeadModel",),
    gguf="gpt2",
    parameters=(
        *lengths_without("attention.head_count_kv", "feed_forward_length"),
        Parameter("feed_forward_length", _INNER),
        LAYER_EPS,
    ),
    prefix="transformer.",
    embedding=Tensor("token_embd", "wte", ("vocab_size", "hidden_size")),
    positions=Tensor("position_embd", "wpe", ("max_position_embeddings", "hidden_size")),
    block=(
        Tensor("blk.{}.attn_norm", "h.{}.ln_1", ("hidden_size",), bias=True),
        _linear("attn_qkv", "attn.c_attn", "3*hidden_size", "hidden_size"),
        _linear("attn_output", "attn.c_proj", "hidden_size", "hidden_size"),
        Tensor("blk.{}.ffn_norm", "h.{}.ln_2", ("hidden_size",), bias=True),
        _linear("ffn_up", "mlp.c_fc", _INNER, "hidden_size"),
        _linear("ffn_down", "mlp.c_proj", "hidden_size", _INNER),
    ),
    final_norm=Tensor("output_norm", "ln_f", ("hidden_size",), bias=True),
    defaults={
        "max_position_embeddings": 1024,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    aliases={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "layer_norm_eps": "layer_norm_epsilon",
    },
    rope=None,
    accepts={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu"),
        "num_key_value_heads": (),
        "head_dim": (),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    checks=(fourfold_mlp("n_inner"), _context, _not_quantized),
    ignores=(".attn.bias", ".attn.masked_bias"),
    wiring=Wiring(
        rope="",
        positions=True,
        activation="gelu",
        gated=False,
        sites=FUSED,
        folds=folds_without("ffn_down", fused_qkv=True),
        norm="layer",
        norm_bias=True,
    ),
)
