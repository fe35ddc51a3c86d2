"""The page of results in a real browser: wide and narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from made_up_records import write_all
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from chromium import chromium, prefer, resize
from dspark.report.document import write_document
from dspark.report.reading import read
from dspark.report.results import results_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Opened from the disk; at the end it must have asked for nothing and complained of nothing."""
    folder = tmp_path_factory.mktemp("page")
    write_document(folder / "report.html", results_page(read(write_all(folder / "records"))))
    with chromium() as browser:
        browser.get((folder / "report.html").as_uri())
        yield browser
        assert browser.get_log("browser") == []
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_cut_off_folds_open_or_closed(page: Chrome, width: int, scheme: str) -> None:
    prefer(page, prefers_color_scheme=scheme)
    resize(page, width, 900)
    for folds in ("false", "true"):
        page.execute_script(f"document.querySelectorAll('details').forEach(each => each.open = {folds})")
        assert page.execute_script("return document.documentElement.scrollWidth") == width
        for selector in (".chart", "figcaption", ".lines", ".scroll", ".facts"):
            boxes = [each.rect for each in page.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()]
            assert boxes
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes), selector


def test_text_and_lines_stand_out_from_the_paper_in_both_themes(page: Chrome) -> None:
    luminance = """
        const light = text => {
          const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
          return .2126 * r + .7152 * g + .0722 * b;
        };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const contrast = each => {
          const [a, b] = [light(getComputedStyle(each).fill), paper].sort((x, y) => y - x);
          return (a + .05) / (b + .05);
        };
        return [...document.querySelectorAll('.chart text, .chart .mark:not(.few)')].map(contrast);
    """
    papers = set()
    for scheme in ("light", "dark"):
        prefer(page, prefers_color_scheme=scheme)
        contrasts = page.execute_script(luminance)
        assert len(contrasts) > 400 and min(contrasts) >= 4.5
        papers.add(page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"))
    assert len(papers) == 2


def test_letters_of_charts_can_be_read_on_a_phone(page: Chrome) -> None:
    resize(page, 360, 800)
    heights = page.execute_script(
        "return [...document.querySelectorAll('.chart text')].map(each => each.getBoundingClientRect().height)"
    )
    assert min(heights) > 8
