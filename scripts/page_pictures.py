"""Take the pictures of the page for docs/page.md, in Chromium at three widths.

python scripts/page_pictures.py [FOLDER]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from page.conftest import Tab, chromium, drawing  # noqa: E402
from server.conftest import start, stop  # noqa: E402

SAMPLE = ("sample.png", "image/png", (ROOT / "docs" / "sample.png").read_bytes())


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    server = start("--parallel", "2")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            for name, take, width, height, scheme in (
                ("page-chat.png", chat, 1400, 860, "light"),
                ("page-seen.png", seen, 800, 640, "dark"),
                ("page-table.png", table, 360, 700, "light"),
            ):
                save(folder / name, shot(browser, server.url, take, width, height, scheme))
    finally:
        stop(server)


def shot(browser: Browser, url: str, take: object, width: int, height: int, scheme: str) -> bytes:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    tab = Tab(context.new_page(), url).open()
    take(tab)  # type: ignore[operator]
    tab.page.wait_for_timeout(400)
    picture = tab.page.screenshot()
    context.close()
    return picture


def chat(tab: Tab) -> None:
    send(tab)
    tab.ask("What color is the star?")
    tab.message.fill("And where is it?")


def seen(tab: Tab) -> None:
    tab.give("drop", SAMPLE)
    tab.page.get_by_text("80 tokens").wait_for()
    tab.button("sample.png: how the model sees it").click()
    tab.page.locator(".stage img[width]").wait_for()


def table(tab: Tab) -> None:
    tab.button("Show chats").click()
    tab.button("New table").click()
    tab.page.get_by_label("Question for every picture").fill("How many shapes are there?")
    tab.give("drop", SAMPLE, *((f"scan-{at}.png", "image/png", drawing(at * 31)) for at in (1, 2, 3)))
    tab.page.get_by_text("0 of 4 done").wait_for()
    tab.button("Run").click()
    tab.page.get_by_text("4 of 4 done").wait_for()


def send(tab: Tab) -> None:
    tab.give("drop", SAMPLE)
    tab.page.get_by_text("80 tokens").wait_for()
    tab.ask("How many shapes are there?")


def save(path: Path, picture: bytes) -> None:
    """Write a PNG of 255 colours: the page has few."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
