"""Importance matrices: both formats, their arithmetic, and broken files."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantcli.calibration import Entry, Imatrix, read_imatrix, write_imatrix
from quantcli.errors import AccessError, BadInputError, OutputExistsError, QuantcliError
from quantcli.gguf_file import Slot, Writer

DOWN, EXPERTS = "blk.0.ffn_down.weight", "blk.0.ffn_up_exps.weight"
SUMS = np.array([[8.0, 0.0, 2.0]], np.float32)
EXPERT_SUMS = np.array([[1, 2], [3, 4], [9, 6]], np.float32)

TRAILER = struct.pack("<ii", 3, 4) + b"wiki"


def sample(name: str) -> Imatrix:
    entries = {
        DOWN: Entry(SUMS, np.array([4], np.float32)),
        EXPERTS: Entry(EXPERT_SUMS, np.array([2, 0, 3], np.float32)),
    }
    return Imatrix(entries, ["wiki.txt", "code.txt"], 7, 512, name)


def write_with_gguf_py(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A file as llama-imatrix writes it."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 10)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def legacy(entries, trailer: bytes = TRAILER) -> bytes:
    out = struct.pack("<i", len(entries))
    for name, ncall, values in entries:
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", ncall, len(values))
        out += np.array(values, "<f4").tobytes()
    return out + trailer


def test_gguf_file_of_gguf_py(tmp_path):
    path = tmp_path / "i.gguf"
    tensors = {
        f"{DOWN}.in_sum2": SUMS[0],
        f"{DOWN}.counts": np.array([4], np.float32),
        f"{EXPERTS}.in_sum2": EXPERT_SUMS,
        f"{EXPERTS}.counts": np.array([[2], [0], [3]], np.float32),
        "some.other.statistic": np.ones(5, np.float32),
    }
    write_with_gguf_py(path, tensors)
    imatrix = read_imatrix(path)
    assert imatrix.importance(DOWN, 3).tolist() == [2, 0, 0.5]
    # The expert that saw no token gets ones.
    assert imatrix.importance(EXPERTS, 2, 3).tolist() == [[0.5, 1], [1, 1], [3, 2]]
    assert imatrix.importance("blk.1.ffn_down.weight", 3) is None
    assert (imatrix.datasets, imatrix.chunks, imatrix.chunk_size) == (["wiki.txt"], 10, 512)
    assert (imatrix.name, set(imatrix.entries)) == ("i.gguf", {DOWN, EXPERTS})


def test_gguf_round_trip_is_exact_and_readable_by_gguf_py(tmp_path):
    path = tmp_path / "i.gguf"
    write_imatrix(path, sample("i.gguf"))
    found = read_imatrix(path)
    assert list(found.entries) == [DOWN, EXPERTS]
    for name, entry in sample("").entries.items():
        np.testing.assert_array_equal(found.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(found.entries[name].counts, entry.counts)
    assert found.datasets == ["wiki.txt", "code.txt"]
    assert (found.chunks, found.chunk_size) == (7, 512)
    shapes = {t.name: t.shape.tolist() for t in gguf.GGUFReader(path).tensors}
    assert shapes == {  # fastest axis first, as llama-imatrix stores them
        f"{DOWN}.in_sum2": [3],
        f"{DOWN}.counts": [1],
        f"{EXPERTS}.in_sum2": [2, 3],
        f"{EXPERTS}.counts": [1, 3],
    }


def test_legacy_values_are_divided_by_their_calls(tmp_path):
    path = tmp_path / "i.dat"
    path.write_bytes(legacy([(DOWN.encode(), 4, SUMS[0]), (b"x", 0, [5.0])]))
    imatrix = read_imatrix(path)
    assert imatrix.importance(DOWN, 3).tolist() == [2, 0, 0.5]
    assert imatrix.importance("x", 1).tolist() == [5]  # no call count: means already
    assert (imatrix.datasets, imatrix.chunks, imatrix.name) == (["wiki"], 3, "i.dat")


@pytest.mark.parametrize("trailer", [b"", struct.pack("<ii", 3, 0)])
def test_legacy_without_a_data_set(tmp_path, trailer):
    path = tmp_path / "i.dat"
    path.write_bytes(legacy([(b"x", 2, [5.0])], trailer))
    imatrix = read_imatrix(path)
    assert imatrix.datasets == []
    assert imatrix.chunks == (3 if trailer else 0)


def test_legacy_round_trip(tmp_path):
    path, again = tmp_path / "i.dat", tmp_path / "again.dat"
    original = legacy([(b"a", 3, [0.1, 0.7]), (b"b", 7, [1e-20, 3e20, 0.3])])
    path.write_bytes(original)
    write_imatrix(again, read_imatrix(path), legacy=True)
    assert again.read_bytes() == original


def test_the_formats_agree(tmp_path):
    new, old = tmp_path / "i.gguf", tmp_path / "i.dat"
    rng = np.random.default_rng(0)
    entries = {
        "w": Entry(rng.random((1, 64), np.float32), np.array([5000], np.float32)),
        "e": Entry(rng.random((4, 8), np.float32), np.array([700, 0, 1, 512], np.float32)),
    }
    imatrix = Imatrix(entries, ["d"], 10, 512, "i")
    write_imatrix(new, imatrix)
    write_imatrix(old, imatrix, legacy=True)
    for name, n, n_expert in (("w", 64, 1), ("e", 8, 4)):
        one = read_imatrix(new).importance(name, n, n_expert)
        two = read_imatrix(old).importance(name, n, n_expert)
        assert one.shape == two.shape
        np.testing.assert_allclose(one, two, rtol=3e-7)
    (ncall,) = struct.unpack_from("<i", old.read_bytes(), 4 + 4 + 1)
    assert ncall == 2  # "e" first: 700 tokens are two chunks of 512, begun


def test_length_of_another_model_is_refused(tmp_path):
    imatrix = sample("i.gguf")
    message = r"i\.gguf: 3 values for 'blk\.0\.ffn_down\.weight', whose rows need 4; use an imatrix"
    with pytest.raises(BadInputError, match=message):
        imatrix.importance(DOWN, 4)
    with pytest.raises(BadInputError, match=r"6 values for .* need 8"):
        imatrix.importance(EXPERTS, 2, 4)


def test_reading_does_not_load_the_values(tmp_path):
    """Imatrices of large mixtures of experts exceed the memory promised."""
    path = tmp_path / "i.gguf"
    write_imatrix(path, sample("i.gguf"))
    base = read_imatrix(path).entries[DOWN].sums
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert type(base.base).__name__ in ("mmap", "memoryview")


def test_existing_file_is_not_overwritten(tmp_path):
    path = tmp_path / "i.gguf"
    for old in (False, True):
        path.write_text("mine")
        with pytest.raises(OutputExistsError):
            write_imatrix(path, sample("i"), legacy=old)
        assert path.read_text() == "mine"
        write_imatrix(path, sample("i"), legacy=old, force=True)
        assert read_imatrix(path).importance(DOWN, 3).tolist() == [2, 0, 0.5]


F32 = np.float32
BAD_GGUF = {
    "NaN": ({"w.in_sum2": F32([1, np.nan]), "w.counts": F32([1])}, "value nan in the entry of 'w'"),
    "infinite": ({"w.in_sum2": F32([np.inf]), "w.counts": F32([1])}, "value inf in the entry"),
    "negative": ({"w.in_sum2": F32([-0.5]), "w.counts": F32([1])}, "value -0.5 in the entry"),
    "count": ({"w.in_sum2": F32([1]), "w.counts": F32([-2])}, "count -2.0 in the entry of 'w'"),
    "NaN count": ({"w.in_sum2": F32([1]), "w.counts": F32([np.nan])}, "count nan in the entry"),
    "no counts": ({"w.in_sum2": F32([1])}, "tensor 'w.counts' is missing"),
    "no sums": ({"w.counts": F32([1])}, "tensor 'w.in_sum2' is missing"),
    "shares": (
        {"w.in_sum2": F32([1, 2, 3]), "w.counts": F32([1, 1])},
        "3 values with 2 counts in the entry of 'w'",
    ),
    "type": (
        {"w.in_sum2": np.float16([1]), "w.counts": F32([1])},
        "tensor 'w.in_sum2' is not of type F32",
    ),
    "a model": ({"token_embd.weight": F32([1])}, "without importance entries; is it a model?"),
}


@pytest.mark.parametrize("name", BAD_GGUF)
def test_bad_gguf_entries(tmp_path, name):
    tensors, message = BAD_GGUF[name]
    path = tmp_path / "bad.gguf"
    write_with_gguf_py(path, tensors)
    assert_refused(path, message)


@pytest.mark.parametrize(
    "metadata",
    [{"imatrix.datasets": "x"}, {"imatrix.chunk_count": "7"}, {"imatrix.chunk_size": np.int32(1)}],
)
def test_bad_gguf_metadata(tmp_path, metadata):
    path = tmp_path / "bad.gguf"
    with Writer(path, metadata, [Slot("w.in_sum2", (1,), 0), Slot("w.counts", (1,), 0)]) as out:
        out.write("w.in_sum2", F32([1]))
        out.write("w.counts", F32([1]))
        out.commit()
    assert_refused(path, next(iter(metadata)))


SIGNALLING_NAN = struct.pack("<I", 0x7FA00000)
BAD_LEGACY = {
    "empty": (b"", "0 bytes cannot be an imatrix"),
    "no entries": (legacy([]), "0 entries"),
    "negative entries": (struct.pack("<i", -1) + bytes(40), "-1 entries"),
    "many entries": (struct.pack("<i", 2**31 - 1) + bytes(40), "2147483647 entries"),
    "name length": (struct.pack("<ii", 1, 2**31 - 1) + bytes(40), "2147483647 bytes of a name"),
    "empty name": (struct.pack("<ii", 1, 0) + bytes(40), "0 bytes of a name"),
    "name not UTF-8": (legacy([(b"\xff", 1, [1.0])]), "the text at byte 8 is not UTF-8"),
    "duplicate": (legacy([(b"w", 1, [1.0])] * 2), "'w' appears twice"),
    "no values": (legacy([(b"w", 1, [])]), "0 values for 'w'"),
    "value count": (
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, 2**31 - 1) + bytes(40),
        "2147483647 values for 'w' with 40 bytes left",
    ),
    "NaN": (legacy([(b"w", 1, [1.0, np.nan])]), "value nan in the entry of 'w'"),
    "signalling NaN": (
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, 1) + SIGNALLING_NAN,
        "value nan in the entry of 'w'",
    ),
    "negative": (legacy([(b"w", 1, [-1.0])]), "value -1.0 in the entry of 'w'"),
    "escape codes": (legacy([(b"\x1b[2J", 1, [-1.0])]), r"entry of '\x1b[2J'"),
    "half a trailer": (legacy([(b"w", 1, [1.0])], b"\1\0\0\0\1"), "truncated at byte"),
    "data set length": (
        legacy([(b"w", 1, [1.0])], struct.pack("<ii", 1, 99)),
        "99 bytes of a data set name with 0 bytes left",
    ),
    "trailing bytes": (
        legacy([(b"w", 1, [1.0])], struct.pack("<ii", 1, 0) + b"junk"),
        "4 bytes after the end",
    ),
    "something else": (b"PK\3\4" + bytes(100), "entries with"),
}


@pytest.mark.parametrize("name", BAD_LEGACY)
def test_bad_legacy_files(tmp_path, name):
    data, message = BAD_LEGACY[name]
    path = tmp_path / "bad.dat"
    path.write_bytes(data)
    assert_refused(path, message)


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_imatrix(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert message in line
    assert line.isprintable()


def test_every_cut_of_both_formats_is_refused(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for old in (False, True):
        write_imatrix(whole, sample("i"), legacy=old, force=True)
        data = whole.read_bytes()
        # Padding may be missing from a GGUF file, and the legacy trailer is optional.
        needed = len(data) - (20 if not old else 0)
        optional = len(data) - 16 if old else None
        for n in range(needed):
            if n != optional:
                cut.write_bytes(data[:n])
                with pytest.raises(BadInputError):
                    read_imatrix(cut)


def test_missing_file(tmp_path):
    with pytest.raises(AccessError, match="none: cannot open: No such file"):
        read_imatrix(tmp_path / "none")


@pytest.fixture(scope="module")
def fuzz_file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "imatrix"


@settings(max_examples=300, deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    st.integers(0, 10_000),
)
def test_damaged_files_raise_only_our_errors(fuzz_file, old, changes, length):
    write_imatrix(fuzz_file, sample("i"), legacy=old, force=True)
    data = bytearray(fuzz_file.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    fuzz_file.write_bytes(data[: length or None])
    try:
        imatrix = read_imatrix(fuzz_file)
    except QuantcliError:
        return
    for name, entry in imatrix.entries.items():
        values = imatrix.importance(name, entry.sums.size)
        assert np.isfinite(values).all()
        assert (values >= 0).all()
