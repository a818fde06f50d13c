"""The writer: plan order, verification, shards, the same bytes every time."""
# ruff: noqa: PT012  (what happens inside the block that raises is what is tested)

import hashlib
import os
import pickle
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantcli.errors import BadInputError, IntegrityError, OutputExistsError, UsageError
from quantcli.gguf_file import (
    PartFile,
    Slot,
    Writer,
    plan_shards,
    read_header,
    read_split,
    read_tensor,
    shards,
)

F32, Q8_0 = 0, 8
METADATA = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a", "b"]}
SLOTS = [Slot(f"blk.{i}.w", (3 + i, 32), Q8_0 if i % 2 else F32) for i in range(7)]


def content(slot: Slot) -> np.ndarray:
    seed = np.random.default_rng(int(slot.name.split(".")[1]))
    return seed.integers(0, 256, (slot.shape[0], slot.row_bytes), np.uint8)


def write(path: Path, **options):
    with Writer(path, options.pop("metadata", METADATA), SLOTS, **options) as out:
        for slot in SLOTS:
            out.write(slot.name, content(slot))
        return out.commit()


def gguf_py_shards(path: Path, **limits) -> list[Path]:
    """The same model split by llama.cpp's converter library."""
    writer = gguf.GGUFWriter(path, "llama", **limits)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for slot in SLOTS:
        writer.add_tensor(
            slot.name, content(slot), raw_dtype=gguf.GGMLQuantizationType(slot.type_id)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob("*.gguf"))


def test_commit_reports_size_and_hash_of_the_file(tmp_path):
    path = tmp_path / "m.gguf"
    (written,) = write(path)
    data = path.read_bytes()
    assert written.path == path
    assert written.size_bytes == len(data) == plan_shards(path, METADATA, SLOTS)[0].size
    assert written.sha256 == hashlib.sha256(data).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("options", [{}, {"split_max_tensors": 2}])
def test_equal_input_gives_equal_bytes(tmp_path, options):
    sets = []
    for run in ("one", "two"):
        folder = tmp_path / run
        folder.mkdir()
        write(folder / "m.gguf", **options)
        sets.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert sets[0] == sets[1]
    assert len(sets[0]) == (4 if options else 1)


def misuse_order(out):
    out.write(SLOTS[1].name, content(SLOTS[1]))


def misuse_unknown(out):
    out.write("other", b"")


def misuse_too_long(out):
    out.write(SLOTS[0].name, bytes(SLOTS[0].nbytes + 1))


def misuse_next_too_early(out):
    out.write(SLOTS[0].name, bytes(SLOTS[0].nbytes - 1))
    out.write(SLOTS[1].name, content(SLOTS[1]))


def misuse_incomplete(out):
    out.write(SLOTS[0].name, content(SLOTS[0]))
    out.commit()


def misuse_after_the_last(out):
    for slot in SLOTS:
        out.write(slot.name, content(slot))
    out.write(SLOTS[-1].name, b"x")


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (misuse_order, "'blk.1.w' written where 'blk.0.w' is due"),
        (misuse_unknown, "'other' written where"),
        (misuse_too_long, "'blk.0.w': 1 bytes too many"),
        (misuse_next_too_early, "'blk.1.w' written where 'blk.0.w'"),
        (misuse_incomplete, "'blk.1.w' is incomplete"),
        (misuse_after_the_last, "'blk.6.w' written where 'nothing'"),
    ],
)
def test_data_that_does_not_follow_the_plan_is_a_bug(tmp_path, misuse, message):
    with (
        pytest.raises(RuntimeError, match=message),
        Writer(tmp_path / "m.gguf", METADATA, SLOTS) as out,
    ):
        misuse(out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 64, "", "a\nb"])
def test_a_name_readers_refuse_fails_before_any_work(tmp_path, name):
    with pytest.raises(BadInputError, match=r"m\.gguf: "):
        Writer(tmp_path / "m.gguf", METADATA, [Slot(name, (4,), F32)])
    with pytest.raises(BadInputError, match="'t' appears twice"):
        Writer(tmp_path / "m.gguf", METADATA, [Slot("t", (4,), F32)] * 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["32", np.uint32(0), np.uint32(2**31), np.int32(32)])
