"""What a conversion did, as data (model), and its faces: terminal, JSON, Markdown, HTML, card."""

from quantcli.report.model import Output, Report, TensorReport

__all__ = ["Output", "Report", "TensorReport"]
