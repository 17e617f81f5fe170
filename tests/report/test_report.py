"""The page of a run: what it says, what a browser shows of it, and what it never does."""

import json
import os
import re
import shutil
import struct
import time
from pathlib import Path
from random import Random

import pytest

from exam.report import charts
from exam.report.charts import write_png
from exam.report.page import Page, write_page

BROWSER = (
    os.environ.get("EXAM_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
)
HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"}]</template>"
ROWS = [
    {"system": "random order (expected)", "n": 4, "map_at_3": 0.367, "ci": [0.367, 0.367]},
    {"system": HOSTILE, "n": 4, "map_at_3": 0.75, "ci": [0.5, 1.0]},
]
RESULTS = {
    "rows": ROWS,
    "paired": [{"a": HOSTILE, "b": "b", "n": 4, "difference": 0.1, "ci": [-0.1, 0.3]}],
    "seconds": {"index/one": 1.5, f"train/{HOSTILE}": 2.25},
    "peak_mib": {"index/one": 1234, f"train/{HOSTILE}": 10},
    "reused": ["index/one"],
}


def question(number, chances, label, support=1.0, **more):
    own = {
        "id": str(number),
        "prompt": f"Where does animal {number} live?",
        "options": ["in the river", "on a cliff", "under the log"],
        "chances": chances,
        "first": chances.index(max(chances)),
        "label": label,
        "support": support,
        "passages": [{"rank": 1, "title": "Animal", "text": "It lives in the river, I think."}],
    }
    return {**own, **more}


QUESTIONS = [
    question(1, [0.9, 0.05, 0.05], 0),
    question(2, [0.4, 0.35, 0.25], 1, support=0.2),
    question(3, [0.2, 0.75, 0.05], 0, prompt=f"Is {HOSTILE} shown?", options=[HOSTILE, "b", "c"])
    | {"passages": [{"rank": 1, "title": HOSTILE, "text": f"{HOSTILE} b"}]},
    question(4, [0.3, 0.3, 0.4], None, support=None, passages=[]),
]
CHARTS = [
    charts.score_chart(ROWS),
    charts.calibration_chart(
        [{"n": 3, "probability": 0.5, "accuracy": {"value": 0.4, "ci": [0.1, 0.8]}}], 0.1
    ),
    charts.line_chart(
        HOSTILE,
        HOSTILE,
        "passages",
        "recall",
        {HOSTILE: [{"at": k, "value": 0.5, "ci": [0.4, 0.6]} for k in (1, 3, 10)]},
        log=True,
    ),
    charts.learning_chart(
        [{"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_map_at_3": 0.5}], 3
    ),
    charts.bar_by_group(
        "By letter", "", "letter", [{"group": HOSTILE, "n": 3, "value": 0.5, "ci": [0.2, 0.8]}]
    ),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    page = Page(HOSTILE, [("reader", HOSTILE)], RESULTS, CHARTS, QUESTIONS, ["the"])
    write_page(path, page)
    return path


def test_the_figures_stand_in_the_page_without_any_script(written):
    text = written.read_text()
    assert "<strong>0.750</strong> MAP@3" in text
    assert "0.500 – 1.000" in text
    assert '<strong>+0.100</strong> [-0.100, +0.300] <span class="muted">within noise' in text
    assert re.search(r"index/one</td><td class=\"number\">1.5</td><td class=\"number\">1,234", text)
    assert text.count("reused</td>") == 1
    assert "window.hacked=1</script>" not in text


def test_only_the_pages_own_scripts_may_run(written):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', written.read_text())
    assert "default-src &#39;none&#39;" in policy
    assert policy.count("sha256-") == 2
    assert "unsafe-inline" not in policy.partition("style-src")[0]


def test_the_learning_curves_scores_have_the_whole_range():
    one = charts.learning_chart([{"step": 2, "loss": 1.0}, {"step": 2, "eval_map_at_3": 0.5}], 3)
    (axis,) = re.findall(r'"domain": \[[^]]*\]', json.dumps(one))
    assert axis == '"domain": [0, 1]'


def test_charts_are_drawn_side_by_side_without_a_display(tmp_path):
    lines = {name: [{"at": k, "value": 0.5, "ci": [0.4, 0.6]} for k in (1, 3)] for name in "ab"}
    bins = [{"n": 3, "probability": 0.5, "accuracy": {"value": 0.4, "ci": [0.1, 0.8]}}]
    found = {name: {"reliability": bins, "ece": 0.1} for name in (HOSTILE, "b")}
    over = charts.line_chart("Recall", "", "passages", "recall", lines, log=True)
    sizes = []
    for number, made in enumerate(([over], [over, charts.compare_calibration(found)], CHARTS[:1])):
        path = tmp_path / f"{number}.png"
        write_png(made, path)
        drawn = path.read_bytes()
        assert drawn.startswith(b"\x89PNG")
        sizes.append(struct.unpack(">2I", drawn[16:24]))
    one, two, rows = sizes
    assert 2 * one[0] <= two[0] < 2.2 * one[0]
    assert min(*one, *rows) > 600
    assert len(list(tmp_path.iterdir())) == 3


def test_a_page_without_charts_carries_no_charting_library(tmp_path):
    write_page(tmp_path / "small.html", Page("small", [], {}, [], QUESTIONS))
    assert (tmp_path / "small.html").stat().st_size < 40_000


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        path = BROWSER or started.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no browser is installed: make browser, or its path in EXAM_BROWSER")
        found = started.chromium.launch(executable_path=path, args=arguments)
        yield found
        found.close()


class Shown:
    """A page in the browser, with what it said and asked for meanwhile."""

    def __init__(self, browser, path, width=1200, scheme="light"):
        self.said, self.asked = [], []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        start = time.perf_counter()
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=true]", timeout=60_000)
        self.seconds = time.perf_counter() - start

    def prompts(self):
        return self.page.locator("#list .prompt").all_inner_texts()


@pytest.mark.slow
def test_nothing_hostile_runs_and_nothing_is_fetched(browser, written):
    shown = Shown(browser, written)
    for summary in shown.page.locator("summary").all():
        summary.click()
    for option in shown.page.locator(".option").all():
        option.click()
    assert shown.page.evaluate("window.hacked") is None
    assert shown.said == []
    assert shown.asked == [written.as_uri()]
    assert shown.page.locator("figure svg").count() == len(CHARTS)
    assert HOSTILE in shown.page.locator("#list").inner_text()


@pytest.mark.slow
def test_filters_search_and_order_change_what_is_shown(browser, written):
    shown = Shown(browser, written)
    page = shown.page
    first, second, third, fourth = (q["prompt"] for q in QUESTIONS)
    assert shown.prompts() == [first, second, third, fourth]
    for name, expected in {
        "right": [first],
        "wrong": [second, third],
        "sure": [first],
        "unsure": [second, third, fourth],
        "missing": [second, fourth],
    }.items():
        page.click(f"[data-show={name}]")
        assert shown.prompts() == expected
        assert page.get_attribute(f"[data-show={name}]", "aria-pressed") == "true"
    page.click("[data-show=all]")
    page.select_option("#sort", "truth")
    assert shown.prompts() == [third, second, first, fourth]
    page.fill("#search", "animal 2")
    page.wait_for_function("document.querySelectorAll('#list li').length === 1")
    assert shown.prompts() == [second]
    assert page.inner_text("#count") == "1 of 4 questions"
    page.fill("#search", "no such words")
    page.wait_for_function("document.querySelectorAll('#list li').length === 0")


@pytest.mark.slow
def test_a_question_shows_chances_truth_and_marked_words(browser, written):
    shown = Shown(browser, written)
    page = shown.page
    page.focus("#list summary")
    page.keyboard.press("Enter")
    options = page.locator("#list li").first.locator(".option")
    assert options.first.inner_text().split()[-2:] == ["90.0", "%"]
    assert page.locator("mark").all_inner_texts() == ["in", "river"]
    options.nth(2).click()
    assert page.locator("mark").all_inner_texts() == []
    last = page.locator("#list li").last
    last.locator("summary").click()
    assert last.locator(".passages").inner_text() == "No passages were read."


@pytest.mark.slow
def test_five_thousand_questions_open_at_once(browser, tmp_path):
    random = Random(0)
    words = [f"word{number}" for number in range(4000)]

    def text(length):
        return " ".join(random.choices(words, k=length))

    questions = [
        question(n, [0.5, 0.3, 0.2], n % 3, prompt=text(20), options=[text(12) for _ in range(3)])
        | {"passages": [{"rank": k, "title": text(3), "text": text(80)} for k in range(1, 6)]}
        for n in range(5000)
    ]
    path = tmp_path / "large.html"
    write_page(path, Page("large", [], RESULTS, CHARTS[:1], questions))
    assert path.stat().st_size < 15_000_000
    shown = Shown(browser, path)
    assert shown.page.inner_text("#count") == "5,000 of 5,000 questions"
    assert shown.page.locator("#list li").count() == 50
    assert shown.seconds < 10  # about two on an idle machine


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_the_page_fits_its_width(browser, written, width, scheme, tmp_path):
    page = Shown(browser, written, width, scheme).page
    page.screenshot(path=tmp_path / "for a person to look at.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
