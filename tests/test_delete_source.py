"""--delete-source: the weights of a hub model leave the cache as they are read, and only they."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from broken import shard_name
from conftest import Call
from hub_client import Start, failure
from huggingface_hub import constants
from huggingface_hub.utils import _shared_blobs
from sharded import cut_demo

import quantcli
from quantcli import encoding
from quantcli.checkpoint import open_checkpoint
from quantcli.errors import AccessError, BadInputError, UsageError
from quantcli.methods.pieces import PIECE_WEIGHTS
from quantcli.planning import make_plan

pytest_plugins = ["hub_fixtures"]

COUNT = 6
SHARDS = [shard_name(i, COUNT) for i in range(1, COUNT + 1)]


class Watch:
    """Calls `look` at every step of the quantizing."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.look, self.stage = look, ""

    def start(self, description: str, total_bytes: int) -> None:
        self.stage = description

    def advance(self, n: int) -> None:
        if self.stage == "Quantizing":
            self.look()

    def finish(self) -> None:
        pass


def shards(cache: Path) -> list[str]:
    """Names of the weight files of the snapshots; dangling links count."""
    return sorted(path.name for path in cache.glob("models--org--name/snapshots/*/*.safetensors"))


def blobs(cache: Path) -> int:
    """Bytes of large content in the cache, whether there is a link to it or not."""
    files = [path for path in cache.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files if path.stat().st_size > 200_000)


