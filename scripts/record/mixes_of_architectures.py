"""Record which types llama-quantize gives the tensors of every architecture that gguf-py knows.

    python -m pip install llama-cpp-python    # and gguf-py of the llama.cpp in its source archive
    python scripts/record/mixes_of_architectures.py [tests/data/recipes/architectures.json]

Each model has every tensor that gguf-py's table lists for its architecture, with rows of 256, and
the hyperparameters that llama.cpp asks for, found by asking it: a missing key is added, a wrong
type changed, in a child process, which llama.cpp may abort. Runs are recorded as in mixes.json.
What cannot be loaded is printed and left out.
"""

import ctypes
import importlib.metadata
import json
import multiprocessing
import os
import re
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp  # type: ignore[import-not-found, unused-ignore]
import numpy as np
from mixes import compress, expand, quantize

BLOCKS, HEADS, KV_HEADS, ROW = 8, 8, 2, 256
TYPES = ("Q4_K_M", "Q2_K", "Q4_0")  # the last with an imatrix
ALL_TYPES = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0"),
    *("Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS"),
)
# Models of architectures with rules of their own, that more blocks and all types show.
SPECIAL = {
    "falcon-32": ("falcon", {"block_count": 32}),
    "falcon-16-no-gqa": ("falcon", {"block_count": 16, "attention.head_count_kv": 8}),
    "deci-80": ("deci", {"block_count": 80}),
    "olmo-80": ("olmo", {"block_count": 80}),
    "jais2-68": ("jais2", {"block_count": 68}),
    "llama-embed-80": ("llama-embed", {"block_count": 80}),
    "llama-embed-80-no-gqa": ("llama-embed", {"block_count": 80, "attention.head_count_kv": 8}),
    "nanbeige-16": ("nanbeige", {"block_count": 16, "num_loops": 2}),
    "grok-16": ("grok", {"block_count": 16, "expert_count": 8}),
    "graniteswitch-15": ("graniteswitch", {"block_count": 15}),
    "glm5-next-16": ("glm5-next", {"block_count": 16}),
}
WITHOUT_SUFFIX = ("ssm_a", "ssm_d")
NOT_QUANTIZED = ("clip", "mmproj")
# What some architectures check beyond that a key is there.
VALUES = {
    "rope.dimension_sections": [1, 1, 1, 1],
    "attention.sliding_window_pattern": [True, False] * (BLOCKS // 2),
    "adapters.token_ids_activate": [1],
    "adapters.token_ids_substitute": [1],
    "attention.indexer.top_k": 2,
    "attention.indexer.kpool": 2,
    "hyper_connection.count": 4,
    "hrm.layers_per_stack": BLOCKS // 2,
    "kda.gate_lower_bound": -1.0,
}
FLOATS = ("epsilon", "scale", "factor", "clamp", "cap", "freq", "alpha", "beta", "bias", "_eps")


def tensors(arch_id, n_expert):
    """[[name, shape, type]] of all tensors of an architecture, norms as vectors."""
    found = []
    for tensor in gguf.MODEL_TENSORS[arch_id]:
        name = gguf.TENSOR_NAMES[tensor].replace("{bid}", "{}").replace("{xid}", "0")
        if name.endswith(WITHOUT_SUFFIX):
            found.append([name, [2, ROW], "F32"])
        elif "norm" in name:
            found.append([f"{name}.weight", [ROW], "F32"])
        elif name.endswith("_exps"):
            found.append([f"{name}.weight", [max(n_expert, 2), 2, ROW], "F16"])
        else:
            found.append([f"{name}.weight", [2, ROW], "F16"])
        if name.endswith(("attn_q", "attn_v", "attn_qkv")):
            found.append([f"{name}.bias", [2], "F32"])
    return found


def first_guess(arch, arch_id):
    experts = gguf.MODEL_TENSOR.FFN_GATE_INP in gguf.MODEL_TENSORS[arch_id]
    metadata = {
        "context_length": 64,
        "embedding_length": ROW,
        "block_count": BLOCKS,
        "feed_forward_length": ROW,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
    }
    if experts:
        metadata |= {"expert_count": 4, "expert_used_count": 2}
    return {f"{arch}.{key}": value for key, value in metadata.items()}


def write_source(path, spec):
    arch = spec["metadata"]["general.architecture"]
    writer = gguf.GGUFWriter(path, arch)
    for key, value in spec["metadata"].items():
        if key == "general.architecture":
            continue
        add = {bool: writer.add_bool, float: writer.add_float32, int: writer.add_uint32}
        add |= {str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    rng = np.random.default_rng(1)
    for name, shape, dtype in expand(spec):
        values = rng.standard_normal(shape).astype(np.float16 if dtype == "F16" else np.float32)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def record(spec, types, folder):
    """The runs of one model; raises SystemExit when llama.cpp refuses it."""
    source, target = Path(folder, "source.gguf"), Path(folder, "target.gguf")
    write_source(source, spec)
    runs = []
    for file_type in types:
        options = {"file_type": file_type} | ({"imatrix": True} if file_type == "Q4_0" else {})
        found = quantize(source, target, spec, options)
        listed, rest = compress(spec, {n: t for n, (t, _) in found.items()})
        size = sum(n for _, n in found.values())
        runs.append({**options, "bytes": size, "rest": rest, "types": listed})
    return runs


def child(spec, types, folder, out):
    """Record, or tell what llama.cpp said."""
    said: list[str] = []
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # llama.cpp's last words
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    keep = callback(lambda _level, text, _data: said.append(text.decode(errors="replace")))
    llama_cpp.llama_log_set(keep, None)
    try:
        out.send(("runs", record(spec, types, folder)))
    except SystemExit:
        out.send(("error", next((line for line in said if "failed to quantize" in line), "?")))


def attempt(spec, types, folder):
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=child, args=(spec, types, folder, there)
    )
    process.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError:
        answer = ("error", "aborted")
    process.join()
    return answer


def corrected(metadata, said):
    """Whether `metadata` could be changed to what llama.cpp said it misses."""
    if found := re.search(r"key not found in model: (\S+)", said):
        key = found[1]
        guess = 0.5 if any(part in key for part in FLOATS) else 1
        metadata[key] = VALUES.get(key.partition(".")[2], guess)
        return True
    if found := re.search(r"key (\S+) has wrong type (\S+) but expected type (\S+)", said):
        key, wanted = found[1], found[3]
        values = {"f32": 0.5, "u32": 1, "i32": 1, "bool": True, "str": "none"}
        before = metadata.get(key)
        if wanted in values:
            metadata[key] = values[wanted]
        elif wanted == "arr":
            metadata[key] = [1] * 4
        return type(metadata.get(key)) is not type(before)
    return False


def find(name, arch, arch_id, changes, types, folder):
    """The spec with its runs, or None."""
    metadata = {"general.architecture": arch} | first_guess(arch, arch_id)
    metadata |= {f"{arch}.{key}": value for key, value in changes.items()}
    n_expert = metadata.get(f"{arch}.expert_count", 0)
    spec = {"metadata": metadata, "tensors": tensors(arch_id, n_expert)}
    kind, said = "", ""
    for _ in range(40):
        kind, said = attempt(spec, types, folder)
        if kind == "runs":
            return spec | {"runs": said}
        if not corrected(metadata, said):
            break
    print(f"{name}: {said.strip()}", flush=True)
    return None


def grouped(listed):
    """Tensors by type and shape: {"F16 2x256": "name name ..."}."""
    groups: dict[str, list[str]] = {}
    for name, shape, dtype in listed:
        groups.setdefault(f"{dtype} {'x'.join(map(str, shape))}", []).append(name)
    return {key: " ".join(names) for key, names in groups.items()}


def main(out):
    made_with = {"script": "scripts/record/mixes_of_architectures.py"} | {
        package: importlib.metadata.version(package) for package in ("llama-cpp-python", "gguf")
    }
    known = {arch: arch_id for arch_id, arch in gguf.MODEL_ARCH_NAMES.items()}
    wanted = {a: (a, {}, TYPES) for a in known if a not in NOT_QUANTIZED}
    wanted |= {name: (*each, ALL_TYPES) for name, each in SPECIAL.items() if each[0] in known}
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (arch, changes, types) in wanted.items():
            if spec := find(name, arch, known[arch], changes, types, folder):
                head = {"metadata": spec["metadata"], "tensors": grouped(spec["tensors"])}
                runs = ",\n ".join(json.dumps(run) for run in spec["runs"])
                entries.append(f'"{name}": {json.dumps(head)[:-1]},\n "runs": [\n {runs}]}}')
    body = ",\n".join(entries)
    out.write_text(f'{{"made_with": {json.dumps(made_with)},\n"models": {{\n{body}\n}}}}\n')
    print(len(entries), "models")


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else "tests/data/recipes/architectures.json"
    main(Path(where))
