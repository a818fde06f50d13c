"""What a child process is asked to do: JSON documents, one on each line of its stdin."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from quantcli.errors import UsageError
from quantcli.planning import Job


@dataclass(frozen=True)
class Order:
    """`plan` or `convert` one job; `reports` are files to write, the first one JSON.

    cores: of the machine, for which memory is planned.
    """

    action: Literal["plan", "convert"]
    job: Job
    reports: tuple[Path, ...] = ()
    cores: int = 1


@dataclass(frozen=True)
class Publication:
    """The order to publish what jobs of one source made: `records` are the ledger's, of each."""

    action: Literal["publish"]
    repo: str
    root: Path
    records: tuple[dict[str, Any], ...]


_ANY = Annotated[Order | Publication, Field(discriminator="action")]
ORDER: TypeAdapter[Order | Publication] = TypeAdapter(_ANY)


def to_line(order: Order | Publication) -> str:
    """The document on one line."""
    return ORDER.dump_json(order).decode() + "\n"


def read_order(line: str) -> Order | Publication:
    """Parse a document.

    Raises:
        UsageError: naming what is wrong with it.
    """
    try:
        return ORDER.validate_json(line)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where = ".".join(map(str, found["loc"]))
        raise UsageError(f"job document: {where}: {found['msg']}") from None
