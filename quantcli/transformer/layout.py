"""Which tensors a forward pass reads, and their shapes."""

from collections.abc import Iterator

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
    for name, shape in _linears(sizes).items():
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
    return {name: shapes[name] for site in sizes.wiring.sites.values() for name in site}
