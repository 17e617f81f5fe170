"""Draw the pictures of a report for the documents.

python scripts/screenshots.py outputs/train/RUN/report.html
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

TARGET = Path(__file__).parents[1] / "docs"
WIDE, NARROW = {"width": 1200, "height": 1100}, {"width": 390, "height": 844}


def charts(page: Page) -> None:
    """The top of the page."""
    page.screenshot(path=TARGET / "report-light.png")


def question(page: Page) -> None:
    """A question that was answered rightly, opened, its passages marked."""
    page.click("[data-show=right]")
    page.locator("#list summary").first.click()
    page.locator("#list li").first.scroll_into_view_if_needed()
    page.screenshot(path=TARGET / "report-dark.png")


def phone(page: Page) -> None:
    """The same on a phone."""
    page.locator("#list summary").first.click()
    page.locator("#list").scroll_into_view_if_needed()
    page.screenshot(path=TARGET / "report-narrow.png")


def main() -> None:
    """Open the page three times."""
    TARGET.mkdir(exist_ok=True)
    with sync_playwright() as started:
        path = shutil.which("chromium") or started.chromium.executable_path
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for take, size, scheme in (
            (charts, WIDE, "light"),
            (question, WIDE, "dark"),
            (phone, NARROW, "light"),
        ):
            page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(Path(sys.argv[1]).resolve().as_uri())
            page.wait_for_selector("html[data-ready=true]")
            take(page)
        browser.close()


if __name__ == "__main__":
    main()
