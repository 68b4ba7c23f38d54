"""The page in a real browser, Chromium; skipped where there is none."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bayes_bench import report
from synthetic import METHODS, make_job, task_spec, write_job, write_plan, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tried with Playwright")
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as start:
        # Containers without user namespaces have no sandbox; the pages are ours.
        opened = start.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browsed")
    write_run(folder, networks=20, examples=150, ood={"ood/letters": 60})
    return report.write(folder)


class Opened:
    """A page, what its console said and what it asked for."""

    def __init__(self, browser: playwright.Browser, path: Path, **options: object) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def rows(self, table: int = 0) -> list[str]:
        """First cells of the visible rows of a table of results."""
        found = self.page.locator("table.results").nth(table).locator("tbody tr:visible th .key")
        return [text[1:] for text in found.all_inner_texts()]


@pytest.fixture
def opened(browser: playwright.Browser, path: Path) -> Iterator[Opened]:
    found = Opened(browser, path, viewport={"width": 1280, "height": 900})
    yield found
    assert found.said == []
    assert [url for url in found.requests if not url.startswith("data:")] == [path.as_uri()]
    found.context.close()


def test_nothing_is_wrong_and_nothing_is_asked_for(opened: Opened) -> None:
    assert "digits" in opened.page.title()
    assert len(opened.requests) >= 1


def test_tables_are_sorted_both_ways_and_back(opened: Opened) -> None:
    page, first = opened.page, opened.rows()
    header = page.locator("table.results").first.locator("th", has_text="NLL")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    cells = page.locator("table.results").first.locator("tbody tr td:nth-child(7) b").all_inner_texts()
    assert [float(text) for text in cells] == sorted(map(float, cells))
    ascending = opened.rows()
    header.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert opened.rows() == ascending[::-1]
    page.keyboard.press("Enter")
    assert opened.rows() == first
    assert header.get_attribute("aria-sort") is None


def test_methods_are_sorted_by_their_names(opened: Opened) -> None:
    opened.page.locator("table.results").first.get_by_role("button", name="Method").click()
    assert opened.rows() == sorted(METHODS)


def test_the_keyboard_stops_only_at_tables_that_scroll(opened: Opened) -> None:
    page, region = opened.page, opened.page.locator(".scroll:has(table.results)").first
    region.scroll_into_view_if_needed()
    for width, scrolls in ((1600, False), (360, True)):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("([e, on]) => (e.tabIndex === 0) === on", arg=[region.element_handle(), scrolls])
        assert region.evaluate("e => e.scrollWidth > e.clientWidth") is scrolls


def test_values_are_rounded_to_what_a_drawing_shows(opened: Opened) -> None:
    drawing = opened.page.locator("figure", has_text="Quality against cost").first.locator("svg[data-reading]").first
    drawing.scroll_into_view_if_needed()
    mark = drawing.locator("use").last.bounding_box()
    opened.page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    assert opened.page.locator("#reading-off p").inner_text().endswith(("400,000", "320,000"))


def test_what_has_no_number_is_sorted_last(opened: Opened) -> None:
    header = opened.page.locator("table.results").first.locator("thead tr:last-child th").nth(3)
    assert header.inner_text().startswith("10")
    for _ in range(2):
        header.get_by_role("button").click()
        assert set(opened.rows()[-2:]) == {"ensemble", "map"}  # five networks, and one


def test_methods_are_hidden_everywhere_and_shown_again(opened: Opened) -> None:
    page = opened.page
    lines = page.locator('svg[data-reading="lines"] g[data-method="1"]')
    assert lines.first.is_visible()
    page.locator("#methods").get_by_role("button", name="mcdropout").click()
    assert "mcdropout" not in opened.rows()
    assert not any(line.is_visible() for line in lines.all())
    assert page.locator(".panel .name:visible", has_text="mcdropout").count() == 0
    assert page.locator(".legend .key:visible", has_text="mcdropout").count() == 0
    page.get_by_role("button", name="Show all").click()
    assert "mcdropout" in opened.rows()
    assert lines.first.is_visible()


def test_rows_are_filtered(opened: Opened) -> None:
    page = opened.page
    figure = page.locator("figure", has_text="During training").first
    figure.locator("summary").click()
    rows = figure.locator("tbody tr:visible")
    before = rows.count()
    figure.get_by_label("Rows with").fill("NLL hypergan")
    assert 0 < rows.count() < before
    assert all("hypergan" in text and "NLL" in text for text in rows.all_inner_texts())


def test_values_are_read_off_lines(opened: Opened) -> None:
    """Against the table behind the figure."""
    page = opened.page
    figure = page.locator("figure", has_text="Accuracy against number of networks").first
    numbers = {}
    for row in figure.locator("tbody tr").all():
        method, networks, accuracy = [cell.text_content() for cell in row.locator("td").all()[:3]]
        numbers[method, networks] = float(accuracy)
    drawing = figure.locator("svg[data-reading]")
    drawing.scroll_into_view_if_needed()
    first, last, low, high, scale = drawing.evaluate("svg => JSON.parse(svg.dataset.x)")
    assert scale == "log"
    box, width = drawing.bounding_box(), float(drawing.get_attribute("viewBox").split()[2])
    place = first + (last - first) * np.log(20 / low) / np.log(high / low)
    page.mouse.move(box["x"] + box["width"] * place / width + 1, box["y"] + box["height"] / 2)
    shown = page.locator("#reading-off")
    assert shown.locator("p").inner_text() == "networks 20"
    read = dict(row.inner_text().split("\t") for row in shown.locator("tr").all())
    assert {name[1:] for name in read} == {"hypergan", "mcdropout"}  # the others have fewer networks
    for name, value in read.items():
        assert float(value) == pytest.approx(numbers[name[1:], "20"], abs=0.02)
    page.mouse.move(5, 5)
    assert not shown.is_visible()


def test_values_are_read_off_points(opened: Opened) -> None:
    page = opened.page
    drawing = page.locator('svg[data-reading="points"][data-names]').first
    drawing.scroll_into_view_if_needed()
    mark = drawing.locator("use").first.bounding_box()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    assert page.locator("#reading-off p").inner_text() == "conv1"
    assert page.locator("#reading-off tr").count() == 1


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(browser: playwright.Browser, path: Path, width: int, scheme: str) -> None:
    found = Opened(browser, path, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    paper = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", paper)[:3])) > 600 if scheme == "light" else 150
    found.context.close()


def test_it_is_all_there_without_script(browser: playwright.Browser, path: Path) -> None:
    found = Opened(browser, path, java_script_enabled=False)
    assert found.rows() == list(METHODS)
    assert not found.page.locator("#methods").is_visible()
    found.context.close()


def test_a_smuggled_script_does_not_run(browser: playwright.Browser, path: Path, tmp_path: Path) -> None:
    """Even if an escape were forgotten somewhere."""
    html = path.read_text(encoding="utf-8").replace("<main>", "<main><script>document.title = 'taken'</script>")
    changed = tmp_path / "changed.html"
    changed.write_text(html.replace("<h1>", "<h1 onclick=\"document.title = 'taken'\">"), encoding="utf-8")
    found = Opened(browser, changed)
    found.page.locator("h1").click()
    assert "digits" in found.page.title()
    assert any("Content Security Policy" in text for text in found.said)
    found.context.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_large_page_is_small_and_opens_soon(browser: playwright.Browser, tmp_path: Path) -> None:
    """20 methods × 10 tasks × 10 seeds: below 15 MB, open within 2 s."""
    records = []
    rng = np.random.default_rng(0)
    for task in range(10):
        spec = task_spec("classification") | {"name": f"task-{task}"}
        for i in range(20):
            method = list(METHODS.values())[i % len(METHODS)]
            method = replace(method, label=f"method-{i}", signal=method.signal * rng.uniform(0.9, 1.3))
            for seed in range(10):
                record, predictions = make_job(method, seed, spec=spec, networks=20, examples=200)
                write_job(tmp_path, record, predictions)
                records.append(record)
    write_plan(tmp_path, records)
    made = report.write(tmp_path)
    assert made.stat().st_size < 15e6
    times = []
    for _ in range(3):
        start = time.perf_counter()
        found = Opened(browser, made, viewport={"width": 1280, "height": 900})
        found.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        times.append(time.perf_counter() - start)
        assert found.said == []
        found.context.close()
    print(f"{made.stat().st_size / 1e6:.1f} MB, open in {sorted(times)[1]:.2f} s", file=sys.stderr)
    assert sorted(times)[1] < 2
