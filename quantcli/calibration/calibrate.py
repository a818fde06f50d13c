"""Making an importance matrix: run a text through the model, gather what its linears see."""

import numpy as np

from quantcli.architectures.wiring import PER_HEAD
from quantcli.calibration.imatrix import Entry, Imatrix
from quantcli.calibration.statistics import Statistics, Wanted
from quantcli.calibration.text import Text, cut_windows
from quantcli.model import Model, stacked
from quantcli.progress import Progress
from quantcli.transformer import Transformer

CONTEXT = 512
TOKENS = 128 * CONTEXT
# For methods that calibrate: more lower the divergence no further on models of 4 to 27 M weights.
METHOD_TOKENS = 48 * CONTEXT


def calibrate(
    model: Model,
    text: Text,
    *,
    tokens: int | None = TOKENS,
    context: int = CONTEXT,
    threads: int = 1,
    progress: Progress | None = None,
    name: str = "imatrix.gguf",
) -> Imatrix:
    """The importance matrix that llama-imatrix makes of the same text and model.

    tokens: at most so many are used, in windows of `context` (None: all of the text). name: of the
    file it becomes.

    Raises: see cut_windows, Transformer, Statistics.
    """
    windows = cut_windows(text, model.metadata, context, tokens)
    statistics = Statistics(Wanted(squares=True), threads)
    Transformer(model, threads=threads).hidden(windows, tap=statistics, progress=progress)
    made = _blank(model, text, len(windows), context, name)
    for site in statistics.sites:
        found = statistics.take(site)
        for weight in found.weights if found.squares is not None else ():
            entry = made.entries[weight]
            entry.sums[found.expert or 0] = found.squares
            entry.counts[(found.expert or 0) % len(entry.counts)] = found.count
    return made


def blank_imatrix(
    model: Model,
    text: Text,
    *,
    tokens: int | None = TOKENS,
    context: int = CONTEXT,
    name: str = "imatrix.gguf",
) -> Imatrix:
    """What `calibrate` will return, but for the values, which are zeros; reads no weights.

    Raises: as `calibrate`, for whatever can be known before.
    """
    windows = cut_windows(text, model.metadata, context, tokens)
    made = _blank(model, text, len(windows), context, name)
    for entry in made.entries.values():
        entry.counts[...] = windows.size
    return made


def _blank(model: Model, text: Text, chunks: int, context: int, name: str) -> Imatrix:
    """One entry, of zeros, for each linear of the blocks, with one row for each of its experts.

    All heads see all tokens, so that there is one count for those of a stack.
    """
    entries: dict[str, Entry] = {}
    for site in Transformer(model).sites:
        for weight in site.weights:
            shape = model.shapes[weight]
            rows = stacked(shape)
            sums = np.zeros((rows, shape[-1]), np.float32)
            counts = 1 if weight.split(".")[-2] in PER_HEAD else rows
            entries.setdefault(weight, Entry(sums, np.zeros(counts, np.float32)))
    return Imatrix(entries, [text.name], chunks, context, name)
