"""BERT: encoders of text whose hidden states, pooled, are embeddings."""

from collections.abc import Mapping

from quantcli.architectures.architecture import Architecture
from quantcli.architectures.config import Config, bad, show
from quantcli.architectures.layers import LAYER_EPS, equal_heads, lengths_without
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import FUSED_GATE, Wiring, folds_without

_LAYER = "encoder.layer.{}."
_MOST_LABELS = 1000


def _linear(gguf: str, source: str, rows: str, columns: str) -> Tensor:
    return Tensor(f"blk.{{}}.{gguf}", f"{_LAYER}{source}", (rows, columns), bias=True)


def _norm(gguf: str, source: str) -> Tensor:
    return Tensor(f"blk.{{}}.{gguf}", f"{_LAYER}{source}.LayerNorm", ("hidden_size",), bias=True)


def _labels(config: Config) -> list[str] | None:
    """What the converter writes of a classifier's labels, which stand in some files without one.

    Raises BadInputError.
    """
    found = config.get("id2label")
    if not found:
        return None
    known = isinstance(found, Mapping) and len(found) <= _MOST_LABELS
    if not known or not all(k.isdecimal() and isinstance(v, str) for k, v in found.items()):
        raise bad(f"id2label = {show(found)}, expected labels by number")
    labels = [label for _, label in sorted((int(key), label) for key, label in found.items())]
    return None if len(labels) == 2 and labels[0] == "LABEL_0" else labels


# llama.cpp computes the tanh form of gelu in place of the exact one.
BERT = Architecture(
    name="BERT",
    classes=("BertModel", "BertForMaskedLM"),
    gguf="bert",
    parameters=(*lengths_without("attention.head_count_kv"), LAYER_EPS),
    constants={"attention.causal": False},
    computed={"classifier.output_labels": _labels},
    prefix="bert.",
    embedding=Tensor("token_embd", "embeddings.word_embeddings", ("vocab_size", "hidden_size")),
    positions=Tensor(
        "position_embd",
        "embeddings.position_embeddings",
        ("max_position_embeddings", "hidden_size"),
    ),
    more=(
        Tensor(
            "token_types", "embeddings.token_type_embeddings", ("type_vocab_size", "hidden_size")
        ),
        Tensor("token_embd_norm", "embeddings.LayerNorm", ("hidden_size",), bias=True),
    ),
    block=(
        _linear("attn_q", "attention.self.query", "hidden_size", "hidden_size"),
        _linear("attn_k", "attention.self.key", "hidden_size", "hidden_size"),
        _linear("attn_v", "attention.self.value", "hidden_size", "hidden_size"),
        _linear("attn_output", "attention.output.dense", "hidden_size", "hidden_size"),
        _norm("attn_output_norm", "attention.output"),
        _linear("ffn_up", "intermediate.dense", "intermediate_size", "hidden_size"),
        _linear("ffn_down", "output.dense", "hidden_size", "intermediate_size"),
        _norm("layer_output_norm", "output"),
    ),
    final_norm=None,
    head=None,
    defaults={"max_position_embeddings": 512, "layer_norm_eps": 1e-12, "type_vocab_size": 2},
    rope=None,
    accepts={
        "hidden_act": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        "num_key_value_heads": (),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    checks=(equal_heads,),
    ignores=("pooler.dense.", "cls.predictions.", "cls.seq_relationship.", "position_ids"),
    wiring=Wiring(
        rope="",
        positions=True,
        token_types=True,
        embedding_norm=True,
        causal=False,
        activation="gelu",
        gated=False,
        sites=FUSED_GATE,
        folds=folds_without("attn", "ffn", "ffn_down", "output"),
        norm="layer",
        norm_bias=True,
        norms=("", ""),
        sum_norms=("attn_output_norm", "layer_output_norm"),
        embeds=True,
    ),
)
