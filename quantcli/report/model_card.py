"""The README.md of a repository of GGUF files: what people look for when they choose one.

It holds no time and no path, and the same files give the same card. Names in it come from
strangers: in the text they are code spans wherever they could be anything else, and in the YAML
they have a known form.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.architectures import embeds
from quantcli.calibration.text import BUILTIN, read_text
from quantcli.errors import BadInputError
from quantcli.evaluation import Quality, Similarity
from quantcli.methods import METHODS
from quantcli.planning.ram import running
from quantcli.report.cards import CARD_FILES, Card, card_of_output
from quantcli.report.front_matter import HUB, front_matter, text
from quantcli.report.model import Report
from quantcli.report.modelfile import modelfile
from quantcli.report.quality import ACTIVATIONS, POOLINGS, card_table
from quantcli.report.recommend import advice, recommended
from quantcli.report.words import code, count, inline, markdown_table, plain

_COMMIT = re.compile("[0-9a-f]{40}")
_PART = "[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HUB_ID = re.compile(f"{_PART}/{_PART}")


@dataclass(frozen=True)
class Source:
    """What was quantized; without `revision` it was a folder, of which `id` is the name."""

    id: str
    revision: str | None
    architecture: str
    parameters: int

    @property
    def hub_id(self) -> str | None:
        """Its id on the hub, if it is there."""
        return self.id if self.revision and _HUB_ID.fullmatch(self.id) else None

    @property
    def commit(self) -> str | None:
        """Its commit on the hub."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    @property
    def link(self) -> str:
        """It, in Markdown."""
        return f"[{self.hub_id}]({HUB}/{self.hub_id})" if self.hub_id else code(self.id)


def card_files(report: Report) -> dict[str, str]:
    """The model card and the Modelfile of a conversion, by file name."""
    source = Source(report.source_id, report.revision, report.architecture, report.parameters)
    cards = [card_of_output(output) for output in report.outputs]
    best = recommended(cards)
    metadata = report.outputs[cards.index(best)].metadata
    texts = (model_card(source, cards, metadata), modelfile(best, metadata))
    return dict(zip(CARD_FILES, texts, strict=True))


def source_of_document(document: Mapping[str, Any]) -> Source:
    """The source that a JSON report names.

    Raises:
        BadInputError: when it is no document that `as_json.report_document` has made.
    """
    try:
        return Source(**document["source"])
    except (KeyError, TypeError) as error:
        raise BadInputError(f"not a quantcli report: {error}; make it again") from error


def model_card(
    source: Source,
    cards: Sequence[Card],
    metadata: Mapping[str, Any],
    *,
    repo_id: str | None = None,
) -> str:
    """The README.md of a repository that holds the files of `cards` (at least one).

    `metadata` is that of any of the GGUF files, best of the recommended one; `repo_id` is where
    the files will be on the hub, if that is known.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    page = files("quantcli.report") / "card" / "README.md.jinja"
    template = environment.from_string(page.read_text(encoding="utf-8"))
    best = recommended(cards)
    quality = next((card.quality for card in cards if card.quality), None)
    similarity = next((card.similarity for card in cards if card.similarity), None)
    measured = quality or similarity
    commit = f"[`{source.commit}`]({HUB}/{source.hub_id}/tree/{source.commit})"
    license_name = text(metadata, "general.license.name") or text(metadata, "general.license")
    filled = template.render(
        front_matter=front_matter(source.hub_id, source.commit, metadata),
        name=inline(text(metadata, "general.name") or source.id.rpartition("/")[2]),
        source=source.link,
        architecture=inline(source.architecture),
        parameters=count(source.parameters),
        trained=_trained(metadata),
        context=running(dict(metadata)).context,
        table="\n".join(card_table(cards)),
        ram=any(card.ram_bytes is not None for card in cards),
        advice=advice(cards),
        quality=quality,
        similarity=similarity,
        text=_text_name(measured),
        activations=ACTIVATIONS[measured.activations] if measured else "",
        pooling=f"{POOLINGS[similarity.pooling].capitalize()}." if similarity else "",
        embeds=embeds(metadata["general.architecture"]),
        repo_id=repo_id,
        chats="tokenizer.chat_template" in metadata,
        version=inline(text(metadata, "quantcli.version") or "(unknown version)"),
        commit=commit if source.hub_id and source.commit else None,
        methods=[_method(name) for name in dict.fromkeys(card.method for card in cards) if name],
        imatrix=_imatrix(metadata),
        license=inline(license_name[:100]) if license_name else None,
        shards=_shards(cards),
        **_commands(best, metadata, repo_id),
    )
    return re.sub("\n{3,}", "\n\n", filled)


def _trained(metadata: Mapping[str, Any]) -> int | None:
    """Tokens of context the model was trained for."""
    value = metadata.get(f"{metadata['general.architecture']}.context_length")
    return int(value) if isinstance(value, np.integer) else None


def _text_name(quality: Quality | Similarity | None) -> str:
    if quality is None:
        return ""
    if quality.text_sha256 == read_text(BUILTIN).sha256:
        return "the text that comes with quantcli"
    return f"a text of sha256 {code(quality.text_sha256)}"


def _method(name: str) -> str:
    return f"{code(name)}: {METHODS[name].summary}" if name in METHODS else code(name)


def _imatrix(metadata: Mapping[str, Any]) -> str | None:
    name = text(metadata, "quantize.imatrix.file")
    if name is None:
        return None
    dataset = text(metadata, "quantize.imatrix.dataset")
    made_from = f", made from {code(Path(dataset).name)}" if dataset else ""
    return f"Scales were weighted by the importance matrix {code(Path(name).name)}{made_from}."


def _shards(cards: Sequence[Card]) -> str:
    rows = [(code(Path(path).name), code(digest)) for c in cards for path, digest in c.shards]
    return "\n".join(markdown_table(("Part", "sha256"), rows)) if rows else ""


def _commands(best: Card, metadata: Mapping[str, Any], repo_id: str | None) -> dict[str, Any]:
    """Shell commands that run the recommended file, from the hub or from this folder."""
    name = plain(Path(best.path).name)
    context = running(dict(metadata)).context
    label = re.sub(r"[^a-z0-9._-]+", "-", Path(name).stem.lower()).strip("-._") or "model"
    pulls = repo_id is not None and not best.shards  # Ollama pulls no file in several parts
    place = f"--hf-repo {repo_id} --hf-file" if repo_id else "-m"
    embedding = embeds(metadata["general.architecture"])
    mode = " --embeddings" if embedding else ""
    if pulls:
        ollama = f"ollama {'pull' if embedding else 'run'} hf.co/{repo_id}:{shlex.quote(name)}"
    else:
        ollama = f"ollama create {label} -f Modelfile"
        ollama += "" if embedding else f"\nollama run {label}"
    return {
        "llama_cpp": f"llama-server {place} {shlex.quote(name)}{mode} -c {context}",
        "ollama": ollama,
        "ollama_pulls": pulls,
        "lm_studio": f"lms import {shlex.quote(name)}",
    }
