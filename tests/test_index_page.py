"""The index of a batch: what it shows, that it loads and betrays nothing, that it stays small."""

import copy
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from batch_samples import MODELS, TYPES, many, summary, zoo
from html_document import HOSTILE, Document

from quantcli.report.index_page import FAILURES, MOST_FAILURES, index_page, link, without_folders
from quantcli.report.loss_by_type import Measured, loss_by_type
from quantcli.report.words import duration


def text(page: str) -> str:
    """What is read, tags taken out."""
    body = page[page.index("<body>") :].partition("<script>")[0]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def test_it_opens_with_what_there_is_and_what_failed() -> None:
    page = index_page(zoo())
    document = Document(page)
    assert document.text["h1"] == ["10 models in 30 files, 136.9 GB"]
    words = text(page)
    assert words.index("2 of 12 jobs failed") < words.index("Failed exit 5") < words.index("Models")
    assert "exit 5 missing, gated or not authorised" in words
    assert "exit 6 network Worth a retry" in words
    assert "3 attempts 'model-00002-of-00004.safetensors': connection reset" in words
    assert "zoo.toml" in document.text["title"][0]
    assert "Shard" not in words
    assert "Shard 2/4" in text(index_page(zoo() | {"shard": "2/4"}))


def test_each_file_has_its_row() -> None:
    summary = zoo()
    page = index_page(summary)
    document = Document(page)
    for job in summary["jobs"]:
        for output in job["outputs"]:
            start = page.index(f'href="{output["path"]}"')
            row = text("<body>" + page[start - 30 : page.index("</tr>", start)])
            q = output["quality"]
            for shown in (output["file_type"], f"{output['bpw']:.2f}", output["sha256"]):
                assert f" {shown} " in row
            assert f"{q['perplexity']:#.5g} ± 0.91" in row
            assert f"{100 * (q['perplexity_ratio'] - 1):+.2f} %" in row
            assert f"{100 * q['top1_agreement']:.1f} %" in row
    links = document.all("a", "href")
    assert links.count("reports/Qwen3-8B.html") == 1
    assert links.count("https://huggingface.co/zoo/Qwen3-32B-GGUF") == 1
    assert document.tags.count("tbody") == 1 + 10  # the overview's and one for each model
    assert "and 4 more, in the report" in page


def test_jobs_are_shown_once_whatever_became_of_them() -> None:
    document = zoo(())
    fates = [("skipped", None), ("failed", 8), ("failed", None), ("failed", 99)]
    for job, (status, code) in zip(document["jobs"], fates, strict=False):
        job |= {"status": status, "exit_code": code}
        if code != 8:
            job["outputs"] = []
    words = text(index_page(summary(document["jobs"])))
    assert "Skipped 1" in words
    assert "exit 8 integrity or quality gate" in words
    assert "no exit code no answer" in words
    assert "exit 99 a bug of quantcli" in words
    assert "meta-llama/Llama-3.2-3B-Instruct failed: exit 8 gptq" in words  # its files are there
    for name, _, _ in MODELS:
        assert len(re.findall(f" {re.escape(name)} ", words)) == 1 + (name == MODELS[1][0])
    assert "still to run" not in words


@pytest.mark.parametrize("code", [3, 4, 5, 6, 7, 8, 9, 130, 143])
def test_exit_codes_are_told_in_plain_words(code: int) -> None:
    document = zoo((8,))
    document["jobs"][8]["exit_code"] = code
    assert f"exit {code} {FAILURES[code][0]} {FAILURES[code][1]}" in text(index_page(document))


def test_many_failures_of_one_kind_are_folded() -> None:
    page = index_page(many(700))
    failures = page[page.index('class="failures"') : page.index("</section>")]
    shown, folded = failures.split("<details>", 1)
    assert shown.count("<li>") == MOST_FAILURES
    assert failures.count("<li>") == 14
    assert f"{14 - MOST_FAILURES} more</summary>" in folded


def test_without_quality_there_is_neither_column_nor_overview() -> None:
    page = index_page(zoo((), measured=False))
    document = Document(page)
    assert "svg" not in document.tags
    assert "PPL" not in text(page)
    assert "No job failed" in page


def test_an_empty_batch_has_a_page() -> None:
    page = index_page(summary([]))
    Document(page)
    assert "No files yet" in page
    assert "The manifest has no jobs." in page


def test_the_page_is_whole_and_asks_for_nothing() -> None:
    page = index_page(zoo())
    document = Document(page)
    assert len(document.all("svg", "aria-label")) == len(TYPES)
    identities = [value for _, name, value in document.attributes if name == "id"]
    assert len(identities) == len(set(identities))
    assert [name for _, name, _ in document.attributes if name in ("src", "xlink:href")] == []
    assert document.all("link", "href") == ["data:,"]
    assert {tag for tag, name, _ in document.attributes if name == "href"} == {"link", "a"}
    outside = [address for address in document.all("a", "href") if ":" in address]
    assert all(address.startswith("https://huggingface.co/zoo/") for address in outside)
    assert "url(" not in page
    assert "@import" not in page
    assert page.count("http") == len(outside) + 1  # http-equiv


def test_the_same_summary_is_the_same_page_and_stays_as_it_was() -> None:
    document = zoo()
    before = copy.deepcopy(document)
    assert index_page(document) == index_page(copy.deepcopy(document))
    assert document == before
    assert "/srv/zoo" not in index_page(document | {"manifest": "/srv/zoo/zoo.toml"})


