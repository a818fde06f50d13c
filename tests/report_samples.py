"""Reports to look at: what a conversion says, with figures of quality made up."""

import math
import re
from dataclasses import replace
from pathlib import Path

from conftest import DEMO

import quantcli
from quantcli.evaluation import Quality
from quantcli.methods.encoded import Cost
from quantcli.report import Output, Report, TensorReport

TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q8_0", "F16")


def convert_demo(folder: Path) -> Report:
    """A real conversion of the small checkpoint, not evaluated."""
    return quantcli.convert(quantcli.Job(str(DEMO), types=TYPES, output=folder, threads=1))


def with_quality(report: Report) -> Report:
    """The report as if its outputs had been evaluated, and with a warning."""
    outputs = [
        replace(output, quality=quality(3 * output.cost.relative_error**2))
        for output in report.outputs
    ]
    return replace(report, outputs=outputs, warnings=["blk.0.attn_k.weight: no importance"])


def quality(loss: float) -> Quality:
    """Figures as an evaluation might give them for a model with that KL divergence."""
    ratio = math.exp(0.8 * loss)
    spread = (loss, 0.02 * loss, loss / 2, 8 * loss, 20 * loss, 40 * loss)
    return Quality(
        *("5e" * 32, 512, 40, "float", 61.2 * ratio, 0.913, 61.2, ratio),
        *(*spread, 1 - loss, 0.0031),
    )


def made_up(blocks: int, types: tuple[str, ...]) -> Report:
    """A report of a large model, one output per type."""
    roles = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    places = [(f"blk.{b}.{role}.weight", b) for b in range(blocks) for role in roles]
    outputs = []
    for number, name in enumerate(types):
        tensors = [
            TensorReport(
                place, "Q4_K", (64, 64), 2304, Cost(4096, 1, 1e-3 * (number + b + 1)), None
            )
            for place, b in [*places, ("token_embd.weight", 1)]
        ]
        outputs.append(Output([f"{name}.gguf"], ["0" * 64], name, "rtn", 10**9, 4.5, tensors))
    return Report("org/big", "c0ffee", "Llama", 70 * 10**9, outputs, 1.0, 1)


def contrast(one: str, other: str) -> float:
    """Ratio of contrast of two colours "#rrggbb" or "rgb(r, g, b)" (WCAG 2)."""

    def luminance(colour: str) -> float:
        if colour.startswith("#"):
            parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        else:
            parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
