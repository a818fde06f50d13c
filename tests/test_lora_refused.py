"""Adapters that are broken, of another base, or no plain LoRA: one line, and nothing is left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from test_lora import sources
from tiny_adapters import BASE_MODEL, build_adapter, safetensors, tensors_of
from tiny_models import build

Q = f"{BASE_MODEL}model.layers.0.self_attn.q_proj"
Damage = Callable[[Path], object]


def config(**changes: Any) -> Damage:
    def change(lora: Path) -> None:
        path = lora / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Damage:
    def damage(lora: Path) -> None:
        found = tensors_of("llama")
        change(found)
        (lora / "adapter_model.safetensors").write_bytes(safetensors(found))

    return damage


def renamed(old: str, new: str) -> Damage:
    return tensors(lambda found: found.update({new: found.pop(old)}))


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return tensors(lambda found: found.update({name: change(found[name].copy())}))


def nan(w: np.ndarray) -> np.ndarray:
    w[-1, -1] = np.nan
    return w


def pickled(lora: Path) -> None:
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")


CASES: dict[str, tuple[Damage, int, list[str]]] = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), 3, ["adapter_config.json"]),
    "config no JSON": (
        lambda f: (f / "adapter_config.json").write_text("{"),
        3,
        ["adapter_config.json", "not JSON"],
    ),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), 3, ["no adapter_model"]),
    "pickled": (pickled, 4, ["adapter_model.bin", "may run code"]),
    "not LoRA": (config(peft_type="IA3"), 4, ["peft_type", "IA3"]),
    "DoRA": (config(use_dora=True), 4, ["use_dora = True"]),
    "fan_in_fan_out": (config(fan_in_fan_out=True), 4, ["fan_in_fan_out"]),
    "bias": (config(bias="lora_only"), 4, ["bias", "lora_only"]),
    "activated": (config(alora_invocation_tokens=[1]), 4, ["alora_invocation_tokens"]),
    "what is to come": (config(use_magic={"a": 1}), 4, ["use_magic"]),
    "base changed": (config(init_lora_weights="pissa_niter_4"), 4, ["pissa_niter_4"]),
    "rank": (config(r=4), 3, ["rank 4", "(32, 256)"]),
    "rank of a pattern": (config(rank_pattern={"q_proj": 2}), 3, ["rank 2", "q_proj"]),
    "rank no number": (config(r="8"), 3, ["r = '8'"]),
    "rank zero": (config(r=0), 3, ["r = 0"]),
    "alpha": (config(lora_alpha=0), 3, ["lora_alpha = 0"]),
    "alpha NaN": (config(lora_alpha=float("nan")), 3, ["lora_alpha = nan"]),
    "no alpha": (config(lora_alpha=None), 3, ["lora_alpha = None"]),
    "expression": (config(alpha_pattern={"(a+)+b": 1}), 4, ["(a+)+b", "regular expression"]),
    "patterns no object": (config(rank_pattern=[1]), 3, ["rank_pattern"]),
    "saved no list": (config(modules_to_save="lm_head"), 3, ["modules_to_save"]),
    "NaN": (changed(f"{Q}.lora_B.weight", nan), 3, ["q_proj.lora_B.weight", "NaN"]),
    "other shape": (
        changed(f"{Q}.lora_B.weight", lambda w: w[:128]),
        3,
        ["(128, 256)", "(256, 256)", "another base"],
    ),
    "one axis": (changed(f"{Q}.lora_A.weight", np.ravel), 3, ["q_proj", "(8192,)"]),
    "no columns": (
        tensors(lambda t: t.update({f"{Q}.lora_A.weight": t[f"{Q}.lora_A.weight"][:, :0]})),
        3,
        ["q_proj"],
    ),
    "half": (tensors(lambda t: t.pop(f"{Q}.lora_B.weight")), 3, ["q_proj", "one lora_B"]),
    "unknown module": (
        tensors(
            lambda t: t.update(
                {
                    f"{BASE_MODEL}model.layers.9.self_attn.q_proj.lora_{x}.weight": t[
                        f"{Q}.lora_{x}.weight"
                    ]
                    for x in "AB"
                }
            )
        ),
        3,
        ["model.layers.9.self_attn.q_proj.weight", "org/tiny-llama"],
    ),
    "unknown tensor": (
        renamed(f"{Q}.lora_A.weight", f"{Q}.lora_magnitude_vector"),
        4,
        ["lora_magnitude_vector"],
    ),
    "control codes": (
        renamed(f"{Q}.lora_A.weight", "\x1b[31m.lora_A.weight"),
        3,
        ["adapter_model.safetensors"],
    ),
    "whole tensor not announced": (
        tensors(lambda t: t.update({f"{BASE_MODEL}model.norm.weight": np.ones(256, np.float32)})),
        4,
        ["model.norm.weight", "modules_to_save"],
    ),
    "truncated": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(
            safetensors(tensors_of("llama"))[:-1]
        ),
        3,
        ["short"],
    ),
}


@pytest.mark.parametrize("more", [(), ("--lora-only",)], ids=["merged", "alone"])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_one_line_and_nothing_left(
    call: Call, tmp_path: Path, case: tuple[Damage, int, list[str]], more: tuple[str, ...]
) -> None:
    base, lora = sources(tmp_path, "llama")
    damage, code, words = case
    damage(lora)
    assert call("convert", base, "--lora", lora, *more, "-t", "Q8_0").failed_with(code, *words)


@pytest.mark.parametrize("more", [(), ("--lora-only",)], ids=["merged", "alone"])
def test_embedding_and_head_in_one_cannot_be_updated_alone(
    call: Call, tmp_path: Path, more: tuple[str, ...]
) -> None:
    lora = build_adapter(tmp_path / "lora", "llama-embedding", target_modules=["embed_tokens"])
    kept = {k: v for k, v in tensors_of("llama-embedding").items() if "embed_tokens" in k}
    for family, variant in (("llama", "tied"), ("gemma2", "tied")):
        base = build(tmp_path / family, family, variant)
        rows = json.loads((base / "config.json").read_text())["vocab_size"]
        a = np.zeros((8, rows), np.float32)
        names = {k: a if k.endswith("A") else v for k, v in kept.items()}
        (lora / "adapter_model.safetensors").write_bytes(safetensors(names))
        done = call("convert", base, "--lora", lora, "-t", "Q8_0", *more)
        assert done.failed_with(4, "embed_tokens", "embedding and output head in one")


def test_two_adapters_with_the_same_tensor_as_a_whole(call: Call, tmp_path: Path) -> None:
    base, lora = sources(tmp_path, "llama-saved")
    done = call("convert", base, "--lora", lora, "--lora", lora, "-t", "Q8_0")
    assert done.failed_with(4, "two adapters", "lm_head.weight")


@pytest.mark.parametrize(
    ("lora", "code", "words"),
    [
        ("nowhere", 5, ["nowhere", "neither a folder"]),
        (":2", 2, [":2"]),
        ("{lora}:0", 2, ["scale other than 0"]),
        ("{lora}:nan", 2, ["scale other than 0"]),
        ("{lora}/adapter_config.json", 2, ["give the folder"]),
        ("{base}", 3, ["no LoRA adapter", "adapter_config.json"]),
    ],
)
def test_what_is_no_adapter(
    call: Call, tmp_path: Path, lora: str, code: int, words: list[str]
) -> None:
    base, folder = sources(tmp_path, "llama")
    given = lora.format(lora=folder, base=base)
    assert call("convert", base, "--lora", given, "-t", "Q8_0").failed_with(code, *words)
