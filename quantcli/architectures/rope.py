"""Rotary position embeddings: from every shape of a Hugging Face config to GGUF.

Older files say `rope_theta` and `rope_scaling`, newer ones `rope_parameters`, and models whose
local and global blocks differ keep one such dictionary per kind of block.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcli.architectures.config import Config, bad, positive, show
from quantcli.errors import UnsupportedError

Rope = dict[str, Any]

_SCALED = ("linear", "yarn")
# "dynamic" only stretches beyond the trained context: below it, it is plain rope.
_PLAIN = ("default", "dynamic")

_YARN_KEYS = {
    "extrapolation_factor": "yarn_ext_factor",
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


@dataclass(frozen=True)
class RopeStyle:
    """What llama.cpp can express for a family.

    scalings: rope types besides the plain ones; local: sliding blocks have a base of their own;
    stored: False where the runtime assumes base 10000 and no key says so; partial: only a share of
    each head may turn, and a key says how much; long: longrope, whose factors are tensors; head:
    the key with the head size of global blocks; proportional: that is the type of these, where a
    share of each head turns, at the frequencies of the whole.
    """

    scalings: tuple[str, ...] = _SCALED
    local: bool = False
    stored: bool = True
    partial: bool = False
    long: bool = False
    head: str = "head_dim"
    proportional: bool = False

    def metadata(self, config: Config) -> dict[str, Any]:
        """Keys below "<arch>.rope.". Raises BadInputError, UnsupportedError."""
        rope = self.read(config)
        turning = {"dimension_count": np.uint32(rope["dimensions"])} if self.partial else {}
        if not self.stored:
            return turning
        keys = {**turning, **_scaling(rope)}
        if self.long:
            keys["scaling.original_context_length"] = np.uint32(
                _original_context(rope["original_max_position_embeddings"])
            )
        keys["freq_base"] = np.float32(rope["rope_theta"])
        if self.local:
            keys["freq_base_swa"] = np.float32(self._local_base(config))
        return keys

    def read(self, config: Config) -> Rope:
        """The parameters of the global blocks with `rope_type` and `rope_theta` filled in, and how
        many of a head's `dimensions` turn.

        Raises BadInputError for values that make no sense, UnsupportedError for a rope type that
        llama.cpp does not compute for this family.
        """
        given = _nested(config, "rope_parameters")
        scaling = _nested(config, "rope_scaling")
        rope = {**given.get("full_attention", {}), **scaling} if self.local else scaling or given
        rope = dict(rope.get("full_attention", rope))
        base = rope.get("rope_theta")
        rope["rope_theta"] = positive(
            "rope_theta", config.get("rope_theta") if base is None else base
        )
        rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
        if self.long and rope["rope_type"] == "su":  # its name in older files
            rope["rope_type"] = "longrope"
        known = (*_PLAIN, *self.scalings, *(("longrope",) if self.long else ()))
        if self.proportional:
            known = ("proportional",)
        if rope["rope_type"] not in known:
            raise UnsupportedError(
                f"config.json: rope type {show(rope['rope_type'])} is not supported for this"
                f" family (supported: {', '.join(known)})"
            )
        rope["head_dim"] = config.count(self.head)
        rope["dimensions"] = self._dimensions(config, rope)
        if not self.stored and rope["rope_theta"] != 10000:
            raise UnsupportedError(
                f"config.json: rope_theta = {rope['rope_theta']:g} is not supported for this"
                " family (its GGUF has no key for another value than 10000)"
            )
        if self.long and config.get("original_max_position_embeddings") is not None:
            rope["original_max_position_embeddings"] = config.get(
                "original_max_position_embeddings"
            )
        if rope.get("original_max_position_embeddings") is None:
            rope["original_max_position_embeddings"] = config.count("max_position_embeddings")
        if rope["rope_type"] == "longrope":
            _stretch(rope, config)
        return rope

    def _dimensions(self, config: Config, rope: Rope) -> int:
        head_dim = rope["head_dim"]
        given = (rope.get("partial_rotary_factor"), config.get("partial_rotary_factor"))
        share = next((value for value in given if value is not None), 1)
        if not self.partial and not self.proportional:
            for rotary in given:
                if rotary not in (None, 1):
                    raise UnsupportedError(
                        f"config.json: partial_rotary_factor = {show(rotary)}, only 1 is supported"
                    )
        turning = int(head_dim * positive("partial_rotary_factor", share))
        if turning % 2 or not 0 < turning <= head_dim:
            raise bad(
                f"partial_rotary_factor = {show(share)} turns {turning} of {head_dim} dimensions,"
                " expected an even number of them"
            )
        return turning

    def _local_base(self, config: Config) -> float:
        local = _nested(config, "rope_parameters").get("sliding_attention") or {}
        if local.get("rope_type", "default") != "default":
            raise UnsupportedError("config.json: rope scaling of sliding-window blocks")
        base = local.get("rope_theta")
        return positive("rope_theta", config.get("rope_local_base_freq") if base is None else base)


def _nested(config: Config, key: str) -> Rope:
    """A dictionary of the config without its null entries; {} if it is not set."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise bad(f"{key} = {show(value)}, expected an object")
    for kind in ("full_attention", "sliding_attention"):
        if not isinstance(value.get(kind) or {}, Mapping):
            raise bad(f"{key}.{kind} = {show(value[kind])}, expected an object")
    return {name: entry for name, entry in value.items() if entry is not None}


