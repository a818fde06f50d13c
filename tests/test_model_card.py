"""The model card and Ollama's Modelfile: facts, plain words, and names that must do no harm."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Call
from markdown_it import MarkdownIt
from report_samples import TYPES, convert_demo, quality, with_quality

from quantcli.errors import BadInputError
from quantcli.gguf_file import read_split
from quantcli.report import Report
from quantcli.report.as_json import report_document
from quantcli.report.cards import Card, card_of_entry, card_of_output
from quantcli.report.model_card import Source, card_files, model_card, source_of_document
from quantcli.report.modelfile import modelfile
from quantcli.report.recommend import advice, recommended
from quantcli.report.words import code, inline, size

COMMIT = "c0ffee" * 6 + "beef"
SOURCE = Source("org/Model-8B", COMMIT, "Llama", 8_030_000_000)
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Model 8B",
    "general.license": "apache-2.0",
    "general.languages": ["en", "no"],
    "general.tags": ["chat", "text-generation"],
    "llama.context_length": np.uint32(131072),
    "tokenizer.chat_template": "{{ messages }}",
    "quantcli.version": "9.9",
}
HASH = "5e" * 32


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A real conversion of the small checkpoint, not evaluated."""
    return convert_demo(tmp_path_factory.mktemp("converted"))


def card(kind: str, bpw: float, loss: float | None = None, **more: Any) -> Card:
    """A card of an 8B model in a type."""
    nbytes = int(bpw * 1e9)
    measured = None if loss is None else quality(loss)
    path = f"/home/me/Model-8B-{kind}.gguf"
    return Card(
        path, kind, nbytes, bpw, nbytes + 10**9, HASH, measured, **({"method": "rtn"} | more)
    )


Q3, Q4, Q8 = card("Q3_K_M", 3.9, 0.05), card("Q4_K_M", 4.85, 0.01), card("Q8_0", 8.5, 0.001)
CARDS = [Q3, Q4, Q8]


def front(text: str) -> dict[str, Any]:
    """The front matter as YAML."""
    opening, content, rest = text.split("---\n", 2)
    assert opening == ""
    assert rest.startswith("\n# ")
    return yaml.safe_load(content)


def rows(text: str, start: str = "| File") -> list[list[str]]:
    """The cells of the table that begins so, headings first."""
    lines = text[text.index(start) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_front_matter_is_what_the_hub_files_a_model_by() -> None:
    assert front(model_card(SOURCE, CARDS, METADATA)) == {
        "base_model": "org/Model-8B",
        "base_model_relation": "quantized",
        "language": ["en", "no"],
        "library_name": "gguf",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "llama.cpp", "quantized", "chat", "text-generation"],
    }


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({"general.license": "other", "general.license.name": "own",
          "general.license.link": "LICENSE"},
         ["other", "own", f"https://huggingface.co/org/Model-8B/blob/{COMMIT}/LICENSE"]),
        ({"general.license": "other", "general.license.link": "https://a.b/c"},
         ["other", None, "https://a.b/c"]),
        ({"general.license": "My License (v1)"}, ["other", "My License (v1)", None]),
        ({"general.license": "other", "general.license.link": "javascript:alert(1)"},
         ["other", None, None]),
        ({"general.license": "other", "general.license.link": "../../x"}, ["other", None, None]),
        ({"general.license": 3}, [None, None, None]),
    ],
)  # fmt: skip
def test_licenses(metadata: dict[str, Any], found: list[str | None]) -> None:
    given = front(model_card(SOURCE, CARDS, METADATA | metadata))
    assert [given.get(key) for key in ("license", "license_name", "license_link")] == found


def test_a_folder_is_no_base_model() -> None:
    text = model_card(Source("my model", None, "Llama", 10**9), CARDS, METADATA)
    assert not {"base_model", "base_model_relation"} & set(front(text))
    assert "huggingface.co" not in text
    assert "GGUF files of `my model`" in text


def test_the_table_has_the_columns_of_model_cards(converted: Report) -> None:
    report = with_quality(converted)
    headings, _, *found = rows(card_files(report)["README.md"])
    assert headings == ["File", "Type", "Size", "bpw", "PPL", "ΔPPL", "KLD mean", "KLD 99.9 %",
                        "Same top-1", "RAM at 8k", "sha256", "Notes"]  # fmt: skip
    assert [row[1] for row in found] == list(TYPES)
    for row, output in zip(found, report.outputs, strict=True):
        q = output.quality
        assert row[0] == f"`{Path(output.paths[0]).name}`"
        assert row[2:4] == [size(output.size_bytes), f"{output.bpw:.2f}"]
        assert row[4] == f"{q.perplexity:#.5g} ±0.91"
        assert row[5] == f"{100 * (q.perplexity_ratio - 1):+.2f} %"
        assert float(row[6]) == pytest.approx(q.kld_mean, rel=0.1)
        assert row[8] == f"{100 * q.top1_agreement:.1f} %"
        assert row[9] == size(output.ram_bytes)
        assert row[10] == f"`{output.sha256[0]}`"


