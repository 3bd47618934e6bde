"""A conversation in the page, from the first picture to the last trace."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

from page.conftest import Open, Tab, chats, content, drawing, import_chats
from server.conftest import Server, start, stop
from waiting import wait_until

LONG = '{"type": "array", "items": {"type": "integer", "minimum": 10, "maximum": 99}, "minItems": 600}'

# Of the answer that the browser keeps.
KEPT_TEXT = """new Promise((resolve) => {
  const request = indexedDB.open("pocketvlm");
  request.onsuccess = () => {
    const all = request.result.transaction("messages").objectStore("messages").getAll();
    all.onsuccess = () => resolve(all.result.find((one) => one.role === "assistant")?.text ?? "");
    request.result.close();
  };
})"""


def answer_long(tab: Tab) -> None:
    """Have the next answers take some seconds: a schema that needs many tokens."""
    tab.button("Settings").first.click()
    tab.page.get_by_text("JSON Schema", exact=True).click()
    tab.page.get_by_label("JSON Schema", exact=True).last.fill(LONG)
    tab.page.keyboard.press("Escape")


def test_from_the_first_picture_to_the_last_trace(tab: Tab, server: Server, sample_png: Path) -> None:
    page = tab.page
    tab.give("drop", ("sample.png", "image/png", sample_png.read_bytes()))
    page.get_by_text("640×480, 8.0 kB").wait_for()
    page.get_by_text("80 tokens").wait_for()  # known before it is sent
    assert tab.ask("How many shapes are there?") == "2"
    steps = page.evaluate("window.steps")
    assert any(re.match(r"Looking at the picture: tile \d of 5", step) for step in steps), steps
    page.get_by_text("Seen at 192×192 of 640×480, 5 tiles").wait_for()

    assert tab.ask("What color is the circle?") == "Red"
    first, second = map(json.loads, tab.bodies)
    assert len(second["messages"]) == 3
    # The picture itself is sent once.
    assert sum(url.endswith("/v1/images") for url in tab.requests) == 1
    assert first["messages"][0]["content"][0]["image_url"]["url"].startswith("sha256:")
    assert len(tab.bodies[1]) < 1000

    page.reload()
    page.get_by_text("What color is the circle?").wait_for()
    wait_until(lambda: page.locator(".answer").count() == 2)
    wait_until(lambda: page.locator(".question img").evaluate("image => image.naturalWidth") > 100)

    tab.button("New chat").click()
    wait_until(lambda: page.locator(".answer").count() == 0)
    page.get_by_label("Search chats").fill("COLOR")
    page.locator(".excerpt").get_by_text("What color is the circle?").click()
    page.locator(".answer").nth(1).wait_for()

    tab.button("Settings").first.click()
    with page.expect_download() as download:
        tab.button("Export this chat").click()
    exported = json.loads(content(download.value))
    [chat], [file] = exported["chats"], exported["files"]
    assert [message["text"] for message in chat["messages"]][1] == "2"
    assert file["id"] == first["messages"][0]["content"][0]["image_url"]["url"]
    page.keyboard.press("Escape")
    page.get_by_label("Search chats").fill("")

    page.locator(".entry").hover()
    tab.button("Delete How many shapes are there?").click()
    page.get_by_text("Ask about a picture").wait_for()
    tab.until("document.querySelectorAll('.entry').length === 0")
    wait_until(lambda: set(tab.kept().values()) == {0})
    wait_until(lambda: server.get(f"/v1/images/{file['id']}").status_code == 404)

    import_chats(tab, json.dumps(exported))
    page.locator(".entry button").first.click()
    page.locator(".answer").nth(1).wait_for()
    # The server has forgotten the picture; the page sends it again.
    assert tab.ask("How many shapes are there?") == "2"


def test_what_the_keyboard_does(tab: Tab) -> None:
    page = tab.page
    assert page.locator("input[type=file]").count() == 1
    tab.until("document.activeElement.tagName === 'TEXTAREA'")
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    assert tab.message.input_value() == "Hello\nthere"
    assert page.locator(".message").count() == 0
    page.keyboard.press("Enter")
    tab.answer(0)
    assert page.locator(".bubble").inner_text() == "Hello\nthere"
    wait_until(lambda: tab.message.input_value() == "")
    # Everything can be reached by Tab, and dialogs give the focus back.
    page.keyboard.press("Tab")
    tab.button("Settings").last.focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    tab.until("document.activeElement.ariaLabel === 'Settings'")


def test_stop_retry_and_edit(tab: Tab) -> None:
    page = tab.page
    answer_long(tab)
    tab.message.fill("Some numbers, please")
    tab.message.press("Enter")
    tab.stop_after(100)
    page.get_by_text("Stopped.").wait_for()
    assert any(re.match(r"\d+ tokens?", step) for step in page.evaluate("window.steps"))
    stopped = tab.answer(0)
    assert stopped.startswith("[")

    tab.button("Continue").click()
    tab.stop_after(len(stopped) + 20)
    assert tab.answer(0).startswith(stopped[:20])

    tab.button("Settings").first.click()
    page.get_by_role("radio", name="Text", exact=True).check(force=True)
    page.keyboard.press("Escape")
    tab.button("Try again").click()
    page.get_by_text("2 of 2").wait_for()
    second = tab.answer(0)
    tab.button("Earlier version").click()
    page.get_by_text("1 of 2").wait_for()
    assert tab.answer(0).startswith(stopped[:20])
    tab.button("Later version").click()
    assert tab.answer(0) == second

    tab.button("Edit").click()
    page.get_by_label("Edit the message").fill("Something else")
    page.keyboard.press("Enter")
    page.locator(".bubble").get_by_text("Something else").wait_for()
    tab.answer(0)
    assert page.locator(".question .versions").inner_text() == "2 of 2"
    page.locator(".question").get_by_role("button", name="Earlier version").click()
    page.locator(".bubble").get_by_text("Some numbers, please").wait_for()
    assert tab.answer(0) == second


def test_the_server_stops_in_mid_answer(tabs: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    own = start("--port", port)
    try:
        tab = tabs(own)
        page = tab.page
        answer_long(tab)
        tab.give("drop", ("shape.png", "image/png", drawing(1)))
        page.get_by_text("80 tokens").wait_for()
        tab.message.fill("Some numbers, please")
        tab.message.press("Enter")
        tab.until_answer_has(20)
        own.process.send_signal(signal.SIGKILL)
        page.locator(".failure").get_by_text("The server stopped in the middle of the answer.").wait_for()
        page.get_by_text("The server does not answer. Start it again").wait_for()
        assert len(tab.answer(0)) > 20  # what came is kept
        own.process.wait()
        own = start("--port", port)
        tab.until("!document.querySelector('.notice')")
        tab.button("Try again").click()
        page.locator(".failure").wait_for(state="detached")
        tab.stop_after(20)
        tab.answer(0)
    finally:
        stop(own)


def test_a_reload_in_mid_answer(tab: Tab) -> None:
    answer_long(tab)
    tab.message.fill("Some numbers, please")
    tab.message.press("Enter")
    tab.until(f"{KEPT_TEXT}.then((text) => text.length > 20)")  # every second
    tab.page.reload()
    tab.page.get_by_text("Stopped.").wait_for()
    assert tab.answer(0).startswith("[")


def test_the_key(tabs: Open, keyed: Server) -> None:
    tab = tabs(keyed)
    page = tab.page
    page.get_by_text("This server needs a key").wait_for()
    for wrong in ("\u0142", "wrong"):  # the first one cannot even be sent
        page.get_by_label("Key").fill(wrong)
        page.keyboard.press("Enter")
        page.get_by_text("That key is not right.").wait_for()
    page.get_by_label("Key").fill("s3cret word")
    page.keyboard.press("Enter")
    tab.give("paste", ("shape.png", "image/png", drawing(2)))
    page.get_by_text("80 tokens").wait_for()
    assert tab.ask("How many shapes are there?") == "1"
    page.locator(".question .picture").click()
    page.locator(".stage img").wait_for()
    page.keyboard.press("Escape")
    page.reload()
    page.locator(".answer").wait_for()  # for this session
    stored = page.evaluate("[JSON.stringify(localStorage), document.cookie].join()")
    assert "s3cret" not in stored
    other = tabs(keyed, context=page.context)
    other.page.get_by_text("This server needs a key").wait_for()


def test_a_private_chat_leaves_nothing(tab: Tab, server: Server) -> None:
    page = tab.page
    tab.button("New private chat").click()
    page.get_by_text("This chat is private").wait_for()
    picture = drawing(3)
    tab.give("drop", ("secret.png", "image/png", picture))
    page.get_by_text("80 tokens").wait_for()
    assert tab.ask("How many shapes are there?") == "1"
    assert set(tab.kept().values()) == {0}
    assert "secret" not in page.evaluate("JSON.stringify({ ...localStorage, ...sessionStorage })")
    id = json.loads(tab.bodies[0])["messages"][0]["content"][0]["image_url"]["url"]
    assert server.get(f"/v1/images/{id}").status_code == 200
    page.reload()
    page.locator("textarea").wait_for()
    assert page.locator(".message").count() == 0
    wait_until(lambda: server.get(f"/v1/images/{id}").status_code == 404)
    assert page.locator(".entry").count() == 0


def test_a_chat_that_is_deleted_in_mid_answer(tab: Tab) -> None:
    """What still comes does not bring it back."""
    answer_long(tab)
    tab.message.fill("Some numbers, please")
    tab.message.press("Enter")
    tab.until_answer_has(20)
    tab.page.locator(".entry").hover()
    tab.button("Delete Some numbers, please").click()
    tab.page.get_by_text("Ask about a picture").wait_for()
    wait_until(lambda: set(tab.kept().values()) == {0})
    tab.page.wait_for_timeout(500)
    assert set(tab.kept().values()) == {0}


def test_back_and_forward(tabs: Open) -> None:
    tab = tabs()
    page = tab.page
    import_chats(tab, chats([("user", "First")], [("user", "Second")]))
    for number, text in enumerate(("Second", "First")):
        page.locator(".entry > button:first-child").nth(number).click()
        page.locator(".bubble").get_by_text(text).wait_for()
    page.go_back()
    page.locator(".bubble").get_by_text("Second").wait_for()
    page.go_forward()
    page.locator(".bubble").get_by_text("First").wait_for()
    before = page.evaluate("history.length")
    page.go_back()
    page.locator(".bubble").get_by_text("Second").wait_for()
    page.go_back()
    page.get_by_text("Ask about a picture").wait_for()
    assert page.evaluate("history.length") == before  # nothing was added, so Back leads on
    page.go_back()
    tab.until("location.href === 'about:blank'")
    page.go_forward()
    page.locator("textarea").wait_for()


def test_structured_answers(tab: Tab) -> None:
    page = tab.page
    tab.button("Settings").first.click()
    page.get_by_role("radio", name="Fields", exact=True).check(force=True)
    page.get_by_label("Name of the field").fill("shapes")
    page.get_by_label("Kind").select_option("Whole number")
    tab.button("Add a field").click()
    page.get_by_label("Name of the field").last.fill("size")
    page.get_by_label("Kind").last.select_option("One of")
    page.get_by_label("Choices, with commas").fill("big, small")
    page.keyboard.press("Escape")
    tab.give("drop", ("shape.png", "image/png", drawing(4)))
    page.get_by_text("80 tokens").wait_for()
    answer = json.loads(tab.ask("How many shapes are there?"))
    assert set(answer) == {"shapes", "size"}
    assert isinstance(answer["shapes"], int)
    assert answer["size"] in ("big", "small")


def test_two_thousand_messages(tab: Tab) -> None:
    """Only the last ones are drawn. benchmarks/bench_page.py measures that it stays fluent."""
    turns = [("user" if at % 2 == 0 else "assistant", f"Text **{at}**") for at in range(2000)]
    import_chats(tab, chats(turns))
    tab.page.locator(".entry button").first.click()
    tab.page.get_by_text("Text 1999").wait_for()
    assert tab.page.locator(".message").count() <= 60
    tab.page.locator(".thread").evaluate("box => box.scrollTo(0, 0)")
    tab.until("document.querySelectorAll('.message').length > 60")
    assert tab.page.locator(".message").count() <= 300
