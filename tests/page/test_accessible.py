"""axe-core finds nothing serious, in all states of the page, light and dark, narrow and wide."""

from __future__ import annotations

from typing import Any

import pytest

from page.conftest import PAGE, Open, Tab, chats, drawing, import_chats

AXE = PAGE / "node_modules" / "axe-core" / "axe.min.js"
MARKDOWN = """# A title

A [link](https://example.org) and `code`.

- [x] done
- a list

```python
print("Hello")
```

| a | b |
|---|---|
| 1 | 2 |

> A quotation.
"""


def faults_of(tab: Tab) -> list[Any]:
    found: dict[str, Any] = tab.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        (fault["id"], fault["impact"], [node["html"][:160] for node in fault["nodes"]])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_axe(tabs: Open, scheme: str, width: int) -> None:
    if not AXE.is_file():
        pytest.skip("NO page/node_modules: axe is NOT run; `make page` installs it")
    tab = tabs(color_scheme=scheme, viewport={"width": width, "height": 780})
    page = tab.page
    page.evaluate(AXE.read_text("utf-8"))  # not through the page's policy, which forbids it

    assert faults_of(tab) == []  # nothing yet
    tab.give("drop", ("shape.png", "image/png", drawing(90)), ("wrong.png", "image/png", b"no picture"))
    page.locator(".tray .failed [role=alert]").wait_for()
    assert faults_of(tab) == []  # files that wait
    tab.button("Remove wrong.png").click()
    tab.ask("How many shapes are there?")
    assert faults_of(tab) == []  # an answer
    page.locator(".question .picture").click()
    page.locator(".stage img[width]").wait_for()
    assert faults_of(tab) == []  # as the model sees it
    page.keyboard.press("Escape")
    page.locator(".head").get_by_role("button", name="Settings").click()
    page.get_by_role("radio", name="Fields", exact=True).check(force=True)
    assert faults_of(tab) == []  # settings
    page.keyboard.press("Escape")
    import_with(tab, width)
    assert faults_of(tab) == []  # Markdown
    if width < 821:
        tab.button("Show chats").click()
    assert faults_of(tab) == []  # the list of chats
    tab.button("New table").click()
    tab.give("drop", ("shape.png", "image/png", drawing(90)))
    page.locator(".rows img").wait_for()
    assert faults_of(tab) == []  # a table


def import_with(tab: Tab, width: int) -> None:
    import_chats(tab, chats([("user", "Hello"), ("assistant", MARKDOWN)], title="Markdown"))
    if width < 821:
        tab.button("Show chats").click()
    tab.page.locator(".entry").get_by_text("Markdown").click()
    tab.page.get_by_text("A quotation.").wait_for()
    assert tab.page.locator(".markdown input[type=checkbox][checked]").count() == 1
