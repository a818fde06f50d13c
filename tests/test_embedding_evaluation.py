"""Models that embed are compared by the cosine similarity of their embeddings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from tiny_encoders import build_encoder
from tiny_models import build

import quantcli
from quantcli.calibration import cut_windows, read_text
from quantcli.evaluation.similarity import cosines
from quantcli.model import open_model
from quantcli.report.words import cosine
from quantcli.transformer import Transformer

TEXT = Path(__file__).parent / "data" / "tokenizer" / "text.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and, beside it, its files."""
    folder = build_encoder(tmp_path_factory.mktemp("encoder") / "tiny", "bert", "mean")
    job = quantcli.Job(str(folder), types=("F32", "Q8_0", "Q4_0"), output=folder.parent)
    quantcli.convert(job)
    return folder


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, str]:
    return {path.stem.split("-")[-1]: str(path) for path in folder.parent.glob("*.gguf")}


def test_cosines_are_exact_near_one() -> None:
    a = np.array([[1, 0, 0], [3, 4, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    b = np.array([[2, 0, 0], [-3, -4, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]], np.float32)
    np.testing.assert_allclose(cosines(a, b), [1, -1, np.sqrt(0.5), 0, 0], atol=1e-15)
    turned = np.array([[1, 1e-6, 0]], np.float32)
    assert 1 - cosines(turned, a[:1])[0] == pytest.approx(5e-13, rel=1e-3)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "1"),
        (0.99917, "0.99917"),
        (0.5, "0.5000"),
        (-0.25, "-0.2500"),
        (1 - 3.14e-6, "0.9999969"),
    ],
)
def test_cosines_are_shown_by_their_distance_from_one(value: float, shown: str) -> None:
    assert cosine(value) == shown


def test_windows_begin_and_end_as_texts_do(folder: Path) -> None:
    metadata = open_model(str(folder)).metadata
    windows = cut_windows(read_text(str(TEXT)), metadata, 64)
    assert len(windows) > 4
    assert (windows[:, 0] == 2).all()  # [CLS]
    assert (windows[:, -1] == 3).all()  # [SEP]
    assert not np.isin(windows[:, 1:-1], (2, 3)).any()


def test_what_is_measured_is_the_embeddings_angle(folder: Path, files: dict[str, str]) -> None:
    text = read_text(str(TEXT))
    models = [files[name] for name in ("F32", "Q8_0", "Q4_0")]
    same, better, worse = quantcli.evaluate(models, str(folder), text, context=64)
    windows = cut_windows(text, open_model(str(folder)).metadata, 64)
    means = [
        Transformer(open_model(s)).hidden(windows).mean(axis=1) for s in (str(folder), models[2])
    ]
    units = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in means]
    expected = (units[0] * units[1]).sum(axis=1)
    assert worse.cosine_mean == pytest.approx(expected.mean(), abs=1e-6)
    assert worse.cosine_min == pytest.approx(expected.min(), abs=1e-6)
    assert worse.cosine_min < worse.cosine_mean < better.cosine_mean < 1
    assert (same.cosine_mean, same.cosine_min) == (1, 1)
    assert (worse.pooling, worse.embeddings, worse.chunks) == ("mean", len(windows), len(windows))


@pytest.mark.parametrize(
    ("family", "kind", "count"), [("bert", "cls", 1), ("nomic_bert", "none", 64)]
)
def test_each_file_is_pooled_as_it_says(tmp_path: Path, family: str, kind: str, count: int) -> None:
    folder = build_encoder(tmp_path / "tiny", family, "odd")
    job = quantcli.Job(str(folder), types=("Q4_0",), output=tmp_path, evaluate=str(TEXT))
    output = quantcli.convert(job).outputs[0]
    assert output.quality is None
    assert output.similarity is not None
    assert output.similarity.pooling == kind
    (again,) = quantcli.evaluate(
        output.paths, str(folder), read_text(str(TEXT)), context=64, chunks=3
    )
    assert (again.pooling, again.embeddings) == (kind, 3 * count)
    hidden = [
        Transformer(open_model(source)).hidden(
            cut_windows(read_text(str(TEXT)), open_model(source).metadata, 64, 192)
        )
        for source in (str(folder), output.paths[0])
    ]
    rows = [h[:, 0] if kind == "cls" else h.reshape(-1, h.shape[-1]) for h in hidden]
    assert again.cosine_min == cosines(rows[1], rows[0]).min()


