"""SmolLM3: Llama, but every fourth block does without rope."""

from dataclasses import replace

from quantcli.architectures.architecture import Parameter
from quantcli.architectures.config import Config, show
from quantcli.architectures.layers import HEAD_DIM, SIZES, attention, gated_mlp, norm
from quantcli.architectures.llama import LLAMA
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.wiring import Wiring
from quantcli.errors import UnsupportedError

_UNTURNED = 4


def _turned_blocks(config: Config) -> None:
    """llama.cpp fixes which blocks turn q and k: all but every fourth."""
    blocks = range(1, config.count("num_hidden_layers") + 1)
    computed = [int(block % _UNTURNED != 0) for block in blocks]
    given = config.get("no_rope_layers")
    if given is not None and given != computed:
        raise UnsupportedError(
            f"config.json: no_rope_layers = {show(given)} is not supported"
            f" (llama.cpp computes without rope in one block of {_UNTURNED})"
        )
    interval = config.get("no_rope_layer_interval")
    if given is None and interval not in (None, _UNTURNED):
        raise UnsupportedError(
            f"config.json: no_rope_layer_interval = {show(interval)} is not supported"
            f" (llama.cpp computes {_UNTURNED})"
        )


SMOLLM3 = replace(
    LLAMA,
    name="SmolLM3",
    classes=("SmolLM3ForCausalLM",),
    gguf="smollm3",
    parameters=(
        *SIZES,
        *(replace(length, optional=True) for length in HEAD_DIM),
        Parameter("vocab_size", "vocab_size"),
        Parameter("rope.dimension_count", "head_dim"),
    ),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(paired=True),
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_mlp(),
    ),
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
    },
    rope=RopeStyle(),
    accepts={**LLAMA.accepts, "use_sliding_window": (False,)},
    checks=(_turned_blocks,),
    wiring=Wiring(rope="norm", unturned_every=_UNTURNED),
)
