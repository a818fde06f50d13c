"""Local folders as a source: values, shards, side files, and everything that is refused."""

import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken import (
    read_index,
    refusal,
    safetensors,
    shard_name,
    two_tensors,
    write_folder,
    write_index,
    write_shards,
    write_single,
)

from quantcli.checkpoint import open_checkpoint
from quantcli.errors import (
    AccessError,
    BadInputError,
    IntegrityError,
    QuantcliError,
    UnsupportedError,
    UsageError,
)

SECOND = shard_name(2, 3)


# --- what works ----------------------------------------------------------------------------------


def test_values_are_exact_and_only_the_rows_asked_for(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_single(tmp_path / "tiny")))
    expected = np.arange(12, dtype=np.float32).reshape(3, 4) - 5.5
    assert (checkpoint.id, checkpoint.revision, checkpoint.has_weights) == ("tiny", None, True)
    for rows in (None, slice(1, 3), np.array([2, 0, 2])):
        values = checkpoint.float32("a.weight", rows)
        np.testing.assert_array_equal(values, expected if rows is None else expected[rows])
        assert type(values) is np.ndarray
        assert values.dtype == np.float32
        assert values.flags.writeable
        assert values.flags.c_contiguous


def test_float16_and_special_values_survive(tmp_path: Path) -> None:
    halves = np.array([1.5, -65504.0, 6e-8, np.inf], np.float16)
    bf16 = np.array([0x7F80, 0xFF80, 0x7FC0, 0x0001, 0x8000], np.uint16)
    content = safetensors({"h": halves, "z": bf16})
    checkpoint = open_checkpoint(str(write_single(tmp_path / "m", content)))
    np.testing.assert_array_equal(checkpoint.float32("h"), halves.astype(np.float32))
    bits = checkpoint.float32("z").view(np.uint32)
    np.testing.assert_array_equal(bits >> 16, bf16)
    assert not (bits & 0xFFFF).any()


def test_raw_is_a_read_only_view(tmp_path: Path) -> None:
    raw = open_checkpoint(str(write_single(tmp_path / "m"))).raw("a.weight")
    assert isinstance(raw, np.memmap)
    assert raw.dtype == np.uint16
    with pytest.raises(ValueError):
        raw[0, 0] = 1


def test_weights_that_change_while_they_are_read(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "m")
    checkpoint = open_checkpoint(str(folder))
    held = checkpoint.raw("a.weight")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "new").write_bytes(content)
    (folder / "new").replace(folder / "model.safetensors")
    with pytest.raises(IntegrityError, match="changed while it was read"):
        checkpoint.float32("a.weight")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInputError, match="is missing"):
        checkpoint.float32("a.weight")
    assert held[-1, -1]  # what is mapped stays


def test_a_tensor_without_values(tmp_path: Path) -> None:
    content = safetensors({"none": np.zeros((3, 0), np.float32), "b": np.ones(2, np.float32)})
    checkpoint = open_checkpoint(str(write_single(tmp_path / "m", content)))
    assert checkpoint.float32("none").shape == (3, 0)
    assert checkpoint.float32("b").sum() == 2