def _scaling(rope: Rope) -> dict[str, Any]:
    kind = rope["rope_type"]
    if kind == "longrope":
        return {"scaling.attn_factor": np.float32(rope["magnitude"])}
    if kind not in _SCALED:
        return {}
    keys: dict[str, Any] = {
        "scaling.type": kind,
        "scaling.factor": np.float32(positive("rope factor", rope.get("factor"))),
    }
    if kind == "yarn":
        context = _original_context(rope["original_max_position_embeddings"])
        keys["scaling.original_context_length"] = np.uint32(context)
        for source, name in _YARN_KEYS.items():
            value = rope.get(
                source, rope.get("attn_factor") if name == "yarn_attn_factor" else None
            )
            if value is not None:
                keys[f"scaling.{name}"] = np.float32(positive(source, value))
    return keys


def _original_context(context: Any) -> int:
    if isinstance(context, bool) or not isinstance(context, int) or not 0 < context < 2**32:
        raise bad(f"original_max_position_embeddings = {show(context)}")
    return context


def _stretch(rope: Rope, config: Config) -> None:
    """Fill in longrope's `magnitude` of cos and sin; llama.cpp's converter knows this one only."""
    context = _original_context(rope["original_max_position_embeddings"])
    stretch = config.count("max_position_embeddings") / context
    for key, expected in (("factor", stretch), ("attention_factor", None)):
        if rope.get(key) not in (None, expected):
            raise UnsupportedError(
                f"config.json: longrope with {key} = {show(rope[key])} is not supported"
                f" (llama.cpp stretches by max_position_embeddings / {context})"
            )
    if context == 1:
        raise bad("original_max_position_embeddings = 1")
    magnitude = math.sqrt(1 + math.log(stretch) / math.log(context)) if stretch > 1 else 1.0
    rope["magnitude"] = magnitude


def long_factors(rope: Rope) -> dict[str, np.ndarray]:
    """float32[dimensions/2] by tensor name: what divides longrope's frequencies beyond and within
    the original context; {} for other rope types. Raises BadInputError.
    """
    if rope["rope_type"] != "longrope":
        return {}
    found = {}
    for key in ("long_factor", "short_factor"):
        values = rope.get(key)
        if not isinstance(values, list) or len(values) != rope["dimensions"] // 2:
            raise bad(f"{key} = {show(values)}, expected {rope['dimensions'] // 2} numbers")
        numbers = [positive(key, value) for value in values]
        found[f"rope_factors_{key.removesuffix('_factor')}"] = np.array(numbers, np.float32)
    return found


def proportional_factors(rope: Rope) -> np.ndarray:
    """float32[head_dim/2] that stop all but the first `dimensions` of a head."""
    factors = np.full(rope["head_dim"] // 2, 1e30, np.float32)
    factors[: rope["dimensions"] // 2] = 1
    return factors


def frequency_factors(rope: Rope) -> np.ndarray | None:
    """float32[head_dim/2] that divide the rope frequencies of Llama 3.1, None for other rope types.

    Long wavelengths are stretched by `factor`, short ones kept, those between interpolated
    (transformers, `_compute_llama3_parameters`). The order of operations is that of torch, which
    divides by multiplying with the reciprocal, so that the bytes equal llama.cpp's converter's;
    the power is taken in float64, which torch's float32 power equals for usual sizes.

    Raises BadInputError when a parameter is missing or makes no sense.
    """
    if rope["rope_type"] == "proportional":
        return proportional_factors(rope)
    if rope["rope_type"] != "llama3":
        return None
    f32 = np.float32
    factor, low, high, context = (
        positive(key, rope.get(key))
        for key in (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
    )
    if high <= low:
        raise bad(f"high_freq_factor = {high} is not above low_freq_factor = {low}")
    head_dim = rope["head_dim"]
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / f32(head_dim)
    power = np.power(rope["rope_theta"], exponents.astype(np.float64)).astype(np.float32)
    frequency = f32(1) / power
    wavelength = f32(2 * math.pi) * (f32(1) / frequency)
    with np.errstate(all="ignore"):  # values outside the interpolated range are not used
        smooth = (f32(context) * (f32(1) / wavelength) - f32(low)) / f32(high - low)
        between = f32(1) / ((f32(1) - smooth) / f32(factor) + smooth)
    stretched = np.where(wavelength > context / low, f32(factor), between)
    return np.where(wavelength < context / high, f32(1), stretched).astype(np.float32)
