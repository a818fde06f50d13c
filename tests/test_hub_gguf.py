"""GGUF files straight from the hub: which one is meant, headers for plans, downloads, the cache."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import DEMO, Call
from gguf_contents import contents
from gguf_sources import metadata, tensors, write
from hub_client import Start
from hub_server import Fault, HubServer

import quantcli
from quantcli import gguf_source
from quantcli.checkpoint import gguf_choice
from quantcli.checkpoint.hub_gguf import choose
from quantcli.errors import BadInputError, UsageError

pytest_plugins = ["hub_fixtures"]

Tree = Callable[..., Path]
QUICK = ("-t", "Q4_K_M", "-o", "x.gguf")
FLAT = ["m-BF16.gguf", "m-Q4_K_M.gguf", "m.Q8_0.gguf", "README.md", "mmproj-m-F16.gguf"]
SPLIT = [f"BF16/m-BF16-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A repository of small GGUF files: name -> type of its matrices."""

    def make(**kinds: str) -> Path:
        for name, kind in kinds.items():
            path = tmp_path / "repo" / f"{name}.gguf"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, metadata(), tensors(kind))
        return tmp_path / "repo"

    return make


def weights(server: HubServer) -> list[str]:
    """Files asked for as a whole."""
    asked = [p for method, p, rng in server.requests if method == "GET" and not rng]
    return [path.rpartition("/")[2] for path in asked if path.endswith(".gguf")]


# -- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "choice", "chosen"),
    [
        (FLAT, None, ["m-BF16.gguf"]),
        (FLAT, "m-Q4_K_M.gguf", ["m-Q4_K_M.gguf"]),
        (FLAT, "m-Q4_K_M", ["m-Q4_K_M.gguf"]),
        (FLAT, "q8_0", ["m.Q8_0.gguf"]),
        (FLAT, "bf16", ["m-BF16.gguf"]),
        (["only.gguf"], None, ["only.gguf"]),
        ([*SPLIT, "m-Q8_0.gguf"], None, SPLIT),
        ([*SPLIT, "m-F16.gguf"], "BF16", SPLIT),
        (SPLIT[::-1], "BF16/m-BF16.gguf", SPLIT),
        (SPLIT, "m-BF16-00001-of-00003.gguf", SPLIT),
    ],
)
def test_what_is_meant(names: list[str], choice: str | None, chosen: list[str]) -> None:
    assert choose("org/name", names, choice) == chosen


