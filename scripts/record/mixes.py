"""Record which tensor type llama-quantize gives every tensor of small synthetic models.

    python -m pip install llama-cpp-python gguf
    python scripts/record/mixes.py [tests/data/recipes/mixes.json]

llama_model_quantize reads hyperparameters, names and shapes, never the graph, so models of two rows
per matrix are enough to meet every rule. The record holds, per model: metadata, tensors (name,
shape in numpy order, type in the source file; "{}" stands for each block) and, per run, the
options, the bytes of tensor data and the resulting types. Of the tensors that "types" does not
list, those that are F32 in the source stayed F32 and all others have the type "rest".
"""

import ctypes
import importlib.metadata
import itertools
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import gguf
import llama_cpp  # type: ignore[import-not-found, unused-ignore]
import numpy as np

FILE_TYPES = {
    "Q2_K": 10, "Q2_K_S": 21, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_0": 2, "Q4_1": 3,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_0": 8, "Q5_1": 9, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
    "Q8_0": 7, "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
NEEDS_IMATRIX = "Q2_K_S"  # llama-quantize refuses it without one

ATTENTION = ["attn_q", "attn_k", "attn_v", "attn_output"]
FFN = ["ffn_gate", "ffn_up", "ffn_down"]
EXPERTS = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]
BLOCK_TENSORS = {
    "llama": ["attn_norm", *ATTENTION, "ffn_norm", *FFN],
    "qwen2": ["attn_norm", *ATTENTION, "attn_v.bias", "ffn_norm", *FFN],
    "qwen3": ["attn_norm", *ATTENTION, "attn_q_norm", "attn_k_norm", "ffn_norm", *FFN],
    "gemma2": ["attn_norm", *ATTENTION, "post_attention_norm", "ffn_norm", *FFN, "post_ffw_norm"],
    "gemma3": ["attn_norm", *ATTENTION, "attn_q_norm", "post_attention_norm", "ffn_norm", *FFN],
    "phi3": ["attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"],
    "moe": ["attn_norm", *ATTENTION, "ffn_norm", "ffn_gate_inp", *EXPERTS],
    "shared": ["ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
}


def model(arch, blocks, heads, kv_heads, *, tied=False, embd=256, ff=512, experts=0):
    """Metadata and tensors [[name, shape, source type]] of one synthetic model."""
    metadata = {
        "general.architecture": arch,
        f"{arch}.block_count": blocks,
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": embd,
        f"{arch}.feed_forward_length": ff,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    }
    if arch in ("gemma2", "gemma3", "phi3"):
        metadata[f"{arch}.attention.sliding_window"] = 32
    if experts:
        metadata |= {f"{arch}.expert_count": experts, f"{arch}.expert_used_count": 2}
    tensors = [["token_embd.weight", [3, embd], "F16"]]
    parts = BLOCK_TENSORS["moe" if experts else arch]
    for part in parts + (BLOCK_TENSORS["shared"] if arch == "qwen2moe" else []):
        row = ff if "ffn_down" in part else embd
        name = f"blk.{{}}.{part}" + ("" if part.endswith("bias") else ".weight")
        if part.endswith(("norm", "bias")):
            tensors.append([name, [row], "F32"])
        elif part == "ffn_gate_inp":
            tensors.append([name, [experts, row], "F32"])
        elif part == "ffn_gate_inp_shexp":
            tensors.append([name, [1, row], "F32"])
        else:
            shape = [experts, 2, row] if part.endswith("_exps") else [2, row]
            tensors.append([name, shape, "F16"])
    tensors.append(["output_norm.weight", [embd], "F32"])
    if not tied:
        tensors.append(["output.weight", [3, embd], "F16"])
    return {"metadata": metadata, "tensors": tensors}


MODELS = {
    "llama-2": model("llama", 2, 4, 4),
    "llama-4-gqa2-tied": model("llama", 4, 4, 2, tied=True),
    "llama-8-gqa4": model("llama", 8, 8, 2),
    "llama-12-gqa8-tied": model("llama", 12, 8, 1, tied=True),
    "llama-16-gqa3": model("llama", 16, 9, 3, tied=True),
    "llama-22-gqa8": model("llama", 22, 32, 4),
    "llama-32": model("llama", 32, 8, 8),
    "llama-80-gqa8": model("llama", 80, 64, 8),
    "llama-80-no-gqa": model("llama", 80, 8, 8, tied=True),
    "qwen2-80": model("qwen2", 80, 8, 8),
    "qwen3-80-gqa8": model("qwen3", 80, 64, 8),
    "qwen2-24-gqa7-tied": model("qwen2", 24, 14, 2, tied=True),
    "qwen3-28-gqa2": model("qwen3", 28, 16, 8),
    "gemma2-26-gqa2-tied": model("gemma2", 26, 8, 4, tied=True),
    "gemma3-18-gqa4-tied": model("gemma3", 18, 4, 1, tied=True),
    "phi3-12": model("phi3", 12, 4, 4),
    "llama-8-down-160": model("llama", 8, 4, 4, ff=160),
    "llama-8-down-100": model("llama", 8, 4, 2, ff=100),
    "llama-8-embd-96": model("llama", 8, 4, 1, embd=96),
    "qwen2-12-embd-288-tied": model("qwen2", 12, 4, 1, embd=288, tied=True),
    "llama-8-embd-100": model("llama", 8, 4, 2, embd=100, ff=320),
    "gemma3-4-all-100-tied": model("gemma3", 4, 4, 2, embd=100, ff=100, tied=True),
    "moe-12-8-experts-gqa4": model("llama", 12, 8, 2, experts=8),
    "moe-16-4-experts": model("llama", 16, 4, 4, experts=4),
    "moe-80-8-experts-gqa8": model("llama", 80, 64, 8, experts=8),
    "qwen3moe-12-16-experts-gqa8": model("qwen3moe", 12, 32, 4, experts=16),
    "qwen2moe-9-8-experts": model("qwen2moe", 9, 4, 4, experts=8),
    "qwen2moe-14-6-experts": model("qwen2moe", 14, 4, 4, experts=6),
}

# Special names that llama-quantize leaves as they are, whatever their shape.
MODELS["llama-4-odd-names"] = model("llama", 4, 4, 2)
MODELS["llama-4-odd-names"]["tensors"] += [
    [name, [2, 256], "F32"]
    for name in (
        "position_embd.weight", "token_types.weight", "blk.{}.ssm_conv1d.weight",
        "blk.{}.shortconv.conv.weight", "blk.{}.time_mix_w1.weight", "blk.{}.attn_v.scale",
        "blk.{}.ffn_gate_inp_shexp.weight",
    )
] + [
    [name, [2, 256], "F16"]
    for name in ("blk.{}.laurel_l.weight", "per_layer_model_proj.weight", "blk.{}.proj.weight")
] + [
    ["per_layer_token_embd.weight", [2, 256], "F16"],
    ["blk.{}.attn_kv_b.weight", [2, 256], "F16"],
    ["blk.{}.one_row.weight", [1, 256], "F16"],
]  # fmt: skip

OPTION_MODELS = (
    "llama-8-gqa4", "llama-12-gqa8-tied", "llama-80-gqa8", "qwen2-12-embd-288-tied",
    "llama-8-down-100", "moe-16-4-experts", "llama-4-odd-names", "qwen2moe-14-6-experts",
)  # fmt: skip
OPTIONS = [
    *({"file_type": t, "imatrix": True} for t in ("Q4_0", "Q5_0", "Q4_1", "Q4_K_M", "Q2_K")),
    *({"file_type": t, "pure": True} for t in ("Q2_K", "Q4_K_M", "Q5_K_M", "Q4_0", "Q8_0")),
    *({"file_type": t, "leave_output_tensor": True} for t in ("Q4_K_M", "Q8_0")),
    {"file_type": "Q4_K_M", "output_tensor_type": "Q8_0"},
    {"file_type": "Q2_K", "output_tensor_type": "F16", "token_embedding_type": "Q8_0"},
    {"file_type": "Q4_K_S", "token_embedding_type": "F16"},
    {"file_type": "Q4_K_M", "pure": True, "output_tensor_type": "F16"},
    {"file_type": "Q4_K_M", "pure": True, "leave_output_tensor": True},
    {"file_type": "Q4_K_M", "tensors": [[r"attn_v\.weight", "Q8_0"]]},
    {"file_type": "Q4_K_M", "tensors": [["attn_v", "Q8_0"], ["attn", "Q5_K"]]},
    {"file_type": "Q4_K_M", "tensors": [["attn", "Q5_K"], ["attn_v", "Q8_0"]]},
    {"file_type": "Q3_K_M", "tensors": [[r"blk\.[0-3]\.ffn_down", "Q6_K"]]},
    {"file_type": "Q4_K_M", "tensors": [[r"blk\.(0|5)\.", "F16"], ["norm", "Q8_0"]]},
    {"file_type": "Q4_0", "imatrix": True, "tensors": [[r"blk\.0\.ffn_down", "Q6_K"]]},
    {"file_type": "Q5_K_M", "tensors": [["token_embd", "Q3_K"], [r"^output\.", "Q4_K"]]},
    {
        "file_type": "Q5_K_M",
        "tensors": [["token_embd", "Q3_K"], [r"^output\.", "Q4_K"]],
        "output_tensor_type": "Q8_0",
        "token_embedding_type": "Q8_0",
    },
    {"file_type": "Q4_K_M", "pure": True, "tensors": [["ffn", "Q3_K"]]},
]


def expand(spec):
    """Every tensor of a model: [(name, shape, source type)], blocks in descending order."""
    blocks = spec["metadata"][spec["metadata"]["general.architecture"] + ".block_count"]
    for name, shape, dtype in spec["tensors"]:
        numbers = reversed(range(blocks)) if "{}" in name else [""]
        yield from ((name.format(i), tuple(shape), dtype) for i in numbers)


def write_source(path, spec):
    arch = spec["metadata"]["general.architecture"]
    writer = gguf.GGUFWriter(path, arch)
    for key, value in spec["metadata"].items():
        if isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
    rng = np.random.default_rng(1)
    for name, shape, dtype in expand(spec):
        values = rng.standard_normal(shape).astype(np.float16 if dtype == "F16" else np.float32)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source, target, spec, options):
    """Run llama-quantize's own function with `options`; returns {tensor name: (type, bytes)}."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = FILE_TYPES[options["file_type"]]
    params.pure = options.get("pure", False)
    params.quantize_output_tensor = not options.get("leave_output_tensor", False)
    for key in ("output_tensor_type", "token_embedding_type"):
        if key in options:
            setattr(params, key, int(gguf.GGMLQuantizationType[options[key]]))
    overrides = [
        (pattern.encode(), int(gguf.GGMLQuantizationType[kind]))
        for pattern, kind in options.get("tensors", [])
    ]
    params.tt_overrides = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))(
        *overrides, (None, 0)
    )
    if options.get("imatrix"):
        entries = []
        for name, shape, _ in expand(spec):
            n = shape[-1] * (shape[0] if len(shape) == 3 else 1)
            entries.append((name.encode(), (ctypes.c_float * n)(*[1.0] * n), n))
        params.imatrix = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(
            *entries, (None, None, 0)
        )
    if llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)):
        raise SystemExit(f"llama_model_quantize refused {options}")
    tensors = gguf.GGUFReader(target).tensors
    return {t.name: (t.tensor_type.name, int(t.n_bytes)) for t in tensors}


def ranges(numbers):
    """[0, 1, 2, 5] -> '0-2,5'."""
    groups = itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    runs = [[n for _, n in group] for _, group in groups]
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def compress(spec, types):
    """({type: [name or blk.{ranges}.name]} of what needs listing, the commonest type)."""
    sources = {name: dtype for name, _, dtype in expand(spec)}
    kept = {n for n, t in types.items() if t == "F32" and sources[n] == "F32"}
    rest = Counter(t for n, t in types.items() if n not in kept).most_common(1)[0][0]
    found: dict[str, dict[str, list[int]]] = {}
    for name, kind in types.items():
        if name in kept or (kind == rest and sources[name] != "F32"):
            continue
        head, _, tail = name.partition(".")
        number, _, role = tail.partition(".")
        blocks = found.setdefault(kind, {}).setdefault(role if head == "blk" else name, [])
        if head == "blk":
            blocks.append(int(number))
    listed = {
        kind: [f"blk.{{{ranges(b)}}}.{role}" if b else role for role, b in roles.items()]
        for kind, roles in sorted(found.items())
    }
    return listed, rest


def runs_of(name):
    for file_type in FILE_TYPES:
        yield {"file_type": file_type} | ({"imatrix": True} if file_type == NEEDS_IMATRIX else {})
    yield from OPTIONS if name in OPTION_MODELS else []


def main(out):
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    made_with = {"script": "scripts/record/mixes.py"} | {
        package: importlib.metadata.version(package) for package in ("llama-cpp-python", "gguf")
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.gguf"), Path(folder, "target.gguf")
        for name, spec in MODELS.items():
            write_source(source, spec)
            spec["runs"] = []
            for options in runs_of(name):
                found = quantize(source, target, spec, options)
                listed, rest = compress(spec, {n: t for n, (t, _) in found.items()})
                size = sum(n for _, n in found.values())
                spec["runs"].append({**options, "bytes": size, "rest": rest, "types": listed})
            print(name, len(spec["runs"]), flush=True)
    entries = [f"{json.dumps(k)}: {lines(v)}" for k, v in MODELS.items()]
    body = ",\n".join(entries)
    out.write_text(f'{{"made_with": {json.dumps(made_with)},\n"models": {{\n{body}\n}}}}\n')


def lines(spec):
    """JSON with one run per line: small, and readable in a diff."""
    runs = ",\n ".join(json.dumps(run) for run in spec["runs"])
    head = json.dumps({"metadata": spec["metadata"], "tensors": spec["tensors"]})
    return f'{head[:-1]},\n "runs": [\n {runs}]}}'


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data/recipes/mixes.json"))
