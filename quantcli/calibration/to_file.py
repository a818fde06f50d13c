"""From a source and a text to an imatrix file."""

import time
from dataclasses import dataclass
from pathlib import Path

from quantcli.calibration.calibrate import CONTEXT, TOKENS, blank_imatrix, calibrate
from quantcli.calibration.imatrix import Imatrix, write_imatrix
from quantcli.calibration.text import BUILTIN, read_text
from quantcli.errors import UsageError
from quantcli.gguf_file import check_output, check_space
from quantcli.model import open_model
from quantcli.progress import Progress

LEGACY = ".dat"
ENDINGS = (".gguf", LEGACY)
HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Calibrated:
    """An imatrix file that was written; `text_sha256` is of the text in UTF-8."""

    path: Path
    imatrix: Imatrix
    text_sha256: str
    seconds: float

    @property
    def tokens(self) -> int:
        """How many tokens the model has seen."""
        return self.imatrix.chunks * self.imatrix.chunk_size


def calibrate_to_file(
    source: str,
    output: Path,
    text: str = BUILTIN,
    *,
    tokens: int | None = TOKENS,
    context: int = CONTEXT,
    revision: str | None = None,
    threads: int = 1,
    force: bool = False,
    progress: Progress | None = None,
) -> Calibrated:
    """Make the importance matrix of a checkpoint or GGUF file on a text, and write it.

    source: see open_model; text: see read_text; output: *.gguf, or *.dat for the legacy format;
    tokens: at most so many are used (None: all), in windows of `context`.

    Raises: QuantcliError, one of its subclasses; nothing is left behind.
    """
    began = time.monotonic()
    if output.suffix not in ENDINGS:
        raise UsageError(f"{output}: an imatrix ends in {' or '.join(ENDINGS)}")
    check_output(output, force=force, sources=[Path(source), Path(text)])
    content = read_text(text)
    model = open_model(source, revision=revision, progress=progress)
    blank = blank_imatrix(model, content, tokens=tokens, context=context)
    values = sum(entry.sums.nbytes for entry in blank.entries.values())
    check_space(output.parent, HEADER_BYTES + values)
    imatrix = calibrate(
        model,
        content,
        tokens=tokens,
        context=context,
        threads=threads,
        progress=progress,
        name=output.name,
    )
    write_imatrix(output, imatrix, legacy=output.suffix == LEGACY, force=force)
    return Calibrated(output, imatrix, content.sha256, time.monotonic() - began)
