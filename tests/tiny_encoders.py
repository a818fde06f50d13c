"""Tiny random checkpoints of the families that embed texts, as tiny_models.py makes the others.

They have no output head: what is compared are hidden states and embeddings.
"""

import json
from pathlib import Path
from typing import Any
from zlib import crc32

from tiny_models import Shapes, Variant, write_weights
from tiny_tokenizers import VOCAB_SIZE, edit, write_tokenizer

_SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
_ODD = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3}

FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {
        "architectures": ["BertModel"],
        "model_type": "bert",
        # The form that llama.cpp computes; published files say "gelu".
        "hidden_act": "gelu_new",
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
    },
    "nomic_bert": {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "activation_function": "swiglu",
        "causal": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "n_positions": 8192,
        "pad_vocab_size_multiple": 64,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "use_rms_norm": False,
    },
}
# The names that the model's own code gives its keys.
_NOMIC_KEYS = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "layer_norm_eps": "layer_norm_epsilon",
}

ENCODERS: dict[tuple[str, str], Variant] = {
    ("bert", "mean"): Variant({"id2label": {"0": "LABEL_0"}}, "bert"),
    ("bert", "odd"): Variant(
        {
            **_ODD,
            "architectures": ["BertForMaskedLM"],
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-6,
        },
        "bert",
        "F32",
        shards=2,
    ),
    ("nomic_bert", "mean"): Variant({"max_trained_positions": 2048}, "bert"),
    ("nomic_bert", "odd"): Variant({**_ODD, "rotary_emb_base": 10000}, "bert", "F32"),
}
POOLING: dict[tuple[str, str], dict[str, Any]] = {
    ("bert", "mean"): {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
    ("bert", "odd"): {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    ("nomic_bert", "mean"): {"pooling_mode": "mean"},
}


def build_encoder(folder: Path, family: str, variant: str, **changes: Any) -> Path:
    """Write the checkpoint folder of a variant, its config changed, and return it."""
    spec = ENCODERS[family, variant]
    config = {**_SIZES, **FAMILIES[family], **spec.config, **changes}
    config["vocab_size"] = VOCAB_SIZE[spec.tokenizer]
    config["dtype"] = {"BF16": "bfloat16", "F32": "float32"}[spec.dtype]
    shapes = {"bert": _bert, "nomic_bert": _nomic_bert}[family](config)
    if family == "nomic_bert":
        for key, own in _NOMIC_KEYS.items():
            config[own] = config.pop(key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder, spec.tokenizer)
    # The one token that the converter spells otherwise, see test_tokenizer_converter.py.
    edit(folder / "tokenizer.json", lambda document: document["added_tokens"].pop())
    if (family, variant) in POOLING:
        write_pooling(folder, POOLING[family, variant])
    write_weights(folder, shapes, spec, seed=crc32(f"{family}-{variant}".encode()))
    return folder


def write_pooling(folder: Path, pooling: dict[str, Any], *more: str) -> None:
    """The files of sentence-transformers; `more`: modules after the pooling."""
    kinds = ("Transformer", "Pooling", *more)
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def _norm(name: str, n: int, endings: tuple[str, str] = ("weight", "bias")) -> Shapes:
    return {f"{name}.{ending}": (n,) for ending in endings}


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _bert(config: dict[str, Any]) -> Shapes:
    """As BertModel, or with the prefix, the head and the old names of norms of BertForMaskedLM."""
    n, wide, vocabulary = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    whole = config["architectures"] == ["BertForMaskedLM"]
    old = ("gamma", "beta") if whole else ("weight", "bias")
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (vocabulary, n),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], n),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], n),
        **_norm("embeddings.LayerNorm", n, old),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}."
        for name in ("query", "key", "value"):
            shapes |= _linear(f"{layer}attention.self.{name}", n, n)
        shapes |= _linear(f"{layer}attention.output.dense", n, n)
        shapes |= _norm(f"{layer}attention.output.LayerNorm", n, old)
        shapes |= _linear(f"{layer}intermediate.dense", wide, n)
        shapes |= _linear(f"{layer}output.dense", n, wide)
        shapes |= _norm(f"{layer}output.LayerNorm", n, old)
    if not whole:
        return shapes | _linear("pooler.dense", n, n)
    return {f"bert.{name}": shape for name, shape in shapes.items()} | {
        "cls.predictions.bias": (vocabulary,),
        **_linear("cls.predictions.transform.dense", n, n),
        **_norm("cls.predictions.transform.LayerNorm", n, old),
        **_linear("cls.seq_relationship", 2, n),
    }


def _nomic_bert(config: dict[str, Any]) -> Shapes:
    n, wide = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], n),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], n),
        **_norm("emb_ln", n),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{number}."
        shapes[f"{layer}attn.Wqkv.weight"] = (3 * n, n)
        shapes[f"{layer}attn.out_proj.weight"] = (n, n)
        shapes |= _norm(f"{layer}norm1", n)
        shapes[f"{layer}mlp.fc11.weight"] = (wide, n)
        shapes[f"{layer}mlp.fc12.weight"] = (wide, n)
        shapes[f"{layer}mlp.fc2.weight"] = (n, wide)
        shapes |= _norm(f"{layer}norm2", n)
    return shapes
