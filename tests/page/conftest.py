"""The page in a real browser, Debian's Chromium, against the real server with iota."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, BrowserContext, Download, Locator, Page, Playwright, sync_playwright

from server.conftest import Server, start, stop

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
NEEDED = "POCKETVLM_TEST_CHROMIUM"  # set where the tests must not be left out
PAGE = Path(__file__).parents[2] / "page"
# Counts what may never happen, and records what is shown while an answer is awaited.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
window.steps = [];
addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => {
    const text = document.querySelector(".progress")?.innerText;
    if (text && steps.at(-1) !== text) steps.push(text);
  }).observe(document.body, { subtree: true, childList: true, characterData: true });
});
"""
# Gives files to the page as a browser does when they are dropped or pasted.
HAND_OVER = """
([kind, files]) => {
  const data = new DataTransfer();
  for (const [name, type, base64] of files) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    data.items.add(new File([bytes], name, { type }));
  }
  const options = { bubbles: true, cancelable: true };
  const event =
    kind === "drop"
      ? new DragEvent("drop", { ...options, dataTransfer: data })
      : new ClipboardEvent("paste", { ...options, clipboardData: data });
  document.querySelector("main").dispatchEvent(event);
}
"""


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")  # its event loop runs in this thread, where other tests want one of their own
def playwright() -> Iterator[Playwright]:
    if chromium() is None:
        reason = "NO Chromium ON THIS MACHINE: the page is NOT tested; on Debian: apt-get install chromium"
        pytest.fail(reason) if os.environ.get(NEEDED) else pytest.skip(reason)
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # which root cannot have
    launched = playwright.chromium.launch(executable_path=chromium(), args=arguments)
    yield launched
    launched.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    running = start("--parallel", "2")
    yield running
    assert stop(running) == 0


@pytest.fixture(scope="session")
def keyed() -> Iterator[Server]:
    """A server with the key "s3cret word"."""
    running = start("--api-key", "s3cret word")
    yield running
    stop(running)


