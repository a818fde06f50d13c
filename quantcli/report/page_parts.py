"""What all HTML pages share: one self-contained file, made of a template, styles and scripts.

A page asks nothing of the network; its policy lets only its own script run. The same facts give
the same bytes. All names come from strangers: made printable here, and escaped by Jinja2.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from quantcli import __version__
from quantcli.report.words import cosine, percent, plain, shape, size


def render(template: str, styles: Sequence[str], scripts: Sequence[str], **shown: Any) -> str:
    """Fill a template that extends base.html; `styles` are CSS, `scripts` files beside it."""
    environment = Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "percent": percent, "shape": shape, "plain": plain}
    environment.filters |= {"significant": significant, "cosine": cosine}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    script = '"use strict";\n' + "".join(asset(name) for name in scripts)
    return environment.get_template(template).render(
        **shown,
        version=__version__,
        style=Markup("".join(styles)),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def asset(name: str) -> str:
    """The text of a file in the folder `page`."""
    return (files("quantcli.report") / "page" / name).read_text(encoding="utf-8")


def significant(value: float | None, digits: int = 3) -> str:
    """So many digits, never an exponent: "0.149", "0.00319", "0"; a dash for no finite number."""
    if value is None or not math.isfinite(value):
        return "—"
    if abs(value) < 1e-7:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, decimals)}f}"
