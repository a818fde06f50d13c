"""The ledger: what a crash tears is ignored, shards are merged, a file must still be itself."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from quantcli.batch.ledger import FAILED, FINISHED, STARTED, Ledger
from quantcli.errors import OutputExistsError, ResourceError


def finish(ledger: Ledger, key: str, name: str, content: bytes) -> None:
    (ledger.root / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    file = {"path": name, "size_bytes": len(content), "sha256": digest}
    ledger.add(FINISHED, key, name=name, files=[file])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.add(STARTED, "a", name="x", attempt=1, outputs=["x.gguf"])
        ledger.add(FAILED, "a", name="x", attempts=1, exit_code=6, error="network")
        finish(ledger, "b", "y", b"content")
    with Ledger(tmp_path) as ledger:
        assert ledger.last("a")["exit_code"] == 6
        assert ledger.knows("x.gguf")
        assert not ledger.knows("y.gguf")
        assert ledger.last("none") == {}
        assert ledger.intact(["a", "b", "none"]) == {"b"}


@pytest.mark.parametrize("damage", ["gone", "changed", "shorter"])
def test_a_file_that_is_not_itself_any_more_is_not_finished(tmp_path: Path, damage: str) -> None:
    with Ledger(tmp_path) as ledger:
        finish(ledger, "a", "x", b"content")
        assert ledger.intact(["a"]) == {"a"}
        if damage == "gone":
            (tmp_path / "x").unlink()
        else:
            (tmp_path / "x").write_bytes(b"c0ntent" if damage == "changed" else b"cont")
        assert ledger.intact(["a"]) == set()


def test_every_torn_tail_is_ignored(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        finish(ledger, "a", "x", b"1")
        whole = ledger.path.read_bytes()
        finish(ledger, "b", "y", b"2")
        both = ledger.path.read_bytes()
    for end in range(len(whole), len(both) - 1):
        ledger.path.write_bytes(both[:end])
        with Ledger(tmp_path) as torn:
            assert torn.intact(["a", "b"]) == {"a"}
            finish(torn, "c", "z", b"3")
        with Ledger(tmp_path) as after:
            assert after.intact(["a", "b", "c"]) == {"a", "c"}
    ledger.path.write_bytes(both[:-1])  # only the line's end is torn off
    with Ledger(tmp_path) as torn:
        assert torn.intact(["a", "b"]) == {"a", "b"}


def test_lines_that_are_no_records_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b'\xff\n[1]\n{"event":"finished"}\n\n"x"\n')
    with Ledger(tmp_path) as ledger:
        assert ledger.intact(["x"]) == set()


def test_shards_write_apart_and_are_read_together(tmp_path: Path) -> None:
    with Ledger(tmp_path, "1/2") as one, Ledger(tmp_path, "2/2") as two:
        finish(one, "a", "x", b"1")
        finish(two, "b", "y", b"2")
        two.add(FAILED, "c", name="z", attempts=1, exit_code=3, error="broken")
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        "ledger-1-of-2.jsonl",
        "ledger-2-of-2.jsonl",
    ]
    with Ledger(tmp_path) as merged:
        assert merged.intact(["a", "b", "c"]) == {"a", "b"}
        assert merged.last("c")["exit_code"] == 3


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(OutputExistsError, match="another process runs this"):
        Ledger(tmp_path).__enter__()
    with Ledger(tmp_path):
        pass


def test_every_line_is_flushed_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *a: calls.append("write") or write(*a))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or sync(fd))
    with Ledger(tmp_path) as ledger:
        for key in "ab":
            ledger.add(STARTED, key, outputs=[])
    assert calls == ["write", "fsync"] * 2
    assert [json.loads(line)["key"] for line in ledger.path.open()] == ["a", "b"]


def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path) as ledger:

        def full(*args: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ResourceError, match="cannot write: No space left"):
            ledger.add(STARTED, "a", outputs=[])