@dataclass
class Tab:
    """A tab with the page, and what it did."""

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)  # of chat requests

    def open(self) -> Tab:
        self.page.goto(f"{self.url}/")
        self.page.wait_for_selector("textarea, input[type=password]")
        return self

    @property
    def message(self) -> Locator:
        return self.page.get_by_role("textbox").last

    def give(self, kind: str, *files: tuple[str, str, bytes]) -> None:
        """Drop or paste files of a (name, type, content) each."""
        coded = [(name, media, base64.b64encode(data).decode()) for name, media, data in files]
        self.page.evaluate(HAND_OVER, [kind, coded])

    def ask(self, text: str) -> str:
        """Send a message, wait for the answer, and return its text."""
        count = self.page.locator(".answer").count()
        self.message.fill(text)
        self.message.press("Enter")
        return self.answer(count)

    def answer(self, at: int) -> str:
        """Return the text of an answer once it is complete."""
        answer = self.page.locator(".answer").nth(at)
        answer.locator(".actions").wait_for(timeout=60_000)
        return answer.locator(".markdown").inner_text() if answer.locator(".markdown").count() else ""

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression holds. Playwright's own way is what the page's policy forbids: eval."""
        end = time.monotonic() + 60
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"it never held: {expression}"
            self.page.wait_for_timeout(20)

    def until_answer_has(self, characters: int) -> None:
        self.until(f"document.querySelector('.answer .markdown')?.innerText.length > {characters}")

    def stop_after(self, characters: int) -> None:
        """Press Stop as soon as the answer is so long; done in the page, because the model is quick."""
        self.page.evaluate(
            """(characters) => new Promise((resolve) => {
              const look = () => {
                const text = document.querySelector(".answer .markdown")?.innerText ?? "";
                const button = document.querySelector("[aria-label=Stop]");
                if (text.length <= characters || !button) return requestAnimationFrame(look);
                button.click();
                resolve();
              };
              look();
            })""",
            characters,
        )

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def kept(self) -> dict[str, int]:
        """Return the numbers of records that the browser keeps."""
        counts: dict[str, int] = self.page.evaluate(
            """() => new Promise((resolve) => {
              const request = indexedDB.open("pocketvlm");
              request.onsuccess = async () => {
                const db = request.result;
                const names = [...db.objectStoreNames];
                const counts = names.map((name) => new Promise((done) => {
                  const count = db.transaction(name).objectStore(name).count();
                  count.onsuccess = () => done([name, count.result]);
                }));
                resolve(Object.fromEntries(await Promise.all(counts)));
                db.close();
              };
            })"""
        )
        return counts

    def check(self) -> None:
        """Nothing was requested from anywhere else, no policy was violated, nothing failed."""
        others = [url for url in self.requests if not url.startswith((f"{self.url}/", "blob:", "data:"))]
        assert others == []
        assert self.page.evaluate("window.violations") == []
        assert self.faults == []


Open = Callable[..., Tab]


@pytest.fixture
def tabs(browser: Browser, server: Server) -> Iterator[Open]:
    """Opens tabs, each in a browser profile of its own unless told otherwise. `check` holds for all at the end."""
    opened: list[Tab] = []
    contexts: list[BrowserContext] = []

    def open_tab(at: Server = server, context: BrowserContext | None = None, **options: Any) -> Tab:
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
            context.grant_permissions(["camera", "clipboard-read", "clipboard-write"])
            context.add_init_script(WATCH)
            contexts.append(context)
        tab = Tab(context.new_page(), at.url)
        tab.page.on("request", lambda request: note(tab, request))
        tab.page.on("pageerror", lambda error: tab.faults.append(str(error)))
        tab.page.on("dialog", lambda dialog: dialog.accept())
        tab.page.set_default_timeout(60_000)
        opened.append(tab)
        return tab.open()

    def note(tab: Tab, request: Any) -> None:
        tab.requests.append(request.url)
        if request.url.endswith("/chat/completions"):
            tab.bodies.append(request.post_data)

    yield open_tab
    try:
        for tab in opened:
            if not tab.page.is_closed():
                tab.check()
    finally:
        for context in contexts:
            context.close()


@pytest.fixture
def tab(tabs: Open) -> Tab:
    return tabs()


def drawing(number: int, size: tuple[int, int] = (640, 480)) -> bytes:
    """Return a PNG that no other number has: iota sees one shape in it."""
    image = Image.new("RGB", size, (246, 250, 230))
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.ellipse((width // 10, height // 10, width * 4 // 10, height // 2), fill=(219, 26, 46))
    draw.point((number % width, height * 3 // 4), fill=(0, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def chats(*conversations: list[tuple[str, str]], title: str = "Imported") -> str:
    """Return an export of the page with these conversations, of (role, text) each."""
    whole = []
    for number, turns in enumerate(conversations):
        messages = [
            {
                "id": f"m{at}",
                "parent": f"m{at - 1}" if at else None,
                "role": role,
                "text": text,
                "thoughts": "",
                "attachments": [],
                "state": "done",
                "model": "iota",
                "created": at,
            }
            for at, (role, text) in enumerate(turns)
        ]
        about = {"title": title, "created": number, "updated": number, "leaf": f"m{len(turns) - 1}"}
        settings = {"system": "", "schema": "", "temperature": None, "topP": None, "maxTokens": None, "seed": None}
        whole.append({**about, "settings": settings, "messages": messages})
    return json.dumps({"format": "pocketvlm-chats", "version": 1, "chats": whole, "files": []})


def import_chats(tab: Tab, text: str) -> None:
    tab.button("Settings").first.click()
    file = {"name": "chats.json", "mimeType": "application/json", "buffer": text.encode()}
    tab.page.locator('input[type=file][accept*="json"]').set_input_files(file)
    tab.page.locator(".notice").get_by_text("imported").wait_for()


def content(download: Download) -> str:
    return Path(download.path()).read_text("utf-8")
