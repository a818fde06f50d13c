"""The YAML at the head of a model card, by which the hub files a model.

What strangers wrote is kept only where it has the form that the hub knows; it refuses cards
that have another.
"""

import re
from collections.abc import Mapping
from typing import Any

from quantcli.architectures import embeds
from quantcli.report.words import plain

HUB = "https://huggingface.co"
TAGS = ("gguf", "llama.cpp", "quantized")

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
_TAG = re.compile(r"\w[\w .:+/-]{0,63}")
_FILE = re.compile(r"\w[\w.-]{0,63}")
_ADDRESS = re.compile(r"https?://[A-Za-z0-9][!-~]{1,255}")


def front_matter(hub_source: str | None, commit: str | None, metadata: Mapping[str, Any]) -> str:
    """The YAML, without its fences; `hub_source` is the model that was quantized, if on the hub."""
    from huggingface_hub import ModelCardData

    embedding = embeds(metadata.get("general.architecture"))
    found = ModelCardData(
        base_model=hub_source,
        base_model_relation="quantized" if hub_source else None,
        language=_those(_LANGUAGE, metadata.get("general.languages")) or None,
        tags=[*TAGS, *_those(_TAG, metadata.get("general.tags"))],
        pipeline_tag="feature-extraction" if embedding else "text-generation",
        library_name="gguf",
        **_license(hub_source, commit, metadata),
    )
    return found.to_yaml()


def text(metadata: Mapping[str, Any], key: str) -> str | None:
    """A metadata text in one printable line; None where there is none."""
    value = metadata.get(key)
    return plain(" ".join(value.split())) or None if isinstance(value, str) else None


def _license(
    hub_source: str | None, commit: str | None, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    name = text(metadata, "general.license")
    if name is None:
        return {}
    if name != "other" and _LICENSE.fullmatch(name):
        return {"license": name}
    given = text(metadata, "general.license.name") or (name if name != "other" else None)
    link = text(metadata, "general.license.link") or ""
    if hub_source and _FILE.fullmatch(link):  # a file of the original's repository, not of ours
        link = f"{HUB}/{hub_source}/blob/{commit or 'main'}/{link}"
    return {
        "license": "other",
        "license_name": given[:100] if given else None,
        "license_link": link if _ADDRESS.fullmatch(link) else None,
    }


def _those(form: re.Pattern[str], values: object) -> list[str]:
    """The texts of a list that have a form, each once."""
    if not isinstance(values, list | tuple):
        return []
    return list(dict.fromkeys(v for v in values if isinstance(v, str) and form.fullmatch(v)))