def test_shards_with_and_without_index(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m")
    (folder / "consolidated.safetensors").write_bytes(b"never opened")
    with_index = open_checkpoint(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    without = open_checkpoint(str(folder))
    assert list(with_index.tensors) == [f"t{i}.{x}" for i in (1, 2, 3) for x in "ab"]
    assert without.tensors == with_index.tensors
    np.testing.assert_array_equal(with_index.float32("t2.b"), np.full((2, 3), 2))


def test_side_files_are_read_with_limits(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "m")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.source_files == (
        "additional_chat_templates/tool.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    )
    assert checkpoint.json("tokenizer.json") == {"version": "1.0"}
    assert checkpoint.file("additional_chat_templates/tool.jinja") == b"{{ x }}"
    assert checkpoint.file("absent.json") is None
    assert checkpoint.json("absent.json") is None
    with pytest.raises(BadInputError, match=r"'tokenizer\.json' is over the limit of 5 bytes"):
        checkpoint.file("tokenizer.json", 5)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b/c", "..", "", "a\0b", "./a"])
def test_side_file_names_never_leave_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    assert open_checkpoint(str(write_single(tmp_path / "m"))).file(name) is None


def test_a_cache_snapshot_with_its_links_is_accepted(tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--o--n" / "blobs"
    shared = tmp_path / "hub" / "blobs" / "ab"
    snapshot = blobs.parent / "snapshots" / "0123"
    for folder in (blobs, shared, snapshot):
        folder.mkdir(parents=True)
    (shared / "abcd").write_bytes(safetensors(two_tensors()))
    (blobs / "aa").symlink_to("../../blobs/ab/abcd")
    (blobs / "bb").write_text('{"model_type": "llama"}')
    (snapshot / "model.safetensors").symlink_to("../../blobs/aa")
    (snapshot / "config.json").symlink_to("../../blobs/bb")
    assert open_checkpoint(str(snapshot)).float32("b.weight")[0] == -1


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"'m' lacks the tensor 'nope\.weight'"):
        open_checkpoint(str(write_single(tmp_path / "m"))).weight("nope.weight")


# --- shards and their index ----------------------------------------------------------------------


def remap(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weight_map = read_index(folder)
        changed = change(weight_map)
        write_index(folder, weight_map if changed is None else changed)

    return edit


def rewrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def replace_shard(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / SECOND).unlink()
        make(folder / SECOND)

    return edit


def without_index(*shards: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / "model.safetensors.index.json").unlink()
        for index in shards:
            (folder / shard_name(index, 3)).unlink()

    return edit


def outside(path: Path) -> None:
    target = path.parent.parent / "elsewhere.safetensors"
    target.write_bytes(safetensors(two_tensors()))
    path.symlink_to(target)


def bind_socket(path: Path) -> None:
    # The name of a socket is limited to about 100 bytes.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


TWO = {f"t2.{x}": np.full((2, 3), 2, np.float32) for x in "ab"}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"
INDEX = "model.safetensors.index.json"
SHARDS: dict[str, tuple[Callable, str]] = {
    "missing shard": (lambda folder: (folder / SECOND).unlink(), f"'{SECOND}' is missing"),
    "listed tensor missing": (
        remap(lambda m: m.update({"ghost": SECOND})),
        f"'{SECOND}' lacks tensor 'ghost'",
    ),
    "unlisted tensor": (remap(lambda m: m.pop("t2.b") and None), "'t2.b' of"),
    "listed in another shard": (
        remap(lambda m: m.update({"t2.b": shard_name(1, 3)})),
        "'t2.b' of",
    ),
    "one tensor in two shards": (
        rewrite(SECOND, safetensors(TWO | {"t1.a": np.zeros(2, np.float32)})),
        f"'t1.a' is in '{shard_name(1, 3)}' and again in '{SECOND}'",
    ),
    "absolute shard": (remap(lambda m: m.update({"t2.b": "/etc/passwd"})), "'/etc/passwd'"),
    "shard outside": (remap(lambda m: m.update({"t2.b": "../x.safetensors"})), "'../x.safet"),
    "shard no safetensors": (remap(lambda m: m.update({"t2.b": "x.bin"})), "'x.bin'"),
    "shard name with newline": (remap(lambda m: m.update({"t2.b": "a.safetensors\n"})), r"\n'"),
    "map is a list": (remap(lambda m: ["a"]), "no `weight_map`"),
    "map is empty": (remap(lambda m: {}), "no `weight_map`"),
    "map to a number": (remap(lambda m: m.update({"t2.b": 2})), "into 2"),
    "shard truncated": (rewrite(SECOND, safetensors(TWO)[:-5]), f"'{SECOND}' is 5 bytes short"),
    "one of three, no index": (without_index(2, 3), f"1 of 3 shards are here and no {INDEX}"),
    "two of three, no index": (without_index(2), f"'{SECOND}' is missing"),
    "LFS pointer": (rewrite(SECOND, LFS), f"'{SECOND}' is a Git LFS pointer"),
    "link outside": (replace_shard(outside), f"'{SECOND}' is a symbolic link"),
    "link inside": (
        replace_shard(lambda path: path.symlink_to(shard_name(1, 3))),
        f"'{SECOND}' is a symbolic link",
    ),
    "dangling link": (
        replace_shard(lambda path: path.symlink_to("gone")),
        f"'{SECOND}' is a symbolic link",
    ),
    "device": (
        replace_shard(lambda path: path.symlink_to("/dev/zero")),
        f"'{SECOND}' is a symbolic link",
    ),
    "FIFO": (replace_shard(os.mkfifo), f"'{SECOND}' is not a regular file"),
    "socket": (replace_shard(bind_socket), f"'{SECOND}' is not a regular file"),
    "folder": (replace_shard(os.mkdir), f"'{SECOND}' is not a regular file"),
    "index is broken": (rewrite(INDEX, b'{"weight_map": '), f"'{INDEX}' is not JSON"),
    "index has a key twice": (
        rewrite(INDEX, b'{"weight_map": {"a": "x", "a": "y"}}'),
        "key 'a' twice",
    ),
    "index is a list": (rewrite(INDEX, b"[]"), "not a JSON object"),
    "index is deep": (rewrite(INDEX, b"[" * 100_000), "nested too deeply"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_broken_shards_are_refused_with_one_line(case: str, tmp_path: Path) -> None:
    edit, words = SHARDS[case]
    folder = write_shards(tmp_path / "m")
    edit(folder)
    assert words in refusal(folder, BadInputError)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, outside])
def test_a_single_file_must_be_a_file(make: Callable, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    make(folder / "model.safetensors")
    assert "'model.safetensors' is " in refusal(folder, BadInputError)


def test_a_link_to_a_blob_outside_a_cache_is_refused(tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--o--n" / "blobs"
    blobs.mkdir(parents=True)
    snapshot = write_folder(blobs.parent / "snapshots" / "0123")
    (tmp_path / "secret").write_bytes(safetensors(two_tensors()))
    (blobs / "aa").symlink_to(tmp_path / "secret")
    (snapshot / "model.safetensors").symlink_to("../../blobs/aa")
    assert "'model.safetensors' is a symbolic link" in refusal(snapshot, BadInputError)


# --- config.json and other kinds of checkpoints --------------------------------------------------

CONFIGS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "broken": (b'{"a": ', "not JSON"),
    "list": (b"[1]", "not a JSON object but a list"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "deep": (b'{"a":' * 100_000, "nested too deeply"),
    "key twice": (b'{"hidden_size": 1, "hidden_size": 2}', "'hidden_size' twice"),
    "huge number": (b'{"a": ' + b"9" * 10_000 + b"}", "number"),
    "too large": (b'{"a": "' + b"x" * (4 << 20) + b'"}', "over the limit"),
    "too many values": (b'{"a": [' + b"1," * 600_000 + b"1]}", "more than 500000 values"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_broken_config_is_refused_with_one_line(case: str, tmp_path: Path) -> None:
    content, words = CONFIGS[case]
    folder = write_single(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    message = refusal(folder, BadInputError)
    assert message.startswith("'config.json' ")
    assert words in message


def test_missing_config_is_named(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "m")
    (folder / "config.json").unlink()
    assert "config.json is missing in" in refusal(folder, BadInputError)


@pytest.mark.parametrize(
    ("extra", "method"),
    [
        ({"quantization_config": {"quant_method": "aqlm", "nbits": 2}}, "aqlm"),
        ({"quantization_config": {"bits": 4}}, "method not named"),
        ({"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}, "affine"),
        ({"text_config": {"quantization_config": {"quant_method": "hqq"}}}, "hqq"),
        ({"quantization_config": {"quant_method": "\x1b[2J"}}, "\\x1b[2J"),
    ],
)
def test_quantized_checkpoints_are_refused_by_method(
    extra: dict, method: str, tmp_path: Path
) -> None:
    folder = write_single(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | extra))
    message = refusal(folder, UnsupportedError)
    assert "already quantized" in message
    assert method in message


def test_an_empty_quantization_config_means_nothing(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "m")
    (folder / "config.json").write_text('{"quantization_config": null, "text_config": null}')
    assert open_checkpoint(str(folder)).config["quantization_config"] is None


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        (["pytorch_model.bin"], UnsupportedError, "pickled weights ('pytorch_model.bin')"),
        (["model.pt", "x.py"], UnsupportedError, "pickled weights ('model.pt')"),
        (["model-q4.gguf"], UnsupportedError, "GGUF files ('model-q4.gguf')"),
        (["adapter_config.json", "adapter_model.safetensors"], UnsupportedError, "adapter"),
        (["consolidated.safetensors"], BadInputError, "only 'consolidated.safetensors'"),
        ([], BadInputError, "no model.safetensors"),
    ],
)
def test_other_kinds_of_checkpoints_are_named(
    files: list[str], kind: type[QuantcliError], words: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "m")
    for name in files:
        (folder / name).write_bytes(b"\x80\x02.")
    assert words in refusal(folder, kind)


# --- the source itself ---------------------------------------------------------------------------


NEITHER = ["", "no-such-folder", "./a/b", "/no/such", "a/b/c", "../x/y", "a..b/c", "a b/c"]
NEITHER += ["a/\x1b[2J", "https://huggingface.co/a/b", "a/" + "b" * 200, "x\0y"]


@pytest.mark.parametrize("source", NEITHER)
def test_what_is_neither_folder_nor_hub_id(source: str) -> None:
    with pytest.raises(AccessError, match="is neither a folder here nor a hub id") as caught:
        open_checkpoint(source)
    assert str(caught.value).isprintable()


def test_a_file_says_which_folder_to_give(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "m")
    with pytest.raises(UsageError, match=r"is a file: give the folder it is in, .*/m'"):
        open_checkpoint(str(folder / "model.safetensors"))


def test_a_fifo_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadInputError, match="is not a folder"):
        open_checkpoint(str(tmp_path / "fifo"))


def test_a_revision_of_a_local_folder_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--revision is for hub models"):
        open_checkpoint(str(write_single(tmp_path / "m")), revision="main")


def test_a_local_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_single(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("org/name").id == "name"


def test_unreadable_weights_are_an_access_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_single(tmp_path / "m")

    def denied(path: object, *_: object) -> int:
        raise PermissionError(errno.EACCES, "denied", str(path))

    # Not by chmod: the tests may run as root.
    monkeypatch.setattr(os, "open", denied)
    assert "may not be read: Permission denied" in refusal(folder, AccessError)
