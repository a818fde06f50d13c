"""Bad inputs 26 to 35, end to end: several files of weights, and files that are none."""

import json
from pathlib import Path

from bad_inputs import (
    NO_FILES,
    WEIGHTS,
    Case,
    Cases,
    Damage,
    Q,
    assert_refused,
    copy,
    cut,
    each,
    in_place_of,
    parts,
    remap,
    remove,
    replace_file,
    weights,
)
from broken import shard_name, with_header
from conftest import Call

FIRST, SECOND, THIRD = (shard_name(i, 3) for i in (1, 2, 3))
INDEX = "model.safetensors.index.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"


def refused(damage: Damage, *words: str) -> Case:
    """What a set of shards is refused for."""
    return Case(damage, 3, list(words))


def map_to(file: object) -> Damage:
    """Say in the index that a tensor is in that file."""
    return remap(lambda weight_map: weight_map.update({Q: file}))


def index(document: object) -> Damage:
    """Replace the index."""
    return replace_file(INDEX, json.dumps(document).encode())


def repeat_a_tensor(folder: Path) -> None:
    """Put a tensor of the first shard into the second one, too."""
    header, data = parts(folder / SECOND)
    size = 2 * 256 * 256
    header[Q] = {
        "dtype": "BF16",
        "shape": [256, 256],
        "data_offsets": [len(data), len(data) + size],
    }
    text = json.dumps(header).encode()
    (folder / SECOND).write_bytes(with_header(text, data + bytes(size)))


SHARDS: Cases = {
    (26, "missing shard"): refused(remove(SECOND), f"'{SECOND}' is missing"),
    (27, "listed tensor missing"): refused(
        remap(lambda m: m.update(ghost=SECOND)), SECOND, "lacks tensor 'ghost'", INDEX
    ),
    (28, "unlisted tensor"): refused(remap(lambda m: m.pop(Q)), Q, FIRST, INDEX),
    (29, "one tensor in two shards"): refused(repeat_a_tensor, Q, FIRST, SECOND),
    (30, "absolute shard"): refused(map_to("/etc/passwd"), Q, "'/etc/passwd'", INDEX),
    (30, "shard outside"): refused(map_to("../x.safetensors"), Q, "'../x.safetensors'", INDEX),
    (31, "map is a list"): refused(index({"weight_map": [FIRST]}), INDEX, "weight_map"),
    (31, "map to a number"): refused(map_to(2), Q, "into 2", INDEX),
    (31, "index is a list"): refused(index([]), INDEX, "not a JSON object"),
    (31, "index 100k deep"): refused(replace_file(INDEX, b"[" * 100_000), INDEX, "deep"),
    (32, "shard truncated"): refused(cut(5, SECOND), f"'{SECOND}' is 5 bytes short"),
    (33, "one shard of three"): refused(remove(INDEX, SECOND, THIRD), "1 of 3 shards", SECOND),
    (33, "two shards of three"): refused(remove(INDEX, SECOND), "2 of 3 shards", SECOND),
    (34, "LFS pointer"): refused(replace_file(SECOND, LFS), SECOND, "LFS", "git lfs pull"),
    **{
        (35, f"shard is a {kind}"): refused(in_place_of(SECOND, make), SECOND, "a ")
        for kind, make in NO_FILES.items()
    },
}
ALONE: Cases = {
    (34, "LFS pointer alone"): refused(weights(LFS), WEIGHTS, "LFS", "git lfs pull"),
    **{
        (35, f"{kind} alone"): refused(in_place_of(WEIGHTS, make), WEIGHTS, "a ")
        for kind, make in NO_FILES.items()
    },
}
CASES = SHARDS | ALONE


@each(SHARDS)
def test_shards(tmp_path: Path, call: Call, case: Case) -> None:
    assert_refused(call, copy(tmp_path / "source", "tied"), case)


@each(ALONE)
def test_a_single_file(tmp_path: Path, call: Call, case: Case) -> None:
    assert_refused(call, copy(tmp_path / "source"), case)
