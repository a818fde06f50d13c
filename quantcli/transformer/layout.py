"""Which tensors a forward pass reads, and their shapes."""

from collections.abc import Iterator

from quantcli.architectures import wiring as tables
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.model import Model
from quantcli.transformer.hyperparameters import Hyperparameters

Shape = tuple[int, ...]

EMBEDDING, OUTPUT_NORM, HEAD = "token_embd.weight", "output_norm.weight", "output.weight"
ROPE_FACTORS = "rope_freqs.weight"


def check_tensors(model: Model, sizes: Hyperparameters) -> None:
    """Every tensor that is read is there in its shape, and no other is there.

    Raises BadInputError naming the tensor; UnsupportedError for one that nothing would read.
    """
    n_vocab = model.shapes.get(EMBEDDING, (0,))[0]
    required = {EMBEDDING: (n_vocab, sizes.n_embd), OUTPUT_NORM: (sizes.n_embd,)}
    optional = {HEAD: (n_vocab, sizes.n_embd), ROPE_FACTORS: (sizes.head_dim // 2,)}
    for number in range(sizes.n_block):
        required |= {f"blk.{number}.{name}": shape for name, shape in _block(sizes)}
        optional |= {f"blk.{number}.{name}": shape for name, shape in _biases(sizes)}
    for name in required:
        if name not in model.shapes:
            raise BadInputError(f"tensor {name!r} is missing: the forward pass needs it")
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


def head_name(model: Model) -> str:
    """The tensor that turns hidden states into logits: the embedding, when they are tied."""
    return HEAD if HEAD in model.shapes else EMBEDDING


def _block(sizes: Hyperparameters) -> Iterator[tuple[str, Shape]]:
    wiring = sizes.wiring
    for name in ("attn_norm", "ffn_norm", *filter(None, wiring.post_norms)):
        yield f"{name}.weight", (sizes.n_embd,)
    if wiring.qk_norm:
        yield "attn_q_norm.weight", (sizes.head_dim,)
        yield "attn_k_norm.weight", (sizes.head_dim,)
    for name, shape in (_linears(sizes) | _stacks(sizes)).items():
        yield f"{name}.weight", shape


def _biases(sizes: Hyperparameters) -> Iterator[tuple[str, Shape]]:
    for name, shape in _linears(sizes).items():
        yield f"{name}.bias", shape[:1]


def _linears(sizes: Hyperparameters) -> dict[str, Shape]:
    q, kv = sizes.n_head * sizes.head_dim, sizes.n_head_kv * sizes.head_dim
    shapes = {
        "attn_q": (q, sizes.n_embd),
        "attn_k": (kv, sizes.n_embd),
        "attn_v": (kv, sizes.n_embd),
        "attn_output": (sizes.n_embd, q),
        "ffn_gate": (sizes.n_ff, sizes.n_embd),
        "ffn_up": (sizes.n_ff, sizes.n_embd),
        "ffn_down": (sizes.n_embd, sizes.n_ff),
    }
    sites = dict(sizes.wiring.sites)
    if sizes.experts is not None:
        del sites["ffn"], sites["ffn_down"]
    return {name: shapes[name] for site in sites.values() for name in site}


def _stacks(sizes: Hyperparameters) -> dict[str, Shape]:
    """What a mixture of experts has in place of an mlp."""
    experts = sizes.experts
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
        shapes |= dict(zip(tables.SHARED, ((1, sizes.n_embd), inner, inner), strict=True))
        shapes[tables.SHARED_DOWN] = inner[::-1]
    return shapes
