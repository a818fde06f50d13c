"""Which tensors a forward pass reads, and their shapes."""

from collections.abc import Iterator

import numpy as np

from quantcli.architectures import wiring as tables
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.model import Model
from quantcli.transformer.experts import Experts
from quantcli.transformer.hyperparameters import Hyperparameters

Shape = tuple[int, ...]

EMBEDDING, OUTPUT_NORM, HEAD = "token_embd.weight", "output_norm.weight", "output.weight"
OUTPUT_NORM_BIAS = "output_norm.bias"
POSITIONS, TOKEN_TYPES = "position_embd.weight", "token_types.weight"
EMBEDDING_NORM, EMBEDDING_NORM_BIAS = "token_embd_norm.weight", "token_embd_norm.bias"
# One set of factors, or one for windows within the original context and one for longer ones.
ROPE_FACTORS = "rope_freqs.weight"
ROPE_SHORT, ROPE_LONG = "rope_factors_short.weight", "rope_factors_long.weight"


def check_tensors(model: Model, sizes: Hyperparameters) -> None:
    """Every tensor that is read is there in its shape, and no other is there.

    Raises BadInputError naming the tensor; UnsupportedError for one that nothing would read.
    """
    n_vocab = model.shapes.get(EMBEDDING, (0,))[0]
    required: dict[str, Shape] = {
        EMBEDDING: (n_vocab, sizes.n_embd),
    }
    optional: dict[str, Shape] = {}
    if not sizes.wiring.embeds:
        required[OUTPUT_NORM] = (sizes.n_embd,)
        optional[HEAD] = (n_vocab, sizes.n_embd)
        if sizes.wiring.norm_bias:
            required[OUTPUT_NORM_BIAS] = (sizes.n_embd,)
    if sizes.wiring.positions:
        required[POSITIONS] = (sizes.n_ctx, sizes.n_embd)
    if sizes.wiring.embedding_norm:
        required |= dict.fromkeys((EMBEDDING_NORM, EMBEDDING_NORM_BIAS), (sizes.n_embd,))
    if sizes.wiring.token_types and TOKEN_TYPES in model.shapes:
        optional[TOKEN_TYPES] = (model.shapes[TOKEN_TYPES][0], sizes.n_embd)
    for factors in (ROPE_FACTORS, ROPE_SHORT, ROPE_LONG):
        optional[factors] = (sizes.n_rot // 2,)
    for number in range(sizes.n_block):
        own, prefix = sizes.of(number), f"blk.{number}."
        required |= {prefix + name: shape for name, shape in _block(own, number)}
        optional |= {prefix + name: shape for name, shape in _biases(own, number)}
    for name, shape in model.shapes.items():
        expected = required.get(name) or optional.get(name)
        if expected is None:
            raise UnsupportedError(
                f"tensor {name!r:.80} has no place in the forward pass: a model like this can be"
                " converted, but not calibrated or evaluated"
            )
        if tuple(shape) != expected:
            raise BadInputError(
                f"tensor {name!r} has shape {tuple(shape)}, but the metadata says {expected}"
            )
    # Last: where rows are fused or split in another way, what is there tells more than what is not.
    for name in required:
        if name not in model.shapes:
            raise BadInputError(f"tensor {name!r} is missing: the forward pass needs it")


def rope_factors(model: Model, sizes: Hyperparameters, n_ctx: int) -> np.ndarray | None:
    """What divides the frequencies of rope in windows of n_ctx tokens, None for nothing.

    llama.cpp takes the long factors when the context it allocates is longer than the original one.
    """
    short = n_ctx <= sizes.rope.original_context
    for name in (ROPE_FACTORS, ROPE_SHORT if short else ROPE_LONG):
        if name in model.shapes:
            return model.rows(name)
    return None


def output_norm(model: Model) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight and, where there is one, bias of the norm before the head."""
    bias = model.rows(OUTPUT_NORM_BIAS) if OUTPUT_NORM_BIAS in model.shapes else None
    return model.rows(OUTPUT_NORM), bias


def embedding_norm(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the norm of embedded tokens."""
    return model.rows(EMBEDDING_NORM), model.rows(EMBEDDING_NORM_BIAS)


def head_name(model: Model) -> str:
    """The tensor that turns hidden states into logits: the embedding, when they are tied."""
    return HEAD if HEAD in model.shapes else EMBEDDING


def _block(sizes: Hyperparameters, number: int) -> Iterator[tuple[str, Shape]]:
    wiring = sizes.wiring
    norms = (*wiring.norms, *wiring.post_norms, *wiring.sum_norms)
    for name in dict.fromkeys(filter(None, norms)):
        yield f"{name}.weight", (sizes.n_embd,)
        if wiring.norm_bias:
            yield f"{name}.bias", (sizes.n_embd,)
    if wiring.qk_norm:
        heads = (sizes.n_head, sizes.n_head_kv) if wiring.joint_qk_norm else (1, 1)
        yield "attn_q_norm.weight", (heads[0] * sizes.head_dim,)
        yield "attn_k_norm.weight", (heads[1] * sizes.head_dim,)
    if wiring.sinks:
        yield "attn_sinks.weight", (sizes.n_head,)
    if wiring.block_scale:
        yield "layer_output_scale.weight", (1,)
    if sizes.latent:
        yield f"{tables.LATENT_NORM}.weight", (sizes.latent.n,)
        if sizes.latent.n_query:
            yield f"{tables.QUERY_NORM}.weight", (sizes.latent.n_query,)
    experts = sizes.experts_of(number)
    for name, shape in (_linears(sizes, experts) | _stacks(sizes, experts)).items():
        yield f"{name}.weight", shape
        if wiring.mixture and wiring.mixture.biased and "attn" not in name:
            yield f"{name}.bias", shape[:-1]


def _biases(sizes: Hyperparameters, number: int) -> Iterator[tuple[str, Shape]]:
    if sizes.latent is None:
        for name, shape in _linears(sizes, sizes.experts_of(number)).items():
            yield f"{name}.bias", shape[:1]


def fused_gate(sizes: Hyperparameters) -> bool:
    """The first rows of ffn_up are the gate."""
    return sizes.wiring.gated and sizes.wiring.sites["ffn"] == ("ffn_up",)


def _linears(sizes: Hyperparameters, experts: Experts | None) -> dict[str, Shape]:
    q, kv = sizes.n_head * sizes.head_dim, sizes.n_head_kv * sizes.head_dim
    shapes = {
        "attn_qkv": (q + 2 * kv, sizes.n_embd),
        "attn_q": (q, sizes.n_embd),
        "attn_k": (kv, sizes.n_embd),
        "attn_v": (kv, sizes.n_embd),
        "attn_output": (sizes.n_embd, q),
        "ffn_gate": (sizes.n_ff, sizes.n_embd),
        "ffn_up": (sizes.n_ff * (2 if fused_gate(sizes) else 1), sizes.n_embd),
        "ffn_down": (sizes.n_embd, sizes.n_ff),
        **_latent(sizes),
    }
    sites = dict(sizes.wiring.sites)
    if experts is not None:
        del sites["ffn"], sites["ffn_down"]
    return {name: shapes[name] for site in sites.values() for name in site}


def _latent(sizes: Hyperparameters) -> dict[str, Shape]:
    """The linears of latent attention that no other one has, or not in that shape."""
    latent, q = sizes.latent, sizes.n_head * sizes.head_dim
    if latent is None:
        return {}
    return {
        "attn_q_a": (latent.n_query, sizes.n_embd),
        "attn_q_b": (q, latent.n_query),
        "attn_kv_a_mqa": (latent.n + sizes.n_rot, sizes.n_embd),
        "attn_k_b": (sizes.n_head, latent.n, latent.n_still),
        "attn_v_b": (sizes.n_head, latent.n_value, latent.n),
        "attn_output": (sizes.n_embd, sizes.n_head * latent.n_value),
    }


def _stacks(sizes: Hyperparameters, experts: Experts | None) -> dict[str, Shape]:
    """What a mixture of experts has in place of an mlp."""
    if experts is None:
        return {}
    inner, outer = (experts.n_ff, sizes.n_embd), (sizes.n_embd, experts.n_ff)
    shapes: dict[str, Shape] = {
        tables.ROUTER: (experts.count, sizes.n_embd),
        "ffn_gate_exps": (experts.count, *inner),
        "ffn_up_exps": (experts.count, *inner),
        "ffn_down_exps": (experts.count, *outer),
    }
    if experts.n_ff_shared:
        inner = (experts.n_ff_shared, sizes.n_embd)
        if sizes.wiring.mixture and sizes.wiring.mixture.shared_gate:
            shapes[tables.SHARED_GATE] = (1, sizes.n_embd)
        shapes |= dict.fromkeys(tables.SHARED, inner)
        shapes[tables.SHARED_DOWN] = inner[::-1]
    return shapes