# -- what people see -----------------------------------------------------------------------------


def test_the_command_says_it_in_every_format(
    call: Call, folder: Path, files: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["evaluate", files["Q8_0"], files["Q4_0"], "--reference", str(folder)]
    arguments += ["--text", str(TEXT), "--context", "64", "--quiet"]
    for ending in ("md", "html"):
        assert call(*arguments, "--report", str(tmp_path / f"r.{ending}")).code == 0
    done = call(*arguments, "--json")
    document = json.loads(done.stdout)
    fields = {"cosine_mean", "cosine_min", "pooling", "embeddings", "chunks"}
    for model in document["models"]:
        assert fields <= model.keys()
        assert not [key for key in model if key.startswith(("perplexity", "kld", "top1"))]
    shown = call(*[a for a in arguments if a != "--quiet"]).stdout
    page = (tmp_path / "r.html").read_text()
    table = (tmp_path / "r.md").read_text()
    mean = cosine(document["models"][1]["cosine_mean"])
    worst = cosine(document["models"][1]["cosine_min"])
    for text in (shown, table, page):
        assert mean in text
        assert worst in text
        assert "Cosine mean" in text
        assert "Cosine worst" in text
        for word in ("PPL", "KLD", "erplexity", "op-1"):
            assert word not in text
    assert "1 − mean cosine similarity" in page
    assert "each is the mean over a window's tokens" in " ".join(shown.split())


def test_conversions_report_it(call: Call, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    done = call(
        *("convert", str(folder), "--type", "Q8_0,Q4_0", "--evaluate", str(TEXT), "--json"),
        *("-o", str(tmp_path), "--report", str(page), "--card"),
    )
    assert done.code == 0
    for output in json.loads(done.stdout)["outputs"]:
        assert output["quality"] is None
        assert 0.9 < output["similarity"]["cosine_min"] <= output["similarity"]["cosine_mean"] < 1
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card
    assert "Cosine worst" in card
    assert "--embeddings" in card
    assert "ollama run" not in card
    for text in (card, page.read_text()):
        for word in ("PPL", "KLD", "erplexity", "op-1"):
            assert word not in text


# -- what has no meaning -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--max-kld", "0.1"], 2, "--max-kld is for models that predict tokens, but tiny embeds"),
        (["--min-top1", "0.9"], 2, "leave it out and read the cosine similarity"),
        (["--max-kld", "0.1", "--dry-run"], 2, "--max-kld"),
        (["--target-bpw", "5"], 4, "--target-bpw 5.0 is not there for models that embed texts"),
    ],
)
def test_gates_and_targets_are_refused(
    call: Call,
    folder: Path,
    files: dict[str, str],
    tmp_path: Path,
    flags: Any,
    code: int,
    said: str,
) -> None:
    for source in (str(folder), files["F32"]):
        named = said.replace("tiny embeds", Path(source).stem + " embeds")
        assert call("convert", source, *flags).failed_with(code, named)


def test_a_reference_of_the_same_kind_is_needed(
    call: Call, folder: Path, files: dict[str, str], tmp_path: Path
) -> None:
    text = ["--text", str(TEXT), "--context", "64"]
    done = call("evaluate", files["Q8_0"], *text)
    assert done.failed_with(2, "name that with --reference")
    llama = str(build(tmp_path / "llama", "llama", "odd"))
    for pair in ((files["Q8_0"], llama), (llama, files["Q8_0"])):
        arguments = ["evaluate", pair[0], "--reference", pair[1], *text]
        assert call(*arguments).failed_with(3, "embeds texts, ")
    other = str(build_encoder(tmp_path / "other", "bert", "odd"))
    arguments = ["evaluate", other, "--reference", str(folder), *text]
    assert call(*arguments).failed_with(3, "pools by cls, the reference")
    (tmp_path / "other" / "modules.json").write_text((folder / "modules.json").read_text())
    pooling = (folder / "1_Pooling" / "config.json").read_text()
    (tmp_path / "other" / "1_Pooling" / "config.json").write_text(pooling)
    assert call(*arguments).failed_with(3, "has an embedding length of 96, the reference")
