"""Manifests: all problems at once, each with its place; what jobs a good one becomes."""

import os
from pathlib import Path

import pytest
from conftest import Call

from quantcli.batch.expand import BatchJob, expand
from quantcli.batch.manifest import ManifestError, read_manifest
from quantcli.errors import UsageError


def jobs(folder: Path, text: str, root: str = "shelf", upload: str | None = None) -> list[BatchJob]:
    folder.mkdir(exist_ok=True)
    path = folder / "zoo.toml"
    path.write_text(text)
    return expand(read_manifest(path), folder / root, upload)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        jobs(folder, text)
    assert all(line.startswith("zoo.toml: ") for line in caught.value.problems)
    return [line.removeprefix("zoo.toml: ") for line in caught.value.problems]


BAD = """
title = "my zoo"
[defaults]
types = ["Q4_K_M", "Q9_K"]
[[models]]
source = "org/a"
types = ["Q4_KM"]
methods = ["gpqt"]
gate = { max_kld = -1.0, min_top1 = 95, max_size = "large" }
[[models]]
revision = "main"
calibration_tokens = 3
[[models]]
source = "org/b"
evaluate = 3
lora = ["org/adapter:0"]
gate = { best = 1 }
"""


def test_every_problem_of_the_schema_at_once_with_its_place(tmp_path: Path) -> None:
    found = problems(tmp_path, BAD)
    for place, word in [
        ("title", "unknown key (known: defaults, models)"),
        ("[defaults], types[1]", "did you mean"),
        ("models[0] 'org/a', types[0]", "did you mean Q4_K_M?"),
        ("models[0] 'org/a', methods[0]", "available: rtn, gptq"),
        ("models[0] 'org/a', gate.max_kld", "greater than or equal to 0"),
        ("models[0] 'org/a', gate.min_top1", "less than or equal to 1"),
        ("models[0] 'org/a', gate.max_size", "write it like 16GB"),
        ("models[1], source", "is missing"),
        ("models[1], calibration_tokens", "512"),
        ("models[2] 'org/b', evaluate", "not 3"),
        ("models[2] 'org/b', lora[0]", "a scale other than 0"),
        ("models[2] 'org/b', gate.best", "known: max_kld, min_top1, max_size"),
    ]:
        assert any(line.startswith(f"{place}: ") and word in line for line in found), place


CROSSED = """
[defaults]
types = ["Q4_K_M", "Q8_0"]
[[models]]
source = "org/a"
types = ["Q5_KM"]
[[models]]
source = "org/same"
[[models]]
source = "other/same"
[[models]]
source = "org/up"
output = "../{model}-{type}.gguf"
[[models]]
source = "org/rooted"
output = "/tmp/{model}-{type}.gguf"
[[models]]
source = "org/one"
output = "one.gguf"
[[models]]
source = "org/words"
output = "{modl}-{type}.gguf"
[[models]]
source = "org/bin"
output = "{model}-{type}.bin"
[[models]]
source = "org/recipe"
recipes = ["none.toml"]
[[models]]
source = "org/imatrix"
imatrix = "none.dat"
[[models]]
source = "org/both"
target_bpw = 4.5
target_size = "3GB"
[[models]]
source = "org/gate"
evaluate = false
gate = { max_kld = 0.1 }
[[models]]
source = "./here"
revision = "main"
[[models]]
source = "org/streamed"
stream = true
methods = ["gptq"]
[[models]]
source = "./here"
stream = true
[[models]]
source = "org/adapted"
lora = ["./none"]
"""


def test_problems_between_settings_come_with_those_of_the_schema(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    found = problems(tmp_path, CROSSED)
    for index, word in [
        (0, "did you mean"),
        (2, "is also written by models[1] 'org/same'"),
        (3, "leaves the output folder"),
        (4, "leaves the output folder"),
        (5, "one file for several types"),
        (6, "{modl} has no value here (known: {org}, {model}, {method} {type})"),
        (7, "no name for a file ending in .gguf"),
        (8, "there is no file 'none.toml'"),
        (9, "there is no file 'none.dat'"),
        (10, "exclude each other"),
        (11, "leave `evaluate = false` out"),
        (12, "revision is for hub models"),
        (13, "leave out method gptq"),
        (14, "stream is for hub models"),
        (15, "lora: there is no folder './none'"),
    ]:
        assert any(line.startswith(f"models[{index}]") and word in line for line in found), index
    assert not any("--" in line for line in found), "keys, not flags"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"models = [", "not valid TOML"),
        (b"\xff", "not UTF-8"),
        (b"", "models: is missing"),
        (b"models = []", "models: "),
        (b"models = 3", "models: "),
        (b"models = [3]", "models[0]: "),
        (b"[" * 5000, "not valid TOML"),
    ],
)
def test_a_broken_manifest_is_refused(call: Call, content: bytes, word: str) -> None:
    (call.work.parent / "zoo.toml").write_bytes(content)
    assert call("batch", call.work.parent / "zoo.toml").failed_with(2, "zoo.toml", word)


def test_many_problems_are_a_line_each_and_nothing_starts(tmp_path: Path, call: Call) -> None:
    (tmp_path / "zoo.toml").write_text(CROSSED)
    done = call("batch", tmp_path / "zoo.toml", "-o", "shelf")
    assert (done.code, done.stdout, done.left) == (2, "", [])
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) >= 12


def test_a_missing_manifest(call: Call) -> None:
    assert call("batch", "none.toml").failed_with(2, "none.toml", "No such file")