@pytest.mark.parametrize(
    ("names", "choice", "words"),
    [
        (["m-F16.gguf", "m-BF16.gguf"], None, ["2 GGUF models", "m-F16.gguf", "org/name:NAME"]),
        (["a-Q4_0.gguf", "a-Q8_0.gguf"], None, ["none of whose names", "'a-Q8_0.gguf'"]),
        (FLAT, "F16", ["no GGUF model 'F16'", "m-BF16.gguf"]),
        ([f"m{i}-F16.gguf" for i in range(9)], "F16", ["9 GGUF models", "'F16'", "3 more"]),
        (["README.md", "mmproj-F16.gguf"], None, ["has no GGUF model"]),
        (["a/b/c.gguf", "../x.gguf", "\x1b.gguf"], None, ["has no GGUF model"]),
    ],
)
def test_what_is_not_clear(names: list[str], choice: str | None, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        choose("org/name", names, choice)
    assert str(error.value).isprintable()
    assert [word for word in words if word not in str(error.value)] == []


def test_parts_that_are_missing() -> None:
    with pytest.raises(BadInputError, match=r"2 of 3 parts of 'BF16/m-BF16.gguf'"):
        choose("org/name", SPLIT[1:], None)


@pytest.mark.parametrize("source", ["org/name", "name:x", "./org/name:F16", "org/name:", "a:b/c"])
def test_other_sources_choose_nothing(source: str) -> None:
    assert gguf_choice(source) is None


def test_a_file_here_comes_first(tree: Tree, call: Call) -> None:
    source = call.work / "org" / "name:m-F16.gguf"
    source.parent.mkdir()
    (tree(m="F16") / "m.gguf").rename(source)
    done = call("convert", "org/name:m-F16.gguf", "-t", "Q4_0", "-o", "x.gguf")
    assert done.code == 0, done.stderr


# -- the work -----------------------------------------------------------------------------------


def test_the_only_one_that_is_not_quantized_is_converted(
    hub: Start, call: Call, tree: Tree, tmp_path: Path
) -> None:
    source = tree(**{"BF16/m-BF16": "BF16", "m-Q8_0": "Q8_0"})
    server = hub({"org/name": source})
    done = call("convert", "org/name", *QUICK, "--json")
    assert done.code == 0, done.stderr
    assert weights(server) == ["m-BF16.gguf"]
    told = json.loads(done.stdout)["source"]
    commit = server.find("org/name", "main").commit  # type: ignore[union-attr]
    assert (told["id"], told["revision"]) == ("org/name", commit)
    quantcli.convert(
        quantcli.Job(str(source / "BF16/m-BF16.gguf"), ("Q4_K_M",), tmp_path / "y.gguf")
    )
    found, expected = contents(call.work / "x.gguf"), contents(tmp_path / "y.gguf")
    assert found["tensors"] == expected["tensors"]
    own = {"quantcli.source.repo": "org/name", "quantcli.source.commit": commit}
    assert found["metadata"] == expected["metadata"] | {k: ["STRING", v] for k, v in own.items()}
    again = call("convert", "org/name:BF16", "-t", "Q4_K_M", "-o", "z.gguf")
    assert again.code == 0, again.stderr
    assert weights(server) == ["m-BF16.gguf"]
    assert (call.work / "z.gguf").read_bytes() == (call.work / "x.gguf").read_bytes()


def test_a_plan_reads_headers_alone(
    hub: Start, call: Call, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_source, "HEADER_GUESS", 100)  # several requests for one header
    source = tree(**{"m-F16": "F16"})
    server = hub({"org/name": source})
    done = call("plan", "org/name", "--json")
    assert done.code == 0, done.stderr
    assert weights(server) == []
    told = json.loads(done.stdout)
    assert told["download_bytes"] == (source / "m-F16.gguf").stat().st_size
    local = json.loads(call("plan", source / "m-F16.gguf", "--json").stdout)
    bits = [[(kind["name"], kind["bpw"]) for kind in each["types"]] for each in (told, local)]
    assert bits[0] == bits[1]


def test_a_split_set_keeps_its_split(hub: Start, call: Call, tmp_path: Path) -> None:
    (tmp_path / "repo" / "F32").mkdir(parents=True)
    whole = tmp_path / "repo" / "F32" / "m-F32.gguf"
    quantcli.convert(quantcli.Job(str(DEMO), ("F32",), whole, split_max_bytes=6 << 20))
    parts = sorted(path.name for path in whole.parent.iterdir())
    assert len(parts) == 3
    server = hub({"org/name": tmp_path / "repo"})
    done = call("convert", "org/name", "--keep-split", "-t", "Q8_0", "-o", "x.gguf")
    assert done.code == 0, done.stderr
    assert len(done.left) == 3
    assert sorted(weights(server)) == parts


def test_sources_leave_the_cache(hub: Start, call: Call, tree: Tree, tmp_path: Path) -> None:
    hub({"org/name": tree(**{"F16/m-F16": "F16"})})
    done = call("convert", "org/name", *QUICK, "--delete-source")
    assert done.code == 0, done.stderr
    assert "warning" not in done.stderr
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.name for path in left if path.suffix == "" and path.stat().st_size > 99] == []


