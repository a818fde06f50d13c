"""Model families: which checkpoints can be converted, and what becomes of their tensors.

To add a family, write one `Architecture` literal and name it in FAMILIES.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from quantcli.architectures.architecture import Architecture
from quantcli.architectures.bert import BERT
from quantcli.architectures.cohere import COHERE
from quantcli.architectures.config import show
from quantcli.architectures.deepseek import DEEPSEEK2
from quantcli.architectures.exaone import EXAONE
from quantcli.architectures.falcon import FALCON
from quantcli.architectures.gemma import GEMMA2, GEMMA3
from quantcli.architectures.gemma4 import GEMMA4
from quantcli.architectures.glm import GLM, GLM4
from quantcli.architectures.gpt2 import GPT2
from quantcli.architectures.gpt_neox import GPT_NEOX
from quantcli.architectures.gpt_oss import GPT_OSS
from quantcli.architectures.granite import GRANITE, GRANITE_MOE, GRANITE_MOE_SHARED
from quantcli.architectures.internlm import INTERNLM2
from quantcli.architectures.llama import LLAMA, MISTRAL, MIXTRAL
from quantcli.architectures.nemotron import NEMOTRON
from quantcli.architectures.nomic_bert import NOMIC_BERT
from quantcli.architectures.olmo import OLMO2, OLMO3
from quantcli.architectures.phi import PHI3
from quantcli.architectures.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from quantcli.architectures.smollm import SMOLLM3
from quantcli.architectures.stablelm import STABLELM
from quantcli.architectures.starcoder import STARCODER2
from quantcli.architectures.tensors import OutputTensor
from quantcli.architectures.wiring import Wiring
from quantcli.errors import UnsupportedError

__all__ = ["Architecture", "OutputTensor", "Wiring", "embeds", "find", "find_wiring", "supported"]

FAMILIES = (
    *(LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE, GEMMA2, GEMMA3),
    *(SMOLLM3, PHI3, OLMO2, GRANITE, COHERE, STABLELM, STARCODER2, GPT_NEOX),
    *(NEMOTRON, OLMO3, GPT2, FALCON, GLM, GLM4, INTERNLM2, GEMMA4, DEEPSEEK2),
    *(GPT_OSS, GRANITE_MOE, GRANITE_MOE_SHARED),
    *(EXAONE, BERT, NOMIC_BERT),
)

_BY_CLASS = {name: family for family in FAMILIES for name in family.classes}


def find(config: Mapping[str, Any]) -> Architecture:
    """The family of a config.json, by the first class name in `architectures`.

    Raises UnsupportedError naming the class and the nearest supported ones.
    """
    name = _class_name(config)
    if name in _BY_CLASS:
        return _BY_CLASS[name]
    folded = {known.lower(): known for known in reversed(_BY_CLASS)}
    near = [folded[match] for match in get_close_matches(name.lower()[:100], folded, 3)]
    hint = f"nearest supported: {', '.join(near)}" if near else "none is near"
    raise UnsupportedError(
        f"config.json: architecture {show(name)} is not supported ({hint};"
        " `quantcli list architectures` names all)"
    )


def find_wiring(gguf: object) -> Wiring:
    """How a model of that general.architecture is computed. Raises UnsupportedError."""
    wirings = {family.gguf: family.wiring for family in FAMILIES if family.wiring is not None}
    found = wirings.get(gguf) if isinstance(gguf, str) else None
    if found is None:
        raise UnsupportedError(
            f"architecture {show(gguf)} has no forward pass here (`quantcli list architectures`"
            " names those that have one): it cannot be calibrated or evaluated, converting it"
            " without works"
        )
    return found


def embeds(gguf: object) -> bool:
    """Whether models of that general.architecture make embeddings instead of predictions."""
    return any(f.wiring is not None and f.wiring.embeds for f in FAMILIES if f.gguf == gguf)


def supported() -> list[Architecture]:
    """All families, in the order in which they are listed to people."""
    return list(FAMILIES)


def _class_name(config: Mapping[str, Any]) -> str:
    text = config.get("text_config")
    for source in (text if isinstance(text, Mapping) else {}, config):
        classes = source.get("architectures")
        if isinstance(classes, list) and classes and isinstance(classes[0], str):
            return classes[0]
    raise UnsupportedError("config.json: no class name in `architectures`")
