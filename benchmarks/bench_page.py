"""How soon the page can be used after `pocketvlm app`, and whether 2,000 messages stay fluent. Needs Chromium.

    python benchmarks/bench_page.py [--llama-server BIN]

With a llama-server, its start with the same model is measured in turn with ours: from the command to the first answer
of its address. Other programs on the machine lengthen all times but those of the processor, so compare what is in one
run.
"""

from __future__ import annotations

import argparse
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from page.conftest import Tab, chats, chromium, import_chats
from pocketvlm.files.locate import locate

TIMES = 3
MESSAGES = 2000
APP = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "app", "--no-browser", "--port", "0"]
# The browser reports work of 50 ms and more, in which nobody can scroll or type. `frames` are the times between frames.
WATCH = """
window.tasks = [];
new PerformanceObserver((list) => tasks.push(...list.getEntries().map((one) => one.duration)))
  .observe({ type: "longtask" });
window.inputs = [];
new PerformanceObserver((list) => inputs.push(...list.getEntries().map((one) => one.duration)))
  .observe({ type: "event", durationThreshold: 16 });
"""
FRAMES = """() => new Promise((resolve) => {
  const box = document.querySelector(".thread"), times = [];
  let before = performance.now(), left = 240;
  const step = (now) => {
    times.push(now - before);
    before = now;
    box.scrollBy(0, left > 120 ? -400 : 400);
    if (--left) requestAnimationFrame(step);
    else resolve(times);
  };
  requestAnimationFrame(step);
})"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--llama-server", type=Path)
    given = options.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        ready, usable, theirs = [], [], []
        for _ in range(TIMES):
            one = start_ours(browser)
            ready.append(one[0])
            usable.append(one[1])
            if given.llama_server:
                theirs.append(start_theirs(given.llama_server))
        print(f"pocketvlm app: server {median(ready)}, page usable {median(usable)}")
        if theirs:
            print(f"llama-server: server {median(theirs)}")
        many(browser)
        browser.close()


def start_ours(browser: Browser) -> tuple[float, float]:
    """Return the seconds until the server works, and until a message can be typed."""
    began = time.perf_counter()
    with subprocess.Popen(APP, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().split()[3]
        ready = time.perf_counter() - began
        page = browser.new_page()
        page.goto(url)
        page.locator("textarea").type("x")
        usable = time.perf_counter() - began
        page.close()
        process.terminate()
    return ready, usable


def start_theirs(program: Path) -> float:
    files = locate(None, model=None, mmproj=None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "-m", files.model, "--mmproj", files.mmproj, "--port", str(port), "--fit", "off", "--offline"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while True:
            with suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            time.sleep(0.005)
        ready = time.perf_counter() - began
        process.terminate()
    return ready


def many(browser: Browser) -> None:
    """Scroll through many messages and type below them."""
    with subprocess.Popen(APP, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        page: Page = browser.new_page(viewport={"width": 1200, "height": 800})
        tab = Tab(page, found[0]).open()
        text = "A text of **some** words, with `code` and a [link](https://example.org). " * 4
        turns = [("user" if at % 2 == 0 else "assistant", f"{at}: {text}") for at in range(MESSAGES)]
        import_chats(tab, chats(turns))
        page.locator(".entry button").first.click()
        page.get_by_text(f"{MESSAGES - 1}: A text").wait_for()
        page.evaluate(WATCH)
        chrome = page.context.new_cdp_session(page)
        chrome.send("Performance.enable", {"timeDomain": "threadTicks"})
        before, first = busy(chrome), page.locator(".message").count()
        frames = page.evaluate(FRAMES)
        drawn = page.locator(".message").count()
        step = 1000 * (busy(chrome) - before) / ((drawn - first) / 10)
        scrolled = page.evaluate("tasks.splice(0)")
        page.locator("textarea").last.press_sequentially("How fluent is this? " * 3, delay=15)
        page.wait_for_timeout(300)
        typed, inputs = page.evaluate("[tasks, inputs]")
        process.terminate()
    frames.sort()
    print(f"{MESSAGES} messages, {drawn} of them drawn; processor time of ten more and their frames: {step:.0f} ms")
    print(f"scrolling: a frame {median(frames, 1)} ms, 99 % within {frames[len(frames) * 99 // 100]:.0f} ms,", end=" ")
    print(f"tasks of 50 ms and more: {len(scrolled)}, the longest {max(scrolled, default=0):.0f} ms")
    print(f"typing: tasks of 50 ms and more: {len(typed)}; keys over 16 ms: {len(inputs)},", end=" ")
    print(f"the longest {max(inputs, default=0):.0f} ms")


def busy(chrome: CDPSession) -> float:
    """Return the processor time of the page's main thread, in seconds."""
    metrics = chrome.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def median(values: list[float], digits: int = 2) -> str:
    unit = " s" if digits == 2 else ""
    return f"{statistics.median(values):.{digits}f}{unit}"


if __name__ == "__main__":
    main()