def test_offline_the_cache_is_the_hub(
    hub: Start, call: Call, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub({"org/name": tree(**{"m-F16": "F16", "F32/m-F32": "F32"})})
    assert call("convert", "org/name:F32", *QUICK).code == 0
    server.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for n, name in enumerate(("org/name", "org/name:m-F32.gguf")):
        done = call("convert", name, "-t", "Q4_K_M", "-o", f"y{n}.gguf")
        assert done.code == 0, done.stderr
        assert (call.work / f"y{n}.gguf").read_bytes() == (call.work / "x.gguf").read_bytes()
    assert server.requests == []
    assert call("convert", "org/name:m-F16.gguf", "-t", "Q8_0", "-o", "z.gguf").code == 2
    assert call("convert", "org/none:F16", "-t", "Q8_0", "-o", "z.gguf").code == 5


def test_it_calibrates_and_evaluates(hub: Start, call: Call, tmp_path: Path) -> None:
    whole = tmp_path / "repo" / "m-F32.gguf"
    whole.parent.mkdir()
    quantcli.convert(quantcli.Job(str(DEMO), ("F32",), whole))
    hub({"org/name": tmp_path / "repo"})
    tokens = ("--tokens", "1024", "--json")
    for source, name in (("org/name", "a.gguf"), (str(DEMO), "b.gguf"), ("org/name:F32", "c.gguf")):
        assert call("calibrate", source, *tokens, "-o", name).code == 0
    made = [(call.work / name).stat().st_size for name in ("a.gguf", "b.gguf", "c.gguf")]
    assert len(set(made)) == 1
    done = call("evaluate", "org/name:m-F32.gguf", "--chunks", "1", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["path"] == "org/name:m-F32.gguf"


# -- what is refused ------------------------------------------------------------------------------


def test_what_is_quantized_is_refused_before_the_download(
    hub: Start, call: Call, tree: Tree
) -> None:
    server = hub({"org/name": tree(**{"m-Q8_0": "Q8_0"})})
    assert call("convert", "org/name", *QUICK).failed_with(4, "Q8_0 already", "--allow-requantize")
    assert weights(server) == []
    done = call("convert", "org/name", *QUICK, "--allow-requantize")
    assert done.code == 0, done.stderr
    assert "quantized twice" in done.stderr


def test_flags_that_do_not_suit_it(hub: Start, call: Call, tree: Tree) -> None:
    server = hub({"org/name": tree(m="F16")})
    for flag in (("--stream",), ("--lora", "./x"), ("--pre-tokenizer", "llama-bpe")):
        assert call("convert", "org/name:m", *flag, *QUICK).failed_with(2, flag[0])
    assert call("convert", "org/name", "--stream", *QUICK).failed_with(2, "--stream")
    assert weights(server) == []


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault("m.gguf", corrupt=True), 8, ["damaged"]),
        (Fault("m.gguf", status=500), 6, ["HTTP 500"]),
        (Fault("m.gguf", status=403), 5, ["HTTP 403"]),
    ],
)
def test_faults_of_the_hub(
    hub: Start, call: Call, tree: Tree, fault: Fault, code: int, words: list[str]
) -> None:
    hub({"org/name": tree(m="F16")}, [fault])
    assert call("convert", "org/name", *QUICK).failed_with(code, *words)


def test_what_is_no_gguf_file(hub: Start, call: Call, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "m.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 64)
    hub({"org/name": tmp_path / "repo"})
    assert call("convert", "org/name", *QUICK).failed_with(3, "m.gguf", "tensors")
    assert call("convert", "org/none:F16", *QUICK).failed_with(5, "'org/none'")


def test_safetensors_come_first(hub: Start, call: Call, tree: Tree, tmp_path: Path) -> None:
    source = tree(**{"m-F16": "F16"})
    for path in DEMO.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    server = hub({"org/name": source})
    assert call("convert", "org/name", "-t", "Q8_0", "-o", "x.gguf").code == 0
    assert weights(server) == []
    assert call("convert", "org/name:F16", "-t", "Q8_0", "-o", "y.gguf").code == 0
    assert weights(server) == ["m-F16.gguf"]
