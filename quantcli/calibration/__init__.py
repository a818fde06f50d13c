"""Importance matrices: reading and writing imatrix files."""

from quantcli.calibration.imatrix import Entry, Imatrix, read_imatrix, write_imatrix

__all__ = ["Entry", "Imatrix", "read_imatrix", "write_imatrix"]
