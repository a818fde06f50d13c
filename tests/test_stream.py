"""--stream: a hub model's weights are read once, verified as a whole, and stored nowhere."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from big_models import build_big
from broken import shard_name
from conftest import Call, Called, Cli, assert_one_line_error
from hub_client import Start, environment
from hub_server import Fault, HubServer
from sharded import cut_demo
from tiny_adapters import build_adapter, safetensors
from tiny_models import build

from quantcli import encoding
from quantcli.checkpoint import AdapterRef
from quantcli.gguf_file import read_header, read_tensor
from quantcli.planning import Job, make_plan
from quantcli.planning.memory import stream_memory

pytest_plugins = ["hub_fixtures"]

TYPES = ("-t", "Q4_K_M,F16", "-o", "x-{type}.gguf")


def digests(call: Call) -> dict[str, str]:
    """The outputs by name."""
    files = sorted(call.work.glob("*.gguf"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def converted(call: Call, *arguments: str | Path) -> dict[str, str]:
    done = call("convert", *arguments, *TYPES)
    assert done.code == 0, done.stderr
    found = digests(call)
    for name in found:
        (call.work / name).unlink()
    return found


def cached(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*.safetensors")]


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        *(("llama", "gqa"), ("llama", "tied"), ("qwen2", "odd"), ("gemma3", "multimodal")),
        *(("llama", "odd"), ("gpt_neox", "odd"), ("gpt2", "tied"), ("falcon", "grouped")),
    ],
)
def test_the_same_bytes_as_from_a_download(
    hub: Start, call: Call, tmp_path: Path, family: str, variant: str
) -> None:
    source = build(tmp_path / "source", family, variant)
    server = hub({"org/name": source})
    streamed = converted(call, "org/name", "--stream")
    assert cached(tmp_path) == []
    weights = [rng for _, path, rng in server.requests if path.endswith(".safetensors")]
    assert all(weights)
    assert converted(call, "org/name") == streamed
    assert cached(tmp_path) != []


def test_in_worker_processes_and_in_shards(
    hub: Start, call: Call, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors in an order that is not the output's, on several processes, into several files."""
    source = cut_demo(tmp_path / "source", demo, 3)
    hub({"org/name": source})
    split = ("--split-max-size", "1M")
    expected = converted(call, "org/name", *split)
    monkeypatch.setattr(encoding, "WORTH_PROCESSES", 1)
    assert len(expected) > 4
    assert converted(call, "org/name", "--stream", "-j", "2", *split) == expected


def test_with_an_adapter(hub: Start, call: Call, tmp_path: Path) -> None:
    source = build(tmp_path / "source", "llama", "gqa")
    lora = build_adapter(tmp_path / "lora", "llama")
    hub({"org/name": source})
    merged = converted(call, "org/name", "--stream", "--lora", lora)
    assert converted(call, "org/name", "--lora", lora) == merged
    assert converted(call, "org/name", "--stream") != merged


def test_broken_connections_go_on_where_they_were(
    hub: Start, call: Call, tmp_path: Path, waits: list[float]
) -> None:
    source = build(tmp_path / "source", "llama", "gqa")
    faults = [
        Fault("resolve", cut=400_000, times=3),
        Fault("resolve", status=503, headers={"Retry-After": "7"}, times=1),
        Fault("resolve", cut=200_001, times=2),
        Fault("resolve", status=429, times=1),
    ]
    server = hub({"org/name": source})
    size = (source / "model.safetensors").stat().st_size
    assert converted(call, "org/name", "--dry-run") == {}
    server.requests.clear()
    server.faults.extend(faults)
    streamed = converted(call, "org/name", "--stream")
    starts = [
        int(rng.removeprefix("bytes=").partition("-")[0])
        for method, path, rng in server.requests
        if method == "GET" and path.endswith(".safetensors")
    ]
    assert starts == sorted(starts)
    assert len(set(starts)) >= 4
    assert max(starts) < size
    assert 7 <= max(waits) < 300
    server.faults.clear()
    assert converted(call, source) != {}
    assert converted(call, "org/name") == streamed


SHARD = shard_name(2, 3)
FAULTS: dict[str, tuple[Fault, int, list[str]]] = {
    "corrupt": (Fault(SHARD, corrupt=True), 8, [SHARD, "damaged on its way", "no output"]),
    "always cut": (Fault(SHARD, cut=0), 6, ["broke off"]),
    "always 500": (Fault(SHARD, status=500), 6, ["HTTP 500"]),
    "short": (Fault(SHARD, short=100), 6, ["org/name"]),
    "another revision": (Fault(SHARD, status=412), 5, ["HTTP 412"]),
    "gone": (Fault(SHARD, status=404, headers={"X-Error-Code": "EntryNotFound"}), 5, ["404"]),
    "hours to wait": (Fault(SHARD, status=429, headers={"Retry-After": "9999"}), 6, ["9999 s"]),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=list(FAULTS))
def test_failures_are_one_line_and_leave_nothing(
    hub: Start, call: Call, tmp_path: Path, case: tuple[Fault, int, list[str]]
) -> None:
    """The fault begins with the weights: the headers, read for the plan, are whole."""
    fault, code, words = case
    source = build(tmp_path / "source", "llama", "tied")
    server = hub({"org/name": source})
    begin_faults_at_the_weights(server, fault)
    done = call("convert", "org/name", "--stream", *TYPES)
    failed(done, code, *words)
    assert cached(tmp_path) == []


