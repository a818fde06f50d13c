"""Models that embed from the hub, and with what old checkpoints carry along."""

from pathlib import Path

import numpy as np
import pytest
from gguf_contents import contents
from hub_client import Start, downloads
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from tiny_encoders import build_encoder

import quantcli
from quantcli.checkpoint import open_checkpoint
from quantcli.planning import Job

pytest_plugins = ["hub_fixtures"]


def test_a_hub_model_says_how_it_pools(
    hub: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_encoder(tmp_path / "tiny", "bert", "odd")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text("{}")
    server = hub({"org/tiny": folder})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    job = Job("org/tiny", types=("Q8_0",), output=tmp_path / "hub.gguf")
    quantcli.convert(job)
    assert sorted(downloads(server)).count("config.json") == 2  # its own and the pooling's
    streamed = Job("org/tiny", types=("Q8_0",), output=tmp_path / "stream.gguf", stream=True)
    quantcli.convert(streamed)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    quantcli.convert(Job("org/tiny", types=("Q8_0",), output=tmp_path / "offline.gguf"))
    found = contents(tmp_path / "hub.gguf")
    assert found["metadata"]["bert.pooling_type"][1] == 2
    for name in ("stream", "offline"):
        assert contents(tmp_path / f"{name}.gguf") == found


def test_numbers_of_positions_and_a_pooler_stay_out(tmp_path: Path) -> None:
    folder = build_encoder(tmp_path / "tiny", "bert", "mean")
    output = tmp_path / "one.gguf"
    quantcli.convert(Job(str(folder), types=("F32",), output=output))
    file = folder / "model.safetensors"
    checkpoint = open_checkpoint(str(folder))
    tensors = {name: checkpoint.float32(name) for name in checkpoint.tensors}
    save_file(tensors | {"embeddings.position_ids": np.arange(512)[None]}, file)
    assert "embeddings.position_ids" in load_file(file)
    quantcli.convert(Job(str(folder), types=("F32",), output=tmp_path / "two.gguf"))
    assert contents(tmp_path / "two.gguf") == contents(output)