def test_without_quality_nothing_is_said_of_it(converted: Report) -> None:
    text = card_files(converted)["README.md"]
    assert rows(text)[0] == ["File", "Type", "Size", "bpw", "RAM at 8k", "sha256", "Notes"]
    assert "The quality of these files was not measured." in text
    assert not re.search("PPL|KLD|top-1|most likely token", text)


def test_the_measurement_is_told() -> None:
    text = section(model_card(SOURCE, CARDS, METADATA), "How it was measured")
    assert f"40 windows of 512 tokens of a text of sha256 `{HASH}`" in text
    assert "whose perplexity is 61.2" in text
    alone = replace(Q4.quality, reference_perplexity=None, kld_mean=None)  # type: ignore[type-var]
    assert "KLD" not in section(
        model_card(SOURCE, [replace(Q4, quality=alone)], METADATA), "How it was measured"
    )


def test_the_card_is_the_same_from_a_report_and_later_from_its_document(
    converted: Report,
) -> None:
    report = with_quality(converted)
    document = json.loads(json.dumps(report_document(report)))
    cards = [card_of_entry(entry) for entry in document["outputs"]]
    assert [replace(c, bpw=None) for c in cards] == [
        replace(card_of_output(output), bpw=None) for output in report.outputs
    ]
    best = recommended(cards)
    metadata = read_split(Path(best.path)).metadata
    assert card_files(report) == {
        "README.md": model_card(source_of_document(document), cards, metadata),
        "Modelfile": modelfile(best, metadata),
    }


@pytest.mark.parametrize("entry", [{}, {"path": "x"}, {"quality": {"odd": 1}}])
def test_what_is_no_report(entry: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="not an output of a quantcli report"):
        card_of_entry(entry)
    with pytest.raises(BadInputError, match="not a quantcli report"):
        source_of_document(entry)


def test_no_path_and_no_time(converted: Report) -> None:
    for text in card_files(replace(converted, seconds=1234.5)).values():
        assert str(Path(converted.outputs[0].paths[0]).parent) not in text
        assert "1234" not in text
        assert card_files(converted) == card_files(replace(converted, seconds=1234.5))


@pytest.mark.parametrize(
    ("cards", "best"),
    [
        (CARDS, Q4),
        ([Q3, Q8], Q3),
        ([card("Q2_K", 3.0), card("Q5_K_M", 5.7), Q8], card("Q5_K_M", 5.7)),
        ([card("IQ4_XS", 4.3), card("Q5_K_S", 5.5)], card("IQ4_XS", 4.3)),
        ([Q8], Q8),
        ([Q4, card("Q4_K_M", 4.85, 0.004, method="gptq")],
         card("Q4_K_M", 4.85, 0.004, method="gptq")),
    ],
)  # fmt: skip
def test_the_recommended_file(cards: list[Card], best: Card) -> None:
    assert recommended(cards) == best
    assert recommended(cards[::-1]) == best
    assert f"./{Path(best.path).name}\n" in modelfile(recommended(cards), METADATA)


def test_advice_names_every_file_once() -> None:
    worse = card("Q4_1", 5.1, 0.02)
    said = advice([*CARDS, worse])
    assert [line.split(":")[0] for line in said[:3]] == [
        "- **For most people**", "- **With less memory**", "- **Closer to the original**"
    ]  # fmt: skip
    assert said[0] == (
        "- **For most people**: `Model-8B-Q4_K_M.gguf`: good default; needs 5.8 GB of memory; its "
        "most likely token is the original's 99.0 % of the time."
    )
    assert said[3:] == [
        "- **Not worth it**: `Model-8B-Q4_1.gguf`; `Model-8B-Q4_K_M.gguf` is no larger and closer "
        "to the original."
    ]
    assert len(advice([Q8])) == 1


