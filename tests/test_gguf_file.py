"""Headers and tensors: what gguf-py writes we read, what we write gguf-py reads."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from quantcli.errors import AccessError, BadInputError
from quantcli.gguf_file import (
    GGML_TYPES,
    Slot,
    Writer,
    parse_header,
    read_header,
    read_tensor,
)
from quantcli.gguf_file.layout import encode_header

F32, F16, Q8_0, Q4_K = 0, 1, 8, 12

SCALARS = {
    "t.u8": np.uint8(200),
    "t.i8": np.int8(-100),
    "t.u16": np.uint16(60000),
    "t.i16": np.int16(-30000),
    "t.u32": np.uint32(4_000_000_000),
    "t.i32": np.int32(-2_000_000_000),
    "t.u64": np.uint64(2**64 - 1),
    "t.i64": np.int64(-(2**63)),
    "t.f32": np.float32(1e-5),
    "t.f64": np.float64(0.1),
}
METADATA = {
    "general.architecture": "llama",
    **SCALARS,
    "t.true": True,
    "t.false": False,
    "t.text": "naïve 🦙\n",
    "t.empty text": "",
    "t.texts": ["a", "", "日本"],
    "t.no texts": [],
    "t.ints": np.array([1, -2, 3], np.int32),
    "t.floats": np.array([0.5, np.inf], np.float32),
    "t.doubles": np.array([0.1]),
    "t.bools": np.array([True, False]),
    "t.bytes": np.arange(5, dtype=np.uint8),
    "t.longs": np.array([2**63], np.uint64),
    "t.no ints": np.array([], np.int32),
}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert type(found[key]) is type(value), key
        if isinstance(value, np.ndarray):
            assert found[key].dtype == value.dtype, key
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_metadata_round_trip_keeps_values_types_and_order(tmp_path):
    path = tmp_path / "m.gguf"
    with Writer(path, METADATA, []) as out:
        out.commit()
    header = read_header(path)
    assert_same(header.metadata, METADATA)
    assert (header.version, header.alignment, header.tensors) == (3, 32, {})
    assert header.data_start == path.stat().st_size


def test_gguf_py_reads_our_values_and_types(tmp_path):
    path = tmp_path / "m.gguf"
    with Writer(path, METADATA, []) as out:
        out.commit()
    fields = gguf.GGUFReader(path).fields
    for key, value in METADATA.items():
        found = fields[key].contents()
        if isinstance(value, list | np.ndarray) and len(value) == 0:
            assert fields[key].types == [gguf.GGUFValueType.ARRAY]
        else:
            expected = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
            assert found == expected, key
    for key, value in SCALARS.items():
        kind = gguf.GGUFReader.gguf_scalar_to_np[fields[key].types[0]]
        assert kind is type(value), key


def test_we_read_what_gguf_py_writes(tmp_path):
    path = tmp_path / "g.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    scalars = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
    for kind in scalars:
        getattr(writer, f"add_{kind}")(f"t.{kind}", 7)
    writer.add_float32("t.float32", 1e-5)
    writer.add_float64("t.float64", 0.1)
    writer.add_bool("t.bool", True)
    writer.add_array("t.texts", ["x", "yé"])
    writer.add_array("t.ints", [1, 2])
    writer.add_array("t.floats", [0.5])
    writer.add_array("t.bools", [True, False])
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    half = np.arange(40, dtype=np.float16).reshape(2, 4, 5)
    quantized = gguf.quants.quantize(np.ones((3, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("w", weight)
    writer.add_tensor("h", half)
    writer.add_tensor("q", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(path)
    expected = {"general.architecture": "llama"}
    expected |= {f"t.{kind}": np.dtype(kind).type(7) for kind in scalars}
    expected |= {"t.float32": np.float32(1e-5), "t.float64": np.float64(0.1), "t.bool": True}
    expected |= {"t.texts": ["x", "yé"], "t.ints": np.array([1, 2], np.int32)}
    expected |= {"t.floats": np.array([0.5], np.float32), "t.bools": np.array([True, False])}
    assert_same(header.metadata, expected)
    shapes = {name: (e.shape, e.type_id) for name, e in header.tensors.items()}
    assert shapes == {"w": ((2, 3), F32), "h": ((2, 4, 5), F16), "q": ((3, 64), Q8_0)}
    for name, data in (("w", weight), ("h", half), ("q", quantized)):
        raw = read_tensor(header.tensors[name])
        assert raw.tobytes() == data.tobytes()
        assert raw.shape == (data[..., 0].size, data.shape[-1] * data.itemsize)
        assert not raw.flags.writeable


@pytest.mark.parametrize("alignment", [None, 8, 32, 4096, 65536])
def test_tensors_written_by_name_in_chunks_come_back_everywhere(tmp_path, alignment):
    path = tmp_path / "m.gguf"
    metadata = {"general.architecture": "llama"}
    if alignment:
        metadata["general.alignment"] = np.uint32(alignment)
    rng = np.random.default_rng(0)
    slots = [Slot("a", (3, 5), F32), Slot("b", (7,), F32), Slot("c", (4, 256), Q4_K)]
    data = {s.name: rng.integers(0, 256, (s.nbytes,), np.uint8) for s in slots}
    with Writer(path, metadata, slots) as out:
        out.write("a", data["a"][:20])
        out.write("a", data["a"][20:])
        out.write("b", data["b"].tobytes())
        out.write("c", data["c"].reshape(4, -1)[:3])
        out.write("c", data["c"].reshape(4, -1)[3:])
        out.commit()
    header = read_header(path)
    assert header.alignment == (alignment or 32)
    reference = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for slot in slots:
        entry = header.tensors[slot.name]
        assert (entry.shape, entry.type_id) == (slot.shape, slot.type_id)
        assert entry.offset % header.alignment == 0
        assert read_tensor(entry).tobytes() == data[slot.name].tobytes()
        assert reference[slot.name].data.tobytes() == data[slot.name].tobytes()
        assert reference[slot.name].data_offset == entry.offset
        assert tuple(reference[slot.name].shape) == slot.shape[::-1]
    assert path.stat().st_size % header.alignment == 0  # ggml reads the last padding, too


def test_our_bytes_equal_gguf_py_s(tmp_path):
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer = gguf.GGUFWriter(theirs, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name in ("x", "y"):
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": np.uint32(2),
        "tokenizer.ggml.tokens": ["a", "b"],
    }
    with Writer(ours, metadata, [Slot("x", (2, 3), F32), Slot("y", (2, 3), F32)]) as out:
        out.write("x", weight)
        out.write("y", weight)
        out.commit()
    assert ours.read_bytes() == theirs.read_bytes()


def test_golden_header_bytes():
    expected = b"GGUF\x03\0\0\0" + (1).to_bytes(8, "little") + (1).to_bytes(8, "little")
    expected += b"\x01\0\0\0\0\0\0\0k" + b"\x05\0\0\0" + b"\xff\xff\xff\xff"
    expected += b"\x01\0\0\0\0\0\0\0t" + b"\x02\0\0\0" + b"\x03\0\0\0\0\0\0\0"
    expected += b"\x02\0\0\0\0\0\0\0" + b"\0\0\0\0" + bytes(8)
    expected += bytes(-len(expected) % 32)
    assert encode_header({"k": np.int32(-1)}, [Slot("t", (2, 3), F32)]) == expected


def test_version_2_reads_like_version_3():
    head = bytearray(encode_header({"k": "v"}, [Slot("t", (2,), F32)]))
    head[4] = 2
    header = parse_header(bytes(head), len(head) + 8, Path("old.gguf"))
    assert header.version == 2
    assert header.tensors["t"].nbytes == 8


def test_type_sizes_equal_gguf_py_s():
    theirs = {int(k): (k.name, *v) for k, v in gguf.constants.GGML_QUANT_SIZES.items()}
    for type_id, ours in GGML_TYPES.items():
        if type_id in theirs:  # an older gguf package knows fewer types
            assert tuple(ours) == theirs[type_id]
    missing = {theirs[i][0] for i in theirs.keys() - GGML_TYPES.keys()}
    assert missing <= {"Q8_1", "Q8_K"}  # never stored: ggml's types for activations


@pytest.mark.parametrize(
    "value", [1, 0.5, None, np.bool_(True), np.float16(1), np.zeros((2, 2)), np.array(["x"]), b"x"]
)
def test_ambiguous_metadata_is_a_bug_of_the_caller(value):
    with pytest.raises((TypeError, AttributeError), match=r"'k'|encode"):
        encode_header({"k": value}, [])


def test_half_a_surrogate_is_bad_input_that_names_the_key():
    with pytest.raises(BadInputError, match=r"'tokenizer\.chat_template': character 2 .*surrogate"):
        encode_header({"tokenizer.chat_template": "ab\ud83d"}, [])


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(AccessError, match="No such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(BadInputError, match="not a regular file"):
        read_header(tmp_path)


def test_file_that_shrank_after_its_header_was_read(tmp_path):
    path = tmp_path / "m.gguf"
    with Writer(path, {"k": True}, [Slot("t", (64, 64), F32)]) as out:
        out.write("t", np.zeros((64, 64), np.float32))
        out.commit()
    entry = read_header(path).tensors["t"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInputError, match="cannot map tensor 't'"):
        read_tensor(entry)
