"""Convert Hugging Face checkpoints to quantized GGUF files.

    import quantcli

    report = quantcli.convert(quantcli.Job("org/model", types=("Q4_K_M",), output=folder))

`convert`, `convert_adapter` and `plan` take a `Job`, `calibrate` a source and the file to write,
`evaluate` models, a reference and a text (`calibration.text.read_text`), `inspect` a path. Failures
raise `errors.QuantcliError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantcli.adapter import convert_adapter
    from quantcli.calibration.to_file import calibrate_to_file as calibrate
    from quantcli.evaluation.evaluate import evaluate
    from quantcli.inspection import inspect
    from quantcli.pipeline import convert
    from quantcli.planning import Job
    from quantcli.planning import make_plan as plan

__all__ = [
    "Job",
    "__version__",
    "calibrate",
    "convert",
    "convert_adapter",
    "evaluate",
    "inspect",
    "plan",
]

__version__ = "0.1.0"

# Where each public name lives: imported on first use, so that `quantcli --help` stays quick.
_HOMES = {
    "Job": ("quantcli.planning", "Job"),
    "calibrate": ("quantcli.calibration.to_file", "calibrate_to_file"),
    "convert_adapter": ("quantcli.adapter", "convert_adapter"),
    "convert": ("quantcli.pipeline", "convert"),
    "evaluate": ("quantcli.evaluation.evaluate", "evaluate"),
    "inspect": ("quantcli.inspection", "inspect"),
    "plan": ("quantcli.planning", "make_plan"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quantcli' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
