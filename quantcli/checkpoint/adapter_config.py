"""adapter_config.json of a LoRA adapter, as PEFT writes it: ranks, scales, and what is no LoRA.

Facts are those of PEFT's `LoraConfig` and `LoraLayer`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantcli.checkpoint.files import show
from quantcli.errors import BadInputError, UnsupportedError

CONFIG = "adapter_config.json"
RANK_LIMIT = 1 << 16

# Keys that are read, or change nothing about what trained weights mean. Any other one must be off.
_READ = {
    "alpha_pattern",
    "base_model_name_or_path",
    "init_lora_weights",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "use_rslora",
}
_HARMLESS = {
    "auto_mapping",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
# The other ways to begin change the base as well: it is no longer the published one.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_MODULE = re.compile(r"\^?[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class AdapterConfig:
    """What the config says: W + scaling * B A for each module, scaling from its alpha and rank.

    `base` is the model it was made for, as its author called it; `saved` are the names of modules
    that the adapter replaces as a whole.
    """

    base: str
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    stabilised: bool
    saved: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """The rank of a module, by its own pattern or the common one."""
        return _matching(self.ranks, module, self.rank)

    def scaling(self, module: str) -> float:
        """What B A is multiplied by: alpha / rank, with rsLoRA alpha / sqrt(rank)."""
        alpha, rank = _matching(self.alphas, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.stabilised else alpha / rank


def read_adapter_config(config: dict[str, Any]) -> AdapterConfig:
    """Check the content of adapter_config.json.

    Raises: BadInputError (values that make no sense), UnsupportedError (not plain LoRA).
    """
    if config.get("peft_type") != "LORA":
        raise _unsupported("peft_type", config.get("peft_type"), "only LORA is")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        why = "it changes the base, too; save it converted to plain LoRA"
        raise _unsupported("init_lora_weights", config["init_lora_weights"], why)
    for key, value in config.items():
        off = not value or (key == "bias" and value == "none")
        if key not in _READ and key not in _HARMLESS and not off:
            raise _unsupported(key, value, "only plain LoRA is; merge it with PEFT")
    base, saved = config.get("base_model_name_or_path"), config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise _bad("modules_to_save", saved, "expected a list of names")
    return AdapterConfig(
        base=base if isinstance(base, str) else "",
        rank=_rank("r", config.get("r")),
        alpha=_alpha("lora_alpha", config.get("lora_alpha")),
        ranks={k: _rank("rank_pattern", v) for k, v in _patterns(config, "rank_pattern")},
        alphas={k: _alpha("alpha_pattern", v) for k, v in _patterns(config, "alpha_pattern")},
        stabilised=bool(config.get("use_rslora")),
        saved=tuple(saved),
    )


def _matching(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """The value of the first key that is the module's name or its end, "^" only the whole name."""
    for key, value in patterns.items():
        if module in (key, key[1:] if key[0] == "^" else key) or module.endswith(f".{key}"):
            return value
    return otherwise


def _patterns(config: dict[str, Any], key: str) -> list[tuple[str, Any]]:
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise _bad(key, patterns, "expected an object")
    for name in patterns:
        if not _MODULE.fullmatch(name):
            # A stranger's regular expression may take forever.
            raise _unsupported(key, name, "only names of modules are, no regular expressions")
    return list(patterns.items())


def _rank(key: str, value: object) -> int:
    if type(value) is not int or not 0 < value <= RANK_LIMIT:
        raise _bad(key, value, f"expected a rank from 1 to {RANK_LIMIT}")
    return value


def _alpha(key: str, value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < 1e9:  # type: ignore[operator]
        raise _bad(key, value, "expected a number above 0")
    return float(value)  # type: ignore[arg-type]


def _bad(key: str, value: object, why: str) -> BadInputError:
    return BadInputError(f"{CONFIG}: {key} = {show(value)}: {why}")


def _unsupported(key: str, value: object, why: str) -> UnsupportedError:
    return UnsupportedError(f"{CONFIG}: {show(key)[1:-1]} = {show(value)} is not supported ({why})")
