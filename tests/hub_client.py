"""Helpers of the tests that run the real client against a local hub."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer

from quantcli.checkpoint import open_checkpoint
from quantcli.errors import QuantcliError

WEIGHTS = "model.safetensors"
LISTING = "/api/models/org/name"
Start = Callable[..., HubServer]


def failure(kind: type[QuantcliError], repo: str = "org/name", **options: object) -> str:
    with pytest.raises(QuantcliError) as caught:
        open_checkpoint(repo, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message.isprintable()
    assert len(message) < 400
    return message


def environment(hub: HubServer, tmp_path: Path, **more: str) -> dict[str, str]:
    """What points the client of another process at the hub and at an empty cache."""
    home = str(tmp_path / "home")
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": home,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    } | more


def downloads(server: HubServer) -> list[str]:
    asked = [path for method, path, _ in server.requests if method == "GET"]
    return [path.rpartition("/")[2] for path in asked if "/resolve/" in path]


def cached_content(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("models--org--name/blobs/*"))
