"""Documents that cannot be shown, over HTTP: 400 with the field, the file's name and the page."""

from __future__ import annotations

import base64

import pytest
import requests

from bad_documents import BadDocument, bad_documents
from server.conftest import Server, refused
from server.test_documents import body

BAD = {bad.name: bad for bad in bad_documents()}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_file_that_was_sent(server: Server, bad: BadDocument) -> None:
    data = base64.b64encode(bad.data).decode()
    part = {"type": "file", "file": {"filename": bad.name, "file_data": data}, **bad.options}
    field = "messages.0.content.0.file.file_data"
    told = refused(server.post(body(part)), 400, field, bad.code)
    assert told.startswith(f"{field}: {bad.name}: {bad.reason}")
    assert requests.get(f"{server.url}/health", timeout=60).json()["status"] == "ok"


@pytest.mark.parametrize("name", ["torn.pdf", "book.pdf", "short.pdf", "scan.tif"])
def test_a_file_that_was_sent_before(server: Server, name: str) -> None:
    bad = BAD[name]
    handle = requests.post(f"{server.base}/images", data=bad.data, timeout=60).json()["id"]
    field = "messages.0.content.0.url"
    told = refused(server.post(body({"type": "file", "url": handle, **bad.options})), 400, field, bad.code)
    assert told.startswith(f"{field}: {handle[:19]}: {bad.reason}")