def test_an_alignment_readers_refuse_fails_before_any_work(tmp_path, value):
    with pytest.raises(BadInputError, match=r"general\.alignment"):
        Writer(tmp_path / "m.gguf", {"general.alignment": value}, SLOTS)


def test_commit_tells_how_far_verification_is(tmp_path):
    path = tmp_path / "m.gguf"
    told = []

    def advance(n):
        assert not path.exists()
        told.append(n)

    with Writer(path, METADATA, SLOTS) as out:
        for slot in SLOTS:
            out.write(slot.name, content(slot))
        out.commit(advance)
    assert sum(told) == path.stat().st_size


def test_other_processes_write_at_their_places(tmp_path):
    """In any order, through files opened anew; only the account follows the plan."""
    with Writer(tmp_path / "m.gguf", METADATA, SLOTS, split_max_tensors=3) as out:
        places = pickle.loads(pickle.dumps(out.places()))
        runs = {}
        for slot in SLOTS[::-1]:
            file, offset = places[slot.name]
            runs[slot.name] = file.write(offset, content(slot))
        for slot in SLOTS:
            out.add(slot.name, runs[slot.name])
        others = out.commit()
    (tmp_path / "one").mkdir()
    written = write(tmp_path / "one" / "m.gguf", split_max_tensors=3)
    assert [w.sha256 for w in others] == [w.sha256 for w in written]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("damage", ["flip", "cut", "append"])
def test_a_file_that_reads_back_differently_is_refused(tmp_path, monkeypatch, direct, damage):
    """Also where the file system knows no reads around its cache."""
    if not direct:
        monkeypatch.setattr(os, "O_DIRECT", os.O_DIRECTORY)
    path, data = tmp_path / "part", np.random.default_rng(1).bytes((5 << 20) + 7)
    file = PartFile(tmp_path / "out", path)
    path.touch()
    sizes = [(3 << 20) + 1, 0, 12, (2 << 20) - 6]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    runs = [file.write(a, data[a : a + n]) for a, n in zip(starts, sizes, strict=True)]
    told = []
    assert file.read_back(runs, told.append) == hashlib.sha256(data).hexdigest()
    assert sum(told) == len(data)
    with path.open("r+b") as out:
        if damage == "cut":
            out.truncate(len(data) - 1)
        else:
            out.seek(-3 if damage == "flip" else 0, 2)
            out.write(bytes([data[-3] ^ 1]))
    with pytest.raises(IntegrityError, match="out: the disk returned other bytes"):
        file.read_back(runs, abs)


def test_bytes_that_change_on_disk_are_noticed(tmp_path):
    with (
        pytest.raises(IntegrityError, match="other bytes"),
        Writer(tmp_path / "m.gguf", METADATA, SLOTS) as out,
    ):
        for slot in SLOTS:
            out.write(slot.name, content(slot))
        (part,) = tmp_path.iterdir()
        with part.open("r+b") as file:
            file.seek(-40, 2)
            byte = file.read(1)
            file.seek(-40, 2)
            file.write(bytes([byte[0] ^ 1]))
        out.commit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "limits",
    [{"split_max_tensors": 1}, {"split_max_tensors": 3}, {"split_max_size": 700},
     {"split_max_size": 1}, {"split_max_tensors": 2, "split_max_size": 1000}],
)  # fmt: skip
def test_shards_equal_those_of_llama_cpp_s_converter(tmp_path, limits):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    theirs = gguf_py_shards(tmp_path / "theirs" / "m.gguf", **limits)
    ours = write(
        tmp_path / "ours" / "m.gguf",
        split_max_tensors=limits.get("split_max_tensors"),
        split_max_bytes=limits.get("split_max_size"),
    )
    assert len(ours) == len(theirs) > 1
    assert [w.path.name for w in ours] == [p.name for p in theirs]
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.path.read_bytes() == yours.read_bytes()
        assert mine.sha256 == hashlib.sha256(yours.read_bytes()).hexdigest()


