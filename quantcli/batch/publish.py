"""Publishing a model's outputs: one commit with the files, a model card and an Ollama Modelfile."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantcli.batch.orders import Publication
from quantcli.checkpoint.hub_upload import upload
from quantcli.errors import UsageError
from quantcli.gguf_file import read_header
from quantcli.report.cards import CARD_FILES, card_of_entry
from quantcli.report.model_card import model_card, source_of_document
from quantcli.report.modelfile import modelfile
from quantcli.report.recommend import recommended

MESSAGE = "Quantized files, model card and Modelfile by quantcli"


def publish(order: Publication) -> dict[str, Any]:
    """Upload, and say where to.

    Raises:
        UsageError: two files of one name. Others as upload, read_header.
    """
    files = {file["path"]: order.root / file["path"] for r in order.records for file in r["files"]}
    named: dict[str, Path | bytes] = {path.name: path for path in files.values()}
    if len(named) < len(files):
        raise UsageError(f"{order.repo}: two outputs have one name; change `output` or `upload`")
    texts = _texts(order.repo, order.root, order.records)
    named |= {name: text.encode() for name, text in zip(CARD_FILES, texts, strict=True)}
    return {"url": upload(order.repo, named, message=MESSAGE)}


def _texts(repo: str, root: Path, records: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The model card and the Modelfile."""
    cards = [card_of_entry(output) for record in records for output in record["outputs"]]
    best = recommended(cards)
    metadata = read_header(root / best.path).metadata
    flat = [replace(card, path=Path(card.path).name) for card in cards]
    source = source_of_document(records[0])
    return (
        model_card(source, flat, metadata, repo_id=repo),
        modelfile(replace(best, path=Path(best.path).name), metadata),
    )
