"""What a model's linears see on a text: statistics, and importance matrices from and to files."""

from quantcli.calibration.calibrate import blank_imatrix, calibrate
from quantcli.calibration.imatrix import Entry, Imatrix, read_imatrix, unreached, write_imatrix
from quantcli.calibration.text import Text, cut_windows, read_text

__all__ = [
    "Entry",
    "Imatrix",
    "Text",
    "blank_imatrix",
    "calibrate",
    "cut_windows",
    "read_imatrix",
    "read_text",
    "unreached",
    "write_imatrix",
]