def test_methods_have_a_column_only_where_they_differ() -> None:
    better = card("Q4_K_M", 4.85, 0.004, method="gptq")
    text = model_card(SOURCE, [Q4, better], METADATA)
    assert [row[2] for row in rows(text)] == ["Method", "---", "rtn", "gptq"]
    assert "- Method `rtn`: round" in text
    assert "- Method `gptq`: choose" in text
    assert "Method" not in rows(model_card(SOURCE, CARDS, METADATA))[0]


def test_how_it_was_made() -> None:
    imatrix = {"quantize.imatrix.file": "i.gguf", "quantize.imatrix.dataset": "/x/calibration.txt"}
    said = section(model_card(SOURCE, CARDS, METADATA | imatrix), "How it was made")
    assert "By quantcli 9.9 from [org/Model-8B](https://huggingface.co/org/Model-8B)" in said
    assert f"[`{COMMIT}`](https://huggingface.co/org/Model-8B/tree/{COMMIT})" in said
    assert "matrix `i.gguf`, made from `calibration.txt`." in said
    assert "that of the original: apache-2.0." in said


def test_how_to_run_it_from_here_and_from_the_hub() -> None:
    here = section(model_card(SOURCE, CARDS, METADATA), "How to run it")
    assert "llama-server -m Model-8B-Q4_K_M.gguf -c 8192\n" in here
    assert "ollama create model-8b-q4_k_m -f Modelfile\n" in here
    assert "lms import Model-8B-Q4_K_M.gguf\n" in here
    there = section(model_card(SOURCE, CARDS, METADATA, repo_id="me/M-GGUF"), "How to run it")
    assert "--hf-repo me/M-GGUF --hf-file Model-8B-Q4_K_M.gguf -c 8192\n" in there
    assert "ollama run hf.co/me/M-GGUF:Model-8B-Q4_K_M.gguf\n" in there
    assert "without a chat template" not in there
    silent = {k: v for k, v in METADATA.items() if k != "tokenizer.chat_template"}
    assert "without a chat template" in model_card(SOURCE, CARDS, silent)


def test_files_in_several_parts() -> None:
    parts = tuple((f"/x/M-0000{i}-of-00002.gguf", f"{i}{HASH[1:]}") for i in (1, 2))
    split = replace(Q4, path=parts[0][0], shards=parts)
    text = model_card(SOURCE, [split], METADATA, repo_id="me/M-GGUF")
    assert rows(text, "| Part")[2:] == [[code(Path(p).name), code(digest)] for p, digest in parts]
    assert "ollama create" in text
    froms = [line for line in modelfile(split, METADATA).splitlines() if line.startswith("FROM")]
    assert froms == ["FROM ./M-00001-of-00002.gguf", "FROM ./M-00002-of-00002.gguf"]


# --- names ----------------------------------------------------------------------------------------

HOSTILE = (
    'a](http://evil.example/x) <img src=x onerror=alert(1)> | ``b` **c** {{ 7919*7907 }}'
    ' www.evil.example "\'\n---\n# h\n```\n[x]: http://evil.example\n\x1b[31m\u202e @me:b &lt; https://evil.example\\'
)  # fmt: skip


def spoken(text: str) -> tuple[set[str], str, list[str]]:
    """What a reader gets of Markdown: kinds of tokens, text outside of code, and links."""
    kinds, words, links = set(), [], []
    for block in MarkdownIt("commonmark").enable("table").parse(text.split("\n---\n", 1)[1]):
        for token in (block, *(block.children or ())):
            kinds.add(token.type)
            words += [token.content] if token.type == "text" else []
            links += [str(token.attrs["href"])] if token.type == "link_open" else []
    return kinds, "\n".join(words), links


@pytest.mark.parametrize("names", [HOSTILE, HOSTILE[::-1], "www.evil.example", "`", " ", "|", "\\"])
def test_names_cannot_break_out(names: str) -> None:
    hostile = METADATA | {
        "general.name": names,
        "general.license": names,
        "general.license.link": names,
        "general.languages": [names, "en", "e\nn"],
        "general.tags": [names, "fine"],
        "quantize.imatrix.file": names,
        "quantize.imatrix.dataset": names,
        "quantcli.version": names,
    }
    cards = [replace(c, path=f"/x/{names.replace('/', '')}{c.file_type}.gguf") for c in CARDS]
    text = model_card(Source(names, names, "Llama", 1), cards, hostile)
    assert all(c.isprintable() or c == "\n" for c in text)
    kinds, words, links = spoken(text)
    assert {kind for kind in kinds if "html" in kind or "image" in kind} == set()
    assert links == []
    assert not re.search(r"evil|onerror|<|62615533", words)
    assert {"strong_open", "table_open", "fence"} <= kinds
    assert front(text)["language"] == ["en"]
    assert "fine" in front(text)["tags"]
    assert re.fullmatch("[a-z.]*", front(text).get("license", ""))
    headings = re.findall(r"^#+ .*", text, re.MULTILINE)
    assert len(headings) == 5
    table = rows(text)
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line[:1] == "|"]
    assert set(bars) == {len(table[0]) + 1}


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Model-8B v1.2_x", "Model-8B v1.2_x"), ("Größe", "Größe"), ("_x_", "`_x_`"), ("a*b", "`a*b`"),
     ("a`b", "``a`b``"), ("`", "`` ` ``"), ("www.x.y", "`www.x.y`"), ("a www.x", "`a www.x`")],
)  # fmt: skip
def test_harmless_names_stay_as_they_are(text: str, shown: str) -> None:
    assert inline(text) == shown