def test_names_cannot_break_out() -> None:
    harmless = Document(index_page(zoo()))

    def spoilt(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: spoilt(v) if key not in ("status", "activations") else v
                for key, v in value.items()
            }
        if isinstance(value, list):
            return [spoilt(item) for item in value]
        return value + HOSTILE if isinstance(value, str) else value

    page = index_page(spoilt(zoo()))
    assert all(c.isprintable() or c == "\n" for c in page)
    document = Document(page)
    assert "img" not in document.tags
    for tag in ("script", "svg", "table", "tr", "td", "li", "b"):
        assert document.tags.count(tag) == harmless.tags.count(tag)
    assert [name for _, name, _ in document.attributes if name.startswith("on")] == []
    assert set(document.all("a", "href")) == {"#failures"}  # nothing else leads anywhere safe


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("a/b-Q4_0.gguf", "a/b-Q4_0.gguf"),
        ("a b/ü#?%.gguf", "a%20b/%C3%BC%23%3F%25.gguf"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("https://evil/x", None),
        ("//evil/x", None),
        ("/etc/passwd", None),
        ("../x.gguf", None),
        ("a/../../x.gguf", None),
        ("a\\b.gguf", None),
        ("a\udc80.gguf", None),
        ("", None),
    ],
)
def test_links_stay_beside_the_page(path: str, address: str | None) -> None:
    assert link(path) == address


@pytest.mark.parametrize(
    ("published", "linked"),
    [
        ("https://huggingface.co/org/x-GGUF", True),
        ("http://hub.internal/org/x", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("https://a\u202eb", False),
    ],
)
def test_only_addresses_of_the_web_are_linked(published: str, linked: bool) -> None:
    document = zoo(())
    document["jobs"][0]["published"] = published
    found = Document(index_page(document)).all("a", "href")
    assert (published in found) == linked


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("'/home/me/zoo/x.gguf': disk full", "'x.gguf': disk full"),
        ("'/home/me/my zoo/x.gguf': disk full", "'x.gguf': disk full"),
        ("/home/me/x.gguf: needs 3 GB", "x.gguf: needs 3 GB"),
        ("~/zoo/x.gguf: gone", "x.gguf: gone"),
        ("'C:\\zoo\\x.gguf': gone", "'x.gguf': gone"),
        ("org/name: gated, see https://huggingface.co/org/name", None),
        ("out/x.gguf exists; 3 MB/s, and/or 1 / 2", None),
    ],
)
def test_folders_of_the_machine_are_left_out(line: str, shown: str | None) -> None:
    assert without_folders(line) == (line if shown is None else shown)


def test_the_overview_orders_types_by_size_and_tells_their_spread() -> None:
    files = [
        Measured(name, "gptq", bpw, loss * factor, 0.9)
        for name, bpw, loss in (*TYPES[::-1], ("F16", 16.0, 1e-9))
        for factor in (0.5, 1.0, 1.5, 4.0)
    ]
    found = loss_by_type(files)
    assert found is not None
    assert [row.file_type for row in found.rows] == [name for name, _, _ in TYPES]
    assert [row.loss for row in found.rows] == [pytest.approx(1.25 * loss) for *_, loss in TYPES]
    assert found.lossless == ["F16"]
    for row in found.rows:
        places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)%"', row.strip)]
        assert places == sorted(places)
        assert 0 < min(places) < max(places) < 100
    assert re.findall(">([^<>]+)</text>", found.axis) == ["0.001", "0.01", "0.1"]


def test_an_overview_that_would_say_nothing_is_not_drawn() -> None:
    one = [Measured("Q4_0", "rtn", 4.5, loss, None) for loss in (0.1, 0.2, 0.3)]
    assert loss_by_type([]) is None
    assert loss_by_type(one) is None
    assert loss_by_type([*one[:1], Measured("Q8_0", "rtn", 8.5, 0.01, None)]) is None
    assert loss_by_type([*one, Measured("Q8_0", "rtn", 8.5, float("nan"), None)]) is None
    assert loss_by_type([*one, Measured("Q8_0", "rtn", 8.5, 0.0, None)]) is None
    assert loss_by_type([*one, Measured("Q8_0", "rtn", 8.5, 0.01, None)]) is not None


def test_methods_are_compared_where_there_are_several() -> None:
    document = zoo(())
    for job in document["jobs"][::2]:
        job["method"] = "rtn"
    page = index_page(document)
    assert page[: page.index('id="shelf"')].count('<th scope="row">') == 2 * len(TYPES)
    assert ">Method</th>" in page
    assert ">Method</th>" not in index_page(zoo(()))


def test_two_thousand_jobs_stay_small() -> None:
    page = index_page(many(2000))
    Document(page)
    assert len(page.encode()) < 4_000_000
    assert page.count("<tbody data-") == 1960
    assert page.count("<circle") <= len(TYPES)  # no dots, only medians


def test_it_needs_no_matplotlib() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "sys.modules['matplotlib'] = None\n"
        "from batch_samples import zoo\nfrom quantcli.report.index_page import index_page\n"
        "assert '<svg' in index_page(zoo())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (8.33, "8.3 s"), (9.97, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"),
     (723.2, "12 min 3 s"), (3599.7, "1 h 0 min"), (19_200, "5 h 20 min"), (86_390, "1 d 0 h"),
     (1_000_000, "11 d 14 h")],
)  # fmt: skip
def test_time_is_told_in_two_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