GOOD = """
[defaults]
types = ["Q4_K_M", "q8_0"]
evaluate = true
[[models]]
source = "org/a"
methods = ["rtn", "awq+gptq"]
imatrix = "auto"
output = "{org}/{model}-{method}-{type}.gguf"
[[models]]
source = "./local"
name = "mine"
evaluate = false
target_bpw = 4.5
[[models]]
source = "org/b"
revision = "v1/x"
recipes = ["r.toml"]
output = "{model}-{revision}-{recipe}-{type}.gguf"
upload = "me/{model}-GGUF"
gate = { max_size = "1GB" }
"""


def good(folder: Path, **changes: str) -> list[BatchJob]:
    (folder / "local").mkdir(parents=True, exist_ok=True)
    if not (folder / "local" / "config.json").exists():  # its time is part of the keys
        (folder / "local" / "config.json").write_text("{}")
    (folder / "r.toml").write_text(changes.get("recipe", 'type = "Q5_K_S"\n'))
    return jobs(folder, GOOD, root=changes.get("root", "shelf"))


def test_a_good_manifest_becomes_jobs(tmp_path: Path) -> None:
    rounded, tuned, local, pinned = good(tmp_path)
    assert [job.name for job in (rounded, tuned, local, pinned)] == [
        "org/a rtn",
        "org/a awq+gptq",
        "./local rtn",
        "org/b@v1/x rtn r",
    ]
    assert rounded.outputs == ("org/a-rtn-Q4_K_M.gguf", "org/a-rtn-Q8_0.gguf")
    assert rounded.job.types == ("Q4_K_M", "Q8_0")
    assert rounded.job.output == tmp_path / "shelf" / "org/a-rtn-{type}.gguf"
    assert (rounded.job.calibrate, rounded.job.evaluate) == ("builtin", "builtin")
    assert tuned.job.imatrix is None
    assert rounded.lane == tuned.lane
    assert local.outputs == ("mine/mine-4.5bpw.gguf",)
    assert local.job.source == str(tmp_path / "local")
    assert local.job.evaluate is None
    assert pinned.outputs == ("b-v1-x-r-Q4_K_M.gguf", "b-v1-x-r-Q8_0.gguf")
    assert pinned.upload == "me/b-GGUF"
    assert pinned.job.gate.max_size == 10**9


def test_a_key_names_what_makes_the_bytes(tmp_path: Path) -> None:
    first = [job.key for job in good(tmp_path)]
    assert len(set(first)) == 4
    assert [job.key for job in good(tmp_path, root="elsewhere")] == first
    (tmp_path / "local" / "model.safetensors").write_bytes(b"other weights")
    changed = [job.key for job in good(tmp_path, recipe='type = "Q6_K"\npure = true\n')]
    assert [a == b for a, b in zip(first, changed, strict=True)] == [True, True, False, False]


def test_a_key_forgets_where_files_are(tmp_path: Path) -> None:
    text = '[[models]]\nsource = "org/a"\nevaluate = "text.txt"\n'
    keys = []
    for place, content in (("one", "a text"), ("other", "a text"), ("third", "another")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "text.txt").write_text(content)
        keys.append(jobs(tmp_path / place, text)[0].key)
    assert keys[0] == keys[1] != keys[2]


def test_a_recipe_names_its_own_type(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('type = "Q5_K_S"\n')
    (job,) = jobs(tmp_path, '[[models]]\nsource = "org/a"\nrecipes = ["r.toml"]\n')
    assert job.outputs == ("a/a-Q5_K_S.gguf",)


def test_one_model_twice_has_two_names(tmp_path: Path) -> None:
    text = '[[models]]\nsource = "org/a"\ntypes = ["{}"]\n'
    found = jobs(tmp_path, text.format("Q8_0") + text.format("Q4_0"))
    assert [job.name for job in found] == ["org/a rtn Q8_0", "org/a rtn Q4_0"]


def test_the_flag_decides_where_to_upload(tmp_path: Path) -> None:
    text = '[[models]]\nsource = "org/a"\nupload = "x/y"\n'
    assert jobs(tmp_path, text, upload="me/{model}")[0].upload == "me/a"
    with pytest.raises(UsageError, match="no value here"):
        jobs(tmp_path, text, upload="me/{typ}")


def test_adapters_are_found_beside_the_manifest_and_told_apart_by_what_is_in_them(
    tmp_path: Path,
) -> None:
    text = '[[models]]\nsource = "org/a"\nlora = ["./l:0.5", "org/l"]\n'
    keys = []
    for place, content in (("one", "{}"), ("other", "{}"), ("third", "{ }")):
        (tmp_path / place / "l").mkdir(parents=True)
        (tmp_path / place / "l" / "adapter_config.json").write_text(content)
        os.utime(tmp_path / place / "l" / "adapter_config.json", (1, 1))
        (job,) = jobs(tmp_path / place, text)
        assert [(a.source, a.scale) for a in job.job.lora] == [
            (str(tmp_path / place / "l"), 0.5),
            ("org/l", 1.0),
        ]
        keys.append(job.key)
    assert keys[0] == keys[1] != keys[2]
    assert jobs(tmp_path / "one", text.replace("0.5", "0.6"))[0].key != keys[0]
    assert jobs(tmp_path / "one", text + "stream = true\n")[0].key == keys[0]


def test_gguf_files_on_the_hub(tmp_path: Path) -> None:
    text = "".join(f'[[models]]\nsource = "org/a{choice}"\n' for choice in (":x-F16.gguf", ":F32"))
    named, typed = jobs(tmp_path, text + 'output = "{org}/{model}-{type}.gguf"\n')
    assert (named.job.source, named.outputs) == ("org/a:x-F16.gguf", ("x/x-Q4_K_M.gguf",))
    assert (typed.job.source, typed.outputs) == ("org/a:F32", ("org/a-Q4_K_M.gguf",))
    assert named.on_hub