# --- Modelfile ------------------------------------------------------------------------------------


def test_the_modelfile_of_a_real_conversion(converted: Report) -> None:
    made = card_files(converted)["Modelfile"]
    assert [line for line in made.splitlines() if line[0] != "#"] == [
        "FROM ./Demo-4.2M-Q4_K_M.gguf",
        "PARAMETER num_ctx 2048",
        "PARAMETER temperature 0.8",
        "PARAMETER top_p 0.95",
    ]
    assert "TEMPLATE" not in re.sub("#.*", "", made)


def test_parameters_that_ollama_knows() -> None:
    sampling = {"temp": np.float32(0.6), "top_k": np.int32(20), "top_p": float("nan")}
    sampling |= {"min_p": "0", "penalty_repeat": 1.05, "penalty_last_n": 64}
    sampling |= {"mirostat": 2, "xtc_probability": 0.1}
    given = {f"general.sampling.{key}": value for key, value in sampling.items()}
    assert modelfile(Q4, METADATA | given).split("gguf\n")[-1].splitlines() == [
        "PARAMETER num_ctx 8192",
        "PARAMETER temperature 0.6",
        "PARAMETER top_k 20",
        "PARAMETER repeat_penalty 1.05",
        "PARAMETER repeat_last_n 64",
    ]


# --- convert --card -------------------------------------------------------------------------------


def test_convert_writes_both_beside_the_outputs(call: Call, demo: Path) -> None:
    (call.work / "out").mkdir()
    done = call("convert", demo, "-t", "Q8_0,Q4_0", "-o", "out", "--card", "--json", "--quiet")
    assert done.code == 0, done.stderr
    written = sorted(path.name for path in (call.work / "out").iterdir())
    assert written == ["Demo-4.2M-Q4_0.gguf", "Demo-4.2M-Q8_0.gguf", "Modelfile", "README.md"]
    text = (call.work / "out/README.md").read_text()
    outputs = json.loads(done.stdout)["outputs"]
    assert [row[-2] for row in rows(text)[2:]] == [f"`{output['sha256']}`" for output in outputs]
    assert [row[-3] for row in rows(text)[2:]] == [size(output["ram_bytes"]) for output in outputs]
    assert "FROM ./Demo-4.2M-Q4_0.gguf\n" in (call.work / "out/Modelfile").read_text()


@pytest.mark.parametrize("name", ["README.md", "Modelfile"])
def test_neither_is_overwritten(name: str, call: Call, demo: Path) -> None:
    (call.work / name).write_text("mine")
    done = call("convert", demo, "-t", "Q8_0", "-o", "x.gguf", "--card")
    assert (done.code, done.left) == (9, [name])
    assert f"{name}: the output exists" in done.stderr
    assert (call.work / name).read_text() == "mine"
    assert call("convert", demo, "-t", "Q8_0", "-o", "x.gguf", "--card", "--force").code == 0
    assert (call.work / name).read_text() != "mine"


def test_the_card_of_the_source_is_never_overwritten(call: Call, demo: Path) -> None:
    (call.work / "model").mkdir()
    for file in demo.iterdir():
        (call.work / "model" / file.name).symlink_to(file)
    (call.work / "model/README.md").write_text("theirs")
    done = call("convert", "model", "-o", "model", "--card", "--force")
    assert done.code == 2
    assert "the output is the input" in done.stderr
    assert (call.work / "model/README.md").read_text() == "theirs"


def test_the_report_cannot_be_the_card(call: Call, demo: Path) -> None:
    done = call("convert", demo, "--card", "--report", "README.md")
    assert done.failed_with(2, "is where --card writes")