def mapped() -> list[str]:
    """Removed files whose disk this process or its children still hold."""
    pids = [str(os.getpid())]
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += (task / "children").read_text().split()
    lines = [x for pid in pids for x in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [line for line in lines if "/blobs/" in line and line.endswith("(deleted)")]


def job(tmp_path: Path, **more: object) -> quantcli.Job:
    settings = {"types": ("Q8_0",), "output": tmp_path / "out.gguf", "force": True, "threads": 1}
    return quantcli.Job("org/name", delete_source=True, **(settings | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("processes", [False, True])
def test_shards_vanish_one_by_one(
    processes: bool, hub: Start, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cut_demo(tmp_path / "source", demo, COUNT)
    hub({"org/name": source})
    cache = tmp_path / "cache"
    seen: list[list[str]] = []
    together: list[int] = []

    def look() -> None:
        seen.append(shards(cache))
        output = sum(path.stat().st_blocks * 512 for path in tmp_path.glob(".out.gguf.*"))
        together.append(blobs(cache) + output)
        assert mapped() == []

    if processes:
        monkeypatch.setattr(encoding, "WORTH_PROCESSES", 1)
    done = quantcli.convert(job(tmp_path, threads=1 + processes), Watch(look))
    assert seen[0] == SHARDS
    assert seen[-1] == []
    assert sorted({len(left) for left in seen}) == list(range(COUNT + 1))
    total = sum((source / name).stat().st_size for name in SHARDS)
    if not processes:  # in which the demo as a whole is in flight
        assert max(together) < total + 2 * encoding.PIECES_SENT * PIECE_WEIGHTS
    assert blobs(cache) == 0
    assert done.warnings == []
    again = quantcli.convert(job(tmp_path))
    plain = quantcli.convert(quantcli.Job(str(source), ("Q8_0",), tmp_path / "plain.gguf"))
    assert again.outputs[0].sha256 == done.outputs[0].sha256
    assert make_plan(job(tmp_path), weights=False).checkpoint.missing_bytes == total
    # Only where from is written besides.
    tensors = [[t.cost for t in report.outputs[0].tensors] for report in (done, plain)]
    assert tensors[0] == tensors[1]


def test_a_failure_keeps_what_was_not_read(hub: Start, tmp_path: Path, demo: Path) -> None:
    hub({"org/name": cut_demo(tmp_path / "source", demo, COUNT, nan_at_the_end=True)})
    with pytest.raises(BadInputError, match=r"model\.norm\.weight"):
        quantcli.convert(job(tmp_path))
    left = shards(tmp_path / "cache")
    assert left == SHARDS[-len(left) :]
    assert len(left) < COUNT / 2
    assert list(tmp_path.glob("*out*")) == []


def test_a_failure_in_the_command(hub: Start, call: Call, tmp_path: Path, demo: Path) -> None:
    hub({"org/name": cut_demo(tmp_path / "source", demo, COUNT, nan_at_the_end=True)})
    assert call("convert", "org/name", "--delete-source", "-q").failed_with(3, "model.norm.weight")
    assert SHARDS[-1] in shards(tmp_path / "cache")


@pytest.mark.parametrize(
    "more",
    [{"evaluate": "text"}, {"method": "gptq"}, {"calibrate": "text"}],
    ids=["evaluation", "gptq", "imatrix"],
)
def test_what_is_read_again_stays_until_then(
    more: dict, hub: Start, tmp_path: Path, demo: Path
) -> None:
    hub({"org/name": cut_demo(tmp_path / "source", demo, 2)})
    (tmp_path / "text").write_text("All happy families are alike. " * 700)
    more = {name: value.replace("text", str(tmp_path / "text")) for name, value in more.items()}
    cache = tmp_path / "cache"
    seen = []
    wanted = job(tmp_path, types=("Q4_0",), calibration_tokens=1024, **more)
    done = quantcli.convert(wanted, Watch(lambda: seen.append(len(shards(cache)))))
    assert seen[0] == 2
    assert seen[-1] == (0 if "calibrate" in more else 2)
    assert blobs(cache) == 0
    assert shards(cache) == []
    assert done.outputs[0].sha256


def test_a_local_folder_is_refused(call: Call, demo: Path) -> None:
    done = call("convert", demo, "--delete-source")
    assert done.failed_with(UsageError.exit_code, "--delete-source", "local folder")


def test_other_revisions_lose_what_they_share_and_get_it_again(
    hub: Start, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cut_demo(tmp_path / "source", demo, 2)
    other = cut_demo(tmp_path / "other", demo, 2)
    (other / "README.md").write_text("differs")
    hub({"org/name": {"main": source, "v2": other}})
    open_checkpoint("org/name", revision="v2")
    quantcli.convert(job(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        for revision in ("main", "v2"):
            assert "not completely in the cache" in failure(
                AccessError, "org/name", revision=revision
            )
    again = open_checkpoint("org/name", revision="v2")
    assert again.missing_bytes == 0
    assert again.float32("model.norm.weight").any()


def test_content_that_repos_share_goes_with_the_last(
    hub: Start, tmp_path: Path, demo: Path
) -> None:
    """With Xet the client keeps content in `<cache>/blobs` and counts who links there."""
    hub({"org/name": demo, "org/twin": demo})
    cache = tmp_path / "cache"
    for repo in ("name", "twin"):
        open_checkpoint(f"org/{repo}")
        [link] = cache.glob(f"models--org--{repo}/snapshots/*/model.safetensors")
        blob = link.parent / link.readlink()
        size = blob.stat().st_size
        assert _shared_blobs.publish_blob_to_shared_store(
            blob_path=os.path.normpath(blob),
            xet_hash="ab" * 32,
            cache_dir=str(cache),
            expected_size=size,
        )
    quantcli.convert(job(tmp_path))
    assert shards(cache) == []
    assert open_checkpoint("org/twin").float32("model.norm.weight").any()
    assert blobs(cache) == size
    [last] = [open_checkpoint("org/twin").cached]
    assert last is not None
    assert last.free(*last.names) == []
    assert blobs(cache) == 0


def _hold(path: str, opened: "multiprocessing.connection.Connection") -> None:
    from quantcli.checkpoint.cached_weights import CachedWeights

    cached = CachedWeights(Path(path), ())
    opened.send(True)
    opened.recv()
    del cached


def test_the_last_reader_removes(hub: Start, tmp_path: Path, demo: Path) -> None:
    hub({"org/name": cut_demo(tmp_path / "source", demo, 2)})
    cache = tmp_path / "cache"
    root = open_checkpoint("org/name").side_files.root
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    reader = context.Process(target=_hold, args=(str(root), theirs))
    reader.start()
    assert ours.recv()
    done = quantcli.convert(job(tmp_path))
    assert len(shards(cache)) == 2
    assert [line for line in done.warnings if "another run reads them" in line]
    reader.kill()
    reader.join()
    assert quantcli.convert(job(tmp_path)).warnings == []
    assert shards(cache) == []


def test_the_plan_knows_the_download(hub: Start, call: Call, tmp_path: Path, demo: Path) -> None:
    source = cut_demo(tmp_path / "source", demo, 3)
    sizes = [path.stat().st_size for path in sorted(source.glob("*.safetensors"))]
    hub({"org/name": source})

    def planned(*arguments: str | Path) -> tuple[int, int]:
        document = json.loads(call("convert", *arguments, "--dry-run", "--json").stdout)
        return document["source_bytes"], document["download_bytes"]

    assert planned("org/name") == (sum(sizes), sum(sizes))
    assert "download 8.4 MB · disk" in call("convert", "org/name", "--dry-run").stdout
    open_checkpoint("org/name")
    [shard] = (tmp_path / "cache").glob("*/snapshots/*/model-00002-*")
    shard.unlink()
    assert planned("org/name") == (sum(sizes), sizes[1])
    assert planned(source) == (sum(sizes), 0)
