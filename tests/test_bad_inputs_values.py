"""Bad inputs 50 to 54, end to end: weights, importance and calibration texts."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import Case, Cases, Q, assert_refused, copy, each, put_weight
from conftest import Call

from quantcli.calibration import Entry, Imatrix, write_imatrix

# BF16: the upper half of a float32.
NAN, INF, MINUS_INF, LARGE, HUGE = 0x7FC0, 0x7F80, 0xFF80, 0x47C3, 0x7F61  # 99840, 2.99076e+38

CASES: Cases = {
    (50, "NaN"): Case(put_weight(Q, NAN), 3, [Q, "nan", "row 0, column 3"]),
    (51, "infinity"): Case(put_weight(Q, INF), 3, [Q, "inf", "row 0, column 3"]),
    (51, "minus infinity"): Case(
        put_weight(Q, MINUS_INF, at=2 * 256 + 5), 3, [Q, "-inf", "column 5"]
    ),
    (52, "beyond the scale range"): Case(put_weight(Q, HUGE), 3, [Q, "2.99076e+38", "BF16 or F32"]),
}


@each(CASES)
def test_weights(tmp_path: Path, call: Call, case: Case) -> None:
    assert_refused(call, copy(tmp_path / "source"), case)


def test_52_the_scale_range_of_each_type(tmp_path: Path, call: Call) -> None:
    """Q4_0's scale is an eighth of the largest weight, Q8_0's a 127th: 3e6 fits only the latter."""
    source = copy(tmp_path / "source")
    put_weight(Q, 0x4A37)(source)  # 2998272
    assert call("convert", source, "--type", "Q4_0").failed_with(3, Q, "2.99827e+06", "Q4_0")
    assert call("convert", source, "--type", "Q8_0").code == 0


def test_53_too_large_for_f16(tmp_path: Path, call: Call) -> None:
    case = Case(put_weight(Q, LARGE), 3, [Q, "99840", "BF16 or F32"])
    assert_refused(call, copy(tmp_path / "source"), case, "--type", "F16")


# --- importance and calibration ------------------------------------------------------------------

Rows = dict[str, np.ndarray]
ATTN_Q = "blk.0.attn_q.weight"


def rows(value: float = 1.0) -> Rows:
    """One entry per quantized matrix of the tiny Llama."""
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    wide = {"ffn_down": 512}
    return {
        f"blk.{i}.{name}.weight": np.full(wide.get(name, 256), value, np.float32)
        for i in range(2)
        for name in names
    }


def legacy(path: Path, values: Rows) -> Path:
    """An importance matrix in the legacy format."""
    data = struct.pack("<i", len(values))
    for name, row in values.items():
        text = name.encode()
        data += struct.pack("<i", len(text)) + text + struct.pack("<ii", 1, row.size)
        data += row.astype("<f4").tobytes()
    path.write_bytes(data + struct.pack("<ii", 7, 4) + b"text")
    return path


def gguf(path: Path, values: Rows) -> Path:
    """An importance matrix in a GGUF file."""
    one = np.ones(1, np.float32)
    entries = {name: Entry(row.astype(np.float32)[None], one) for name, row in values.items()}
    write_imatrix(path, Imatrix(entries, ["text"], 7, 512, path.name))
    return path


CHANGES: dict[str, tuple[Callable[[Rows], object], list[str]]] = {
    "NaN": (lambda r: r[ATTN_Q].__setitem__(3, np.nan), [ATTN_Q, "nan"]),
    "negative": (lambda r: r[ATTN_Q].__setitem__(3, -1.0), [ATTN_Q, "-1.0"]),
    "missing tensor": (lambda r: r.pop("blk.1.ffn_up.weight"), ["blk.1.ffn_up.weight", "no entry"]),
    "wrong length": (
        lambda r: r.update({"blk.1.ffn_up.weight": np.ones(255)}),
        ["blk.1.ffn_up.weight", "255", "256"],
    ),
}


@pytest.mark.parametrize("write", [legacy, gguf])
@pytest.mark.parametrize("case", CHANGES)
def test_54_imatrix(tmp_path: Path, call: Call, case: str, write: Callable) -> None:
    change, words = CHANGES[case]
    values = rows()
    change(values)
    source, file = copy(tmp_path / "source"), write(tmp_path / "x.dat", values)
    assert call("convert", source, "--imatrix", file).failed_with(3, "x.dat", *words)


@pytest.mark.parametrize("content", ["", " \n\n"])
@pytest.mark.parametrize("flags", [["--method", "gptq"], ["--imatrix", "auto"]])
def test_54_empty_calibration_text(
    tmp_path: Path, call: Call, flags: list[str], content: str
) -> None:
    source, text = copy(tmp_path / "source"), tmp_path / "calibration.txt"
    text.write_text(content)
    found = call("convert", source, *flags, "--calibration", text)
    assert found.failed_with(3, "calibration.txt", "holds no text")


@pytest.mark.parametrize("flags", [["--method", "gptq"], ["--imatrix", "auto"]])
def test_54_too_short_a_calibration_text(tmp_path: Path, call: Call, flags: list[str]) -> None:
    source, text = copy(tmp_path / "source"), tmp_path / "calibration.txt"
    text.write_text("Hello")
    found = call("convert", source, *flags, "--calibration", text)
    assert found.failed_with(3, "calibration.txt", "tokens, too few for one window of 512")


def test_imatrix_is_used_and_recorded(tmp_path: Path, call: Call) -> None:
    """A column that alone matters is stored better; the file says where its importance is from."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    source = copy(tmp_path / "source")
    values = rows()
    for row in values.values():
        row[::16] = 1000.0
    assert call("convert", source, "-t", "F32", "-o", "f32.gguf").code == 0
    assert call("convert", source, "-t", "Q4_K_S", "-o", "plain.gguf").code == 0
    file = legacy(tmp_path / "x.dat", values)
    assert call("convert", source, "-t", "Q4_K_S", "-o", "i.gguf", "--imatrix", file).code == 0

    def error(name: str) -> float:
        exact, found = (
            next(t for t in GGUFReader(call.work / file).tensors if t.name == "blk.0.ffn_up.weight")
            for file in ("f32.gguf", name)
        )
        difference = dequantize(found.data, found.tensor_type) - exact.data
        return float(np.square(difference)[:, ::16].sum())

    assert error("i.gguf") < 0.5 * error("plain.gguf")
    fields = GGUFReader(call.work / "i.gguf").fields
    assert fields["quantize.imatrix.file"].contents() == "x.dat"
    assert fields["quantize.imatrix.entries_count"].contents() == len(values)
    assert fields["quantize.imatrix.chunks_count"].contents() == 7
