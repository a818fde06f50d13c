"""Tensors that no mix touches, and the type they keep."""

# Whole names, and parts of names, that llama-quantize leaves as they are.
KEPT_NAMES = ("position_embd.weight", "token_types.weight")
KEPT_PARTS = (
    "_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight",
    "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    "ffn_gate_tid2eid.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_",
    ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
# More of them in one architecture only.
KEPT_PARTS_OF = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight",
        "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}  # fmt: skip

# What llama.cpp's converter writes as F32 whatever the output type, beside 1-D tensors and norms.
F32_NAMES = {
    "position_embd", "token_types", "ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d",
    "shortconv.conv", "time_mix_first", "time_mix_w1", "time_mix_w2", "time_mix_decay_w1",
    "time_mix_decay_w2", "time_mix_lerp_fused", "altup_correct_coef", "altup_predict_coef",
}  # fmt: skip


def is_quantizable(name: str, shape: tuple[int, ...], architecture: str = "") -> bool:
    """Whether llama-quantize would quantize it: a matrix (or stack of them) ending in "weight".

    shape is in numpy order; leading dimensions of 1 do not count. Source: ggml_n_dims and
    tensor_allows_quantization of llama.cpp.
    """
    is_matrix = any(n > 1 for n in shape[:-1])
    return (
        is_matrix
        and name.endswith("weight")
        and name not in KEPT_NAMES
        and not any(part in name for part in KEPT_PARTS)
        and not any(part in name for part in KEPT_PARTS_OF.get(architecture, ()))
    )


def plain_type(name: str, shape: tuple[int, ...], float_type: str) -> str:
    """The type a tensor has in a file of `float_type`: F32, F16 or BF16.

    Source: ModelBase.prepare_tensors of llama.cpp's converter.
    """
    if len(shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return "F32"
    parts = name.removesuffix(".weight").split(".")
    inner = ".".join(parts[2:] if parts[0] == "blk" else parts)
    return "F32" if inner in F32_NAMES else float_type
