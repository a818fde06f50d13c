"""Chat templates, from wherever a repository keeps them. They are copied, never rendered."""

from pathlib import PurePosixPath
from string import ascii_letters, digits
from typing import Any

from quantcli.errors import BadInputError
from quantcli.tokenizer.documents import Source, read_object, read_text, show

LIMIT = 1 << 20
FOLDER = "additional_chat_templates"
KEY = "tokenizer.chat_template"


def chat_templates(source: Source, tokenizer_config: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer.chat_template`, `tokenizer.chat_template.<name>` and `tokenizer.chat_templates`.

    tokenizer_config.json has precedence over chat_template.jinja, that over chat_template.json.
    Raises: BadInputError (a template is no string or over 1 MiB).
    """
    if "chat_template" in tokenizer_config:
        origin, found = "tokenizer_config.json", tokenizer_config["chat_template"]
    elif (text := read_text(source, "chat_template.jinja")) is not None:
        origin, found = "chat_template.jinja", {"default": text, **_additional(source)}
    else:
        origin = "chat_template.json"
        found = (read_object(source, origin) or {}).get("chat_template")
    named = _by_name(found, origin)
    for name, template in named.items():
        if not isinstance(template, str):
            raise BadInputError(
                f"{origin}: chat template {show(name)} is {show(template)}, not a string"
            )
        if len(template.encode("utf-8")) > LIMIT:
            raise BadInputError(f"{origin}: chat template {show(name)} is over {LIMIT} bytes")
    metadata: dict[str, Any] = {f"{KEY}.{name}": text for name, text in named.items()}
    if "default" in named:
        metadata[KEY] = metadata.pop(f"{KEY}.default")
    if others := sorted(named.keys() - {"default"}):
        metadata[f"{KEY}s"] = others
    return metadata


def _additional(source: Source) -> dict[str, str | None]:
    paths = [PurePosixPath(name) for name in source.source_files]
    wanted = [p for p in paths if p.parent == PurePosixPath(FOLDER) and p.suffix == ".jinja"]
    return {path.stem: read_text(source, str(path)) for path in sorted(wanted)}


def _by_name(found: object, origin: str) -> dict[str, object]:
    """One template is called "default"; several are a list of name and template."""
    if found is None:
        return {}
    if isinstance(found, dict) and origin == "chat_template.jinja":
        entries = list(found.items())
    elif isinstance(found, list):
        if not all(isinstance(entry, dict) for entry in found):
            raise BadInputError(f"{origin}: chat_template holds something that is no template")
        entries = [(entry.get("name"), entry.get("template")) for entry in found]
    else:
        entries = [("default", found)]
    allowed = ascii_letters + digits
    return {
        "".join(c if c in allowed else "_" for c in str(name or "")[:64]): template
        for name, template in entries
        if name and template is not None
    }
