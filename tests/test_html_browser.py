"""HTML reports in a real browser: nothing fails to load, all is seen, in light and dark."""

import io
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from batch_samples import many, summary, zoo
from PIL import Image
from report_samples import TYPES, contrast, convert_demo, made_up, quality, with_quality

from quantcli.report import Report
from quantcli.report.as_html import evaluation_page, report_page
from quantcli.report.cards import Card
from quantcli.report.index_page import index_page
from quantcli.report.words import percent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A real conversion, with made-up quality."""
    return with_quality(convert_demo(tmp_path_factory.mktemp("converted")))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    """A Chromium for all tests that look."""
    if chromium.PROGRAM is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    with chromium.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


SEEN = """[...document.querySelectorAll("svg")].filter(s => s.checkVisibility()).map(s => {
  const b = s.parentNode.getBoundingClientRect(), a = s.getBoundingClientRect();
  return [a.x + scrollX, a.y + scrollY, Math.min(a.right, b.right) + scrollX, a.bottom + scrollY];
})"""
INKS = """[...document.querySelectorAll("h1, p, td, th, dt, dd, summary, .error")]
  .filter(e => e.checkVisibility() && !e.closest(".warnings"))
  .map(e => getComputedStyle(e).color)
  .concat([...document.querySelectorAll(".wide text, .narrow text")]
    .map(e => getComputedStyle(e).fill))"""
LABELS = """[...[...document.querySelectorAll(".wide, .narrow")].find(s => s.checkVisibility())
  .querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()])
  .map(([t, r]) => [t, r.left, r.top, r.right, r.bottom])"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_it_is_seen_in_a_browser(
    page: chromium.Page, evaluated: Report, tmp_path: Path, scheme: str, width: int
) -> None:
    file = tmp_path / "report.html"
    file.write_text(report_page(evaluated))
    page.requests.clear()
    page.open(file, width=width, scheme=scheme)
    assert page.run("document.documentElement.scrollWidth") <= width
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (contrast(paper, "#ffffff") < 1.2) == (scheme == "light")
    assert min(contrast(ink, paper) for ink in page.run(INKS)) >= 4.5
    picture = Image.open(io.BytesIO(page.picture())).convert("RGB")
    boxes = page.run(SEEN)
    assert len(boxes) == 1 + 2 * len(TYPES)
    for box in boxes:
        drawn = picture.crop(tuple(map(round, box)))
        assert drawn.width > 200
        assert drawn.height > 150
        colours = drawn.getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 20
        assert max(count for count, _ in colours) < 0.99 * drawn.width * drawn.height
    assert page.requests == [file.as_uri()]
    assert page.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_large_model_keeps_to_the_page(page: chromium.Page, tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(report_page(made_up(80, ("Q4_K_M",))))
    page.open(file, width=width, scheme="light")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelector('.map').getBoundingClientRect().width") > 900
    assert page.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_labels_of_the_plot_keep_apart(page: chromium.Page, tmp_path: Path, width: int) -> None:
    names = (
        "Q2_K",
        "Q3_K_S",
        "Q3_K_M",
        "Q4_0",
        "Q4_K_S",
        "Q4_K_M",
        "Q4_1",
        "Q5_0",
        "Q5_K_S",
        "Q5_K_M",
    )
    sizes = (30, 34, 38, 45, 45.4, 48, 50, 55, 55.3, 57)
    losses = (0.4, 0.25, 0.13, 0.08, 0.06, 0.045, 0.062, 0.03, 0.022, 0.018)
    cards = [
        Card(f"{name}.gguf", name, int(1e8 * size), 4.0, quality=quality(loss))
        for name, size, loss in zip(names, sizes, losses, strict=True)
    ]
    file = tmp_path / "report.html"
    file.write_text(evaluation_page("org/model", cards))
    page.open(file, width=width, scheme="light")
    labels = page.run(LABELS)
    assert {label[0] for label in labels} >= set(names)
    for i, (name, left, top, right, bottom) in enumerate(labels):
        assert left >= 0
        assert right <= width
        for other, x0, y0, x1, y1 in labels[:i]:
            apart = x0 >= right or x1 <= left or y0 >= bottom - 3 or y1 - 3 <= top
            assert apart, (name, other)


def test_tables_sort_and_maps_tell(page: chromium.Page, evaluated: Report, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report_page(evaluated))
    page.open(file, width=1280, scheme="light")
    page.run("document.querySelector('article details').open = true")
    column = (
        "[...document.querySelectorAll('.tensors')[0].tBodies[0].rows].map(r => r.cells[{}].{})"
    )
    sizes = column.format(3, "dataset.value * 1")
    press = "document.querySelectorAll('.tensors')[0].tHead.rows[0].cells[{}].firstChild.click()"
    assert page.run(column.format(0, "textContent")) == [
        tensor.name for tensor in evaluated.outputs[0].worst
    ]
    page.run(press.format(3))
    assert page.run(sizes) == sorted(page.run(sizes), reverse=True)
    page.run(press.format(3))
    assert page.run(sizes) == sorted(page.run(sizes))
    page.run(press.format(0))
    names = page.run(column.format(0, "textContent"))
    assert names[0] == "blk.0.attn_k.weight"
    assert page.run("document.querySelector('th[aria-sort]').ariaSort") == "ascending"
    left, top = page.run(
        "(() => { const s = document.querySelector('.map'); s.scrollIntoView();"
        "const b = s.getBoundingClientRect(); return [b.left, b.top]; })()"
    )
    page.point_at(left + 110, top + 30)
    worst = {tensor.name: tensor for tensor in evaluated.outputs[0].tensors}["blk.0.attn_q.weight"]
    told = f"blk.0.attn_q, {worst.type}, {percent(worst.cost.relative_error)}"
    assert page.run("[tip.textContent, tip.checkVisibility()]") == [told, True]
    assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_an_index_is_seen_in_a_browser(
    page: chromium.Page, tmp_path: Path, scheme: str, width: int
) -> None:
    for number, document in enumerate([zoo(), zoo((), measured=False), summary([])]):
        file = tmp_path / f"{number}.html"
        file.write_text(index_page(document))
        page.requests.clear()
        page.open(file, width=width, scheme=scheme)
        assert page.run("document.documentElement.scrollWidth") <= width
        paper = page.run("getComputedStyle(document.body).backgroundColor")
        assert (contrast(paper, "#ffffff") < 1.2) == (scheme == "light")
        assert min(contrast(ink, paper) for ink in page.run(INKS)) >= 4.5
        assert page.requests == [file.as_uri()]
        assert page.complaints == []


SHELF = """[...document.querySelectorAll(".shelf tbody")].filter(b => b.checkVisibility()).map(b =>
  [b.rows[0].cells[0].firstChild.textContent,
   [...b.rows].slice(1).filter(r => r.checkVisibility()).map(r => r.cells[1].textContent)])"""


def test_an_index_sorts_and_filters(page: chromium.Page, tmp_path: Path) -> None:
    document = zoo()
    document["jobs"][3]["outputs"][2]["ram_bytes"] = None  # comes last, whatever the direction
    file = tmp_path / "index.html"
    file.write_text(index_page(document))
    page.open(file, width=1280, scheme="light")
    done = [job for job in document["jobs"] if job["outputs"]]
    names = [job["name"] for job in done]
    press = "document.querySelectorAll('.shelf thead th')[{}].firstChild.click()"
    choose = (
        "(() => {{ const s = document.querySelector('.tools select'); s.value = '{}';"
        "s.dispatchEvent(new Event('change')); }})()"
    )
    write = (
        "(() => {{ const i = document.querySelector('.tools input'); i.value = '{}';"
        "i.dispatchEvent(new Event('input'));"
        "return new Promise(done => setTimeout(done, 50)); }})()"
    )

    def filtered(words: str) -> list[list[object]]:
        page.call("Runtime.evaluate", expression=write.format(words), awaitPromise=True)
        return page.run(SHELF)

    assert page.run(SHELF) == [[name, ["Q3_K_M", "Q4_K_M", "Q8_0"]] for name in names]
    page.run(press.format(2))  # by size, largest first
    largest = sorted(done, key=lambda job: -job["outputs"][2]["size_bytes"])
    assert page.run(SHELF) == [[job["name"], ["Q8_0", "Q4_K_M", "Q3_K_M"]] for job in largest]
    assert page.run("document.querySelector('.tools select').selectedIndex") == -1
    page.run(press.format(4))
    assert ["Qwen/Qwen2.5-0.5B-Instruct", ["Q4_K_M", "Q3_K_M", "Q8_0"]] in page.run(SHELF)
    page.run(press.format(4))
    assert ["Qwen/Qwen2.5-0.5B-Instruct", ["Q3_K_M", "Q4_K_M", "Q8_0"]] in page.run(SHELF)
    page.run(choose.format("seconds"))
    longest = sorted(done, key=lambda job: -job["seconds"])
    assert [name for name, _ in page.run(SHELF)] == [job["name"] for job in longest]
    assert page.run("document.querySelectorAll('.shelf [aria-sort]').length") == 0
    page.run(choose.format("name"))
    assert page.run(SHELF)[0][0] == "google/gemma-3-1b-it"
    page.run(choose.format(""))
    assert [name for name, _ in page.run(SHELF)] == names
    # Groups follow the first row that is seen: Q4_K_M alone, by its divergence.
    page.run(press.format(7))
    page.run(press.format(7))
    best = sorted(
        (job["outputs"][1]["quality"]["kld_mean"], job["name"])
        for job in done
        if job["name"].startswith("Qwen")
    )
    assert filtered("QWEN  q4_k_m") == [[name, ["Q4_K_M"]] for _, name in best]
    assert page.run("document.querySelector('output').textContent") == "5 of 30 files"
    assert filtered("no such model") == []
    assert len(filtered("")) == len(names)
    assert page.complaints == []


def test_an_index_of_many_models_lays_out_only_what_is_near(
    page: chromium.Page, tmp_path: Path
) -> None:
    file = tmp_path / "index.html"
    file.write_text(index_page(many(2000)))
    page.open(file, width=1280, scheme="light")
    far = "document.querySelector('.shelf tbody:last-of-type td')"
    skipped = f"!{far}.checkVisibility({{contentVisibilityAuto: true}})"
    assert page.run(skipped)
    page.run(f"{far}.scrollIntoView()")
    assert (
        page.run(f"{far}.getBoundingClientRect().top < innerHeight && {far}.textContent")
        == "Q3_K_M"
    )
    assert page.complaints == []