def test_one_shard_keeps_the_plain_name_and_has_no_split_keys(tmp_path):
    (written,) = write(tmp_path / "m.gguf", split_max_bytes=2**40, split_max_tensors=len(SLOTS))
    assert written.path.name == "m.gguf"
    assert dict(read_header(written.path).metadata) == METADATA


def test_a_version_in_the_name_is_no_suffix():
    (shard, _) = plan_shards(Path("Llama-3.2-1B"), {}, SLOTS[:2], max_tensors=1)
    assert shard.path == Path("Llama-3.2-1B-00001-of-00002.gguf")


def test_read_split_merges_the_shards(tmp_path):
    metadata = METADATA | {"general.alignment": np.uint32(64)}
    written = write(tmp_path / "m.gguf", metadata=metadata, split_max_tensors=3)
    model = read_split(written[0].path)
    assert list(model.tensors) == [slot.name for slot in SLOTS]
    for slot in SLOTS:
        assert read_tensor(model.tensors[slot.name]).tobytes() == content(slot).tobytes()
    assert {entry.path for entry in model.tensors.values()} == {w.path for w in written}
    assert model.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    for number, file in enumerate(written):
        reader = gguf.GGUFReader(file.path)
        assert reader.fields["split.no"].contents() == number
        assert reader.alignment == 64


def test_read_split_of_a_single_file_is_its_header(tmp_path):
    (written,) = write(tmp_path / "m.gguf")
    assert list(read_split(written.path).tensors) == [slot.name for slot in SLOTS]


def test_inconsistent_shards_are_refused(tmp_path):
    one, two, three = (w.path for w in write(tmp_path / "m.gguf", split_max_tensors=3))
    with pytest.raises(BadInputError, match=r"one of 3 shards; give the one named -00001-of-00003"):
        read_split(two)
    saved = two.read_bytes()
    two.write_bytes(three.read_bytes())
    with pytest.raises(BadInputError, match=r"00002-of-00003\.gguf: split\.no is not 1"):
        read_split(one)
    fake = dict(read_header(two).metadata) | {"split.no": np.uint16(1)}
    with Writer(two, fake, SLOTS[:1], force=True) as out:
        out.write(SLOTS[0].name, content(SLOTS[0]))
        out.commit()
    with pytest.raises(BadInputError, match=r"'blk\.0\.w' is also in .*00001-of"):
        read_split(one)
    with Writer(two, fake, [], force=True) as out:
        out.commit()
    with pytest.raises(BadInputError, match="7 tensors announced, 4 in the shards"):
        read_split(one)
    two.write_bytes(saved)
    assert len(read_split(one).tensors) == 7


def test_too_many_shards_are_refused(monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARDS", 3)
    with pytest.raises(UsageError, match="4 shards are too many"):
        plan_shards(Path("m.gguf"), METADATA, SLOTS, max_tensors=2)


def test_a_shard_that_cannot_become_final_takes_its_companions_back(tmp_path):
    """The first shard is renamed last: here it meets a file that appeared meanwhile."""
    path = tmp_path / "m.gguf"
    with (
        pytest.raises(OutputExistsError),
        Writer(path, METADATA, SLOTS, split_max_tensors=3) as out,
    ):
        for slot in SLOTS:
            out.write(slot.name, content(slot))
        foreign = tmp_path / "m-00001-of-00003.gguf"
        foreign.write_text("not ours")
        out.commit()
    assert [p.name for p in tmp_path.iterdir()] == [foreign.name]
    assert foreign.read_text() == "not ours"


def test_force_replaces_and_default_refuses(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("old")
    with pytest.raises(OutputExistsError, match="--force"):
        write(path)
    assert path.read_text() == "old"
    write(path, force=True)
    assert path.read_bytes()[:4] == b"GGUF"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
