"""Numbers as people read them, and text of strangers that can do no harm."""

import math
import re
from collections.abc import Iterable, Sequence

from rich.filesize import decimal

# Words that Markdown shows as they are: no formatting, no link.
_HARMLESS = re.compile(r"(?!www\.)[^\W_][\w.+-]*(?: (?!www\.)[^\W_][\w.+-]*)*", re.IGNORECASE)

SAME_DIRECTION = 1e-12  # of a cosine, off 1


def size(n_bytes: int) -> str:
    """Bytes in decimal units, as disks and download pages count: "2.5 MB"."""
    return decimal(n_bytes)


def count(n: int) -> str:
    """A number of parameters: "4.20 M", "8.03 B"."""
    for scale, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return str(n)


def duration(seconds: float) -> str:
    """A span of time in its two largest units: "8.3 s", "42 s", "12 min 3 s", "5 h 20 min"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def of_rounding(fraction: float | None) -> str:
    """Error of the outputs relative to rounding to nearest: "17 %"; "kept" where that was kept."""
    if fraction is None:
        return ""
    return "kept" if fraction >= 1 else percent(fraction)


def percent(fraction: float) -> str:
    """Three significant digits, down to 0.001 %."""
    value = 100 * fraction
    digits = 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} %"


def cosine(value: float) -> str:
    """Two digits of how far it is from 1, at least four: "0.99917"; 1 only for the same direction.

    What is off by less than float32 can tell is the same.
    """
    off = 1 - value
    if off < SAME_DIRECTION:
        return "1"
    return f"{value:.{max(4, 1 - math.floor(math.log10(off)))}f}"


def shape(dimensions: tuple[int, ...]) -> str:
    """GGUF order, fastest dimension first: "4096×14336"."""
    return "×".join(str(n) for n in reversed(dimensions))


def plain(text: str) -> str:
    """Text without control codes, direction marks or lone surrogates: those become escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def code(text: str) -> str:
    """Any text as a Markdown code span, in which nothing is a link, HTML or formatting."""
    shown = plain(text)
    if not shown.strip():
        return repr(shown)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    margin = " " if "`" in (shown[0], shown[-1]) or " " == shown[0] == shown[-1] else ""
    return f"{fence}{margin}{shown}{margin}{fence}"


def inline(text: str) -> str:
    """Any text in a line of Markdown: as it is where that is harmless, else as a code span."""
    return text if _HARMLESS.fullmatch(text) and text.isprintable() else code(text)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; bars in cells are escaped."""
    table = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
