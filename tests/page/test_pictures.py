"""Files on their way into a message, how the model sees them, and the table of many."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
import requests
from PIL import Image

from page.conftest import Open, Tab, content, drawing
from pdfs import pdf
from server.conftest import Server
from waiting import wait_until


def test_several_files_and_a_wrong_one(tab: Tab) -> None:
    page = tab.page
    picker = page.locator("input[type=file]")
    names = ["a.png", "b.png", "c.png"]
    picker.set_input_files(
        [{"name": name, "mimeType": "image/png", "buffer": drawing(10 + at)} for at, name in enumerate(names)]
    )
    page.locator(".tray img").nth(2).wait_for()
    tab.give("paste", ("notes.png", "image/png", b"This is a text."))
    page.locator(".tray .failed [role=alert]").wait_for()
    tab.message.fill("What is it?")
    tab.message.press("Enter")
    assert page.locator(".message").count() == 0  # it must not be sent without a file that was meant
    assert tab.message.input_value() == "What is it?"
    tab.button("Remove notes.png").click()
    assert tab.kept()["files"] == 0  # nothing is kept before it is sent

    tab.button("Move c.png to the left").click()
    tab.button("Remove a.png").click()
    wait_until(lambda: page.locator(".tray-name").all_inner_texts() == ["c.png", "b.png"])
    tab.message.press("Enter")
    tab.answer(0)
    parts = json.loads(tab.bodies[0])["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    wait_until(lambda: page.locator(".question img").count() == tab.kept()["files"] == 2)


def test_enter_before_a_picture_has_arrived(tab: Tab) -> None:
    """The message follows its picture."""
    tab.message.fill("How many shapes are there?")
    tab.give("drop", ("big.png", "image/png", drawing(20, (3000, 2000))))
    tab.message.press("Enter")
    assert tab.answer(0) == "1"
    assert len(json.loads(tab.bodies[0])["messages"][0]["content"]) == 2


def test_how_the_model_sees_it(tab: Tab, server: Server) -> None:
    page = tab.page
    tab.give("drop", ("wide.png", "image/png", drawing(30, (1600, 900))))
    page.get_by_text("80 tokens").wait_for()
    tab.button("wide.png: how the model sees it").click()
    page.get_by_text("Seen at 192×192 of 1600×900").wait_for()
    page.get_by_text("5 tiles, 80 tokens, 4 % of the context").wait_for()
    seen = page.locator(".stage img[width='192']")
    seen.wait_for()
    assert seen.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [192, 192]
    wait_until(lambda: page.locator(".grid").count() == 1)
    page.get_by_label("Show tiles").uncheck()
    wait_until(lambda: page.locator(".grid").count() == 0)

    page.get_by_role("radio", name="Low").check(force=True)
    page.get_by_text("1 tile, 16 tokens").wait_for()
    page.get_by_role("radio", name="Auto").check(force=True)
    page.get_by_role("slider").fill("0")  # the least of the steps: 64 tokens
    page.get_by_text(re.compile("^3 tiles, 48 tokens|^4 tiles, 64 tokens|tiles, [456]\\d tokens")).wait_for()
    page.get_by_role("radio", name="Original").check(force=True)
    page.locator(".stage img[width='1600']").wait_for()
    page.keyboard.press("Escape")
    tab.ask("How many shapes are there?")
    image = json.loads(tab.bodies[0])["messages"][0]["content"][0]["image_url"]
    assert image["max_image_tokens"] == 64
    # The server has forgotten the picture; the page sends it again.
    assert requests.delete(f"{server.base}/images/{image['url']}", timeout=60).ok
    page.locator(".question .picture").click()
    page.locator(".stage img:not(.thumbnail)").wait_for()


def test_a_picture_that_the_browser_cannot_draw(tab: Tab) -> None:
    file = io.BytesIO()
    Image.new("RGB", (320, 200), (200, 30, 30)).save(file, "TIFF")
    tab.give("drop", ("scan.tif", "image/tiff", file.getvalue()))
    tab.page.get_by_text("320×200").wait_for()
    tab.button("scan.tif: how the model sees it").click()
    tab.page.locator(".stage img").wait_for()  # the server draws it


def test_pages_of_a_document(tab: Tab) -> None:
    page = tab.page
    circle = b"1 0 0 rg 60 60 m 100 60 l 100 90 l 60 90 l f"
    document = pdf([b"BT /F1 24 Tf 20 40 Td (One) Tj ET", circle, b"BT /F1 24 Tf 20 40 Td (Three) Tj ET"])
    tab.give("drop", ("letter.pdf", "application/pdf", document))
    page.get_by_text("all 3 pages").wait_for()
    page.get_by_text("about 144 tokens").wait_for()  # three pages of two tiles and one of the whole
    page.locator(".tray img").wait_for()  # the server draws it
    tab.button("letter.pdf: how the model sees it").click()
    page.locator(".page-image img").nth(2).wait_for()
    page.get_by_label("Page 1", exact=True).first.uncheck()
    page.get_by_label("Page 3", exact=True).first.uncheck()
    page.get_by_label("Page 2", exact=True).first.click()  # the last one stays
    page.get_by_text("1 of 3 pages").first.wait_for()
    page.keyboard.press("Escape")
    assert tab.ask("How many shapes are there?") == "1"
    file, _ = json.loads(tab.bodies[0])["messages"][0]["content"]
    assert (file["pages"], file["filename"]) == ("2", "letter.pdf")
    assert file["url"].startswith("sha256:")
    page.get_by_text("Seen at 192×96").wait_for()
    assert tab.ask("What color is the shape?")
    assert len(tab.bodies[1]) < 1000


def test_the_camera(tab: Tab) -> None:
    tab.button("Take a picture").click()
    tab.button("Take it").click()
    tab.page.locator(".tray img").wait_for()
    assert tab.page.locator(".tray-name").inner_text() == "camera.jpg"


def test_ten_pictures_into_a_table_and_a_tab_that_is_closed(tabs: Open) -> None:
    tab = tabs()
    page = tab.page
    tab.button("New table").click()
    page.get_by_label("Question for every picture").fill("How many shapes are there?")
    files = [
        {"name": f"{at}.png", "mimeType": "image/png", "buffer": drawing(40 + at, (1200, 900))} for at in range(10)
    ]
    page.locator("input[type=file]").set_input_files(files)
    page.get_by_text("0 of 10 done").wait_for()
    tab.button("Run").click()
    tab.until("document.querySelectorAll('tr.done').length >= 2")
    tab.check()
    page.close()

    again = tabs(context=page.context)
    again.page.locator(".entry").get_by_text("How many shapes are there?").click()
    again.page.get_by_text("10 of 10 done").wait_for()
    assert len(again.bodies) < 9  # what was done is not asked again
    with again.page.expect_download() as download:
        again.button("CSV").click()
    rows = list(csv.DictReader(io.StringIO(content(download.value))))
    assert [row["picture"] for row in rows] == [f"{at}.png" for at in range(10)]
    assert {row["answer"] for row in rows} == {"1"}
    with again.page.expect_download() as download:
        again.button("JSONL").click()
    lines = [json.loads(line) for line in content(download.value).splitlines()]
    assert lines[9] == {"picture": "9.png", "answer": "1"}


def test_everything_is_deleted_while_a_table_runs(tab: Tab, server: Server) -> None:
    page = tab.page
    tab.button("New table").click()
    page.get_by_label("Question for every picture").fill("How many shapes are there?")
    tab.give("drop", *((f"{at}.png", "image/png", drawing(90 + at, (1200, 900))) for at in range(6)))
    page.get_by_text("0 of 6 done").wait_for()
    tab.button("Run").click()
    tab.until("document.querySelectorAll('tr.done').length >= 1")
    id = json.loads(tab.bodies[0])["messages"][0]["content"][0]["image_url"]["url"]
    tab.button("Settings").first.click()
    tab.button("Delete everything").click()
    page.get_by_text("Ask about a picture").wait_for()
    wait_until(lambda: set(tab.kept().values()) == {0})
    wait_until(lambda: server.get(f"/v1/images/{id}").status_code == 404)
    page.wait_for_timeout(500)  # what still comes brings nothing back
    assert set(tab.kept().values()) == {0}
    assert page.locator(".entry").count() == 0


def test_a_table_with_fields(tab: Tab) -> None:
    page = tab.page
    tab.button("New table").click()
    page.locator("summary").click()
    page.get_by_role("radio", name="Fields", exact=True).check(force=True)
    page.get_by_label("Name of the field").fill("count")
    page.get_by_label("Kind").select_option("Whole number")
    page.get_by_label("Question for every picture").fill("How many shapes are there?")
    tab.give("drop", ("=1+1.png", "image/png", drawing(60)))
    page.get_by_text("0 of 1 done").wait_for()
    tab.button("Run").click()
    page.get_by_text("1 of 1 done").wait_for()
    assert page.locator("thead th").all_inner_texts()[:2] == ["Picture", "count"]
    assert page.locator("tbody td").first.inner_text().isdigit()
    with page.expect_download() as download:
        tab.button("CSV").click()
    # A spreadsheet would compute it.
    assert content(download.value).splitlines()[1].startswith("'=1+1.png,")


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_is_wider_than_the_screen(tabs: Open, width: int) -> None:
    tab = tabs(viewport={"width": width, "height": 740})
    tab.give("drop", ("shape.png", "image/png", drawing(70)), ("x" * 90 + ".png", "image/png", drawing(71)))
    tab.page.locator(".tray img").nth(1).wait_for()
    tab.ask("How many shapes are there? " + "word" * 60)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    assert tab.page.locator(".thread").evaluate("box => box.scrollWidth - box.clientWidth") == 0
    if width < 821:
        tab.button("Show chats").click()
    tab.button("New table").click()
    tab.page.get_by_label("Question for every picture").wait_for()
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
