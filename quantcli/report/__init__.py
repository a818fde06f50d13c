"""What a conversion did, as data (model), and its three faces: terminal, JSON, Markdown."""

from quantcli.report.model import Output, Report, TensorReport

__all__ = ["Output", "Report", "TensorReport"]