def failed(done: Called, code: int, *words: str) -> None:
    assert done.failed_with(code, *words)


def begin_faults_at_the_weights(server: HubServer, fault: Fault) -> None:
    plain: Callable[[str, str], Fault | None] = server.fault

    def late(method: str, path: str) -> Fault | None:
        asked = [name for _, name, _ in server.requests if SHARD in name]
        return None if len(asked) == 1 else plain(method, path)

    server.fault = late  # type: ignore[method-assign]
    server.faults.append(fault)


def test_a_damaged_header_is_not_the_planned_one(hub: Start, call: Call, tmp_path: Path) -> None:
    """A file replaced between planning and reading has another hash."""
    source = build(tmp_path / "source", "llama", "gqa")
    server = hub({"org/name": source})
    plain: Callable[[str, str], Fault | None] = server.fault
    asked = []

    def late(method: str, path: str) -> Fault | None:
        asked.extend([path] if path.endswith("model.safetensors") else [])
        if len(asked) == 2:
            revision = server.find("org/name", "main")
            entry = revision.files["model.safetensors"]
            content = entry.content.replace(b'"BF16"', b'"F16" ')
            revision.files["model.safetensors"] = type(entry)(content, entry.lfs)
        return plain(method, path)

    server.fault = late  # type: ignore[method-assign]
    done = call("convert", "org/name", "--stream", *TYPES)
    assert done.failed_with(8, "changed while it was read")


@pytest.mark.parametrize("same", [True, False])
def test_heads_that_should_be_the_embedding(
    hub: Start, call: Call, tmp_path: Path, same: bool
) -> None:
    source = build(tmp_path / "source", "llama", "gqa")
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    if same:
        tie(source / "model.safetensors")
    hub({"org/name": source})
    done = call("convert", "org/name", "--stream", *TYPES)
    if same:
        assert done.code == 0, done.stderr
    else:
        assert done.failed_with(3, "lm_head.weight", "tie_word_embeddings")


def tie(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    (a, b), (c, d) = (
        header[f"{name}.weight"]["data_offsets"] for name in ("model.embed_tokens", "lm_head")
    )
    data[start + c : start + d] = data[start + a : start + b]
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "gptq"], ["--method gptq"]),
        (["--imatrix", "auto"], ["--imatrix auto"]),
        (["--evaluate", "builtin"], ["--evaluate"]),
        (["--target-bpw", "4.5"], ["target"]),
        (["--delete-source"], ["--delete-source", "nothing to delete"]),
    ],
)
def test_what_reads_weights_again_is_refused(
    call: Call, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    assert call("convert", "org/name", "--stream", *arguments).failed_with(2, *words)


def test_only_for_the_hub(call: Call, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("convert", demo, "--stream").failed_with(2, "local folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert call("convert", "org/name", "--stream").failed_with(5, "HF_HUB_OFFLINE")


def test_as_a_command(cli: Cli, tmp_path: Path, demo: Path) -> None:
    """A slow hub; the disk gets side files and the output only."""
    fault = Fault("model.safetensors", delay=0.01)
    with HubServer({"org/demo": demo}, [fault]) as hub:
        places = environment(hub, tmp_path)
        done = cli("convert", "org/demo", "--stream", "-o", "x.gguf", "--json", **places)
        assert done.returncode == 0, done.stderr
        hub.faults[:] = [Fault("model.safetensors", corrupt=True)]
        again = cli("convert", "org/demo", "--stream", "-o", "y.gguf", **places)
    assert_one_line_error(again, 8)
    cache = sum(path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file())
    sides = sum(path.stat().st_size for path in demo.iterdir() if path.suffix != ".safetensors")
    assert cache < 2 * sides
    assert [path.name for path in cli.work.iterdir()] == ["x.gguf"]  # type: ignore[attr-defined]
    local = cli("convert", demo, "-o", "z.gguf")
    assert local.returncode == 0


@pytest.mark.slow
def test_memory_and_disk_are_bounded(cli: Cli, tmp_path: Path) -> None:
    """A fifth of a gigabyte with an adapter, on four processes, in the memory that was planned."""
    source = build_big(tmp_path / "big", 0.2)
    lora = build_adapter(tmp_path / "lora", "llama")
    path = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    a, b = np.ones((32, 8192), np.float32), np.ones((2048, 32), np.float32)
    weights = safetensors({path.format("A"): a, path.format("B"): b})
    (lora / "adapter_model.safetensors").write_bytes(weights)
    refs = (AdapterRef(str(lora)),)
    made = make_plan(Job(str(source), ("Q4_K_M",), tmp_path, threads=4, lora=refs))
    command = ("convert", "org/big", "--stream", "--lora", lora, "-j", "4", "--json")
    with HubServer({"org/big": source}) as hub:
        done = cli(*command, "-o", "x.gguf", **environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    planned = made.peak_memory_bytes + stream_memory(4, made.weights)
    assert json.loads(done.stdout)["peak_memory_bytes"] < planned < 600 << 20
    cache = [path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sum(cache) < 10 << 20
    local = ("convert", source, "--lora", lora, "-j", "1", "-o", "y.gguf")
    assert cli(*local).returncode == 0
    x, y = (
        read_header(cli.work / name)  # type: ignore[attr-defined]
        for name in ("x.gguf", "y.gguf")
    )
    for name, entry in x.tensors.items():
        np.testing.assert_array_equal(read_tensor(entry), read_tensor(y.tensors[name]))
