"""Pictures from the network: only from hosts that were named, only at public addresses, within time and size."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest

from pocketvlm.errors import ImageError
from pocketvlm.server import remote
from pocketvlm.server.remote import Fetcher, is_public
from server.conftest import Start, look, refused

PARAM = "messages.0.content.0.image_url.url"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the client has left
                for _ in range(1200):
                    self.wfile.write(b".")
                    time.sleep(0.05)
        elif self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", unquote(self.path.partition("?")[2]))
            self.end_headers()
        elif self.path == "/big":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 100_000)
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.headers['host']} {self.path}".encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield site.server_address[1]
    site.shutdown()
    site.server_close()


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names lead to, instead of a name server; `asked` notes each look-up."""
    names: dict[str, list[str]] = {"asked": []}

    real = socket.getaddrinfo

    def look_up(host: str, *given: Any, **options: Any) -> list[Any]:
        if host[0].isdigit():
            return real(host, *given, **options)
        names["asked"].append(host)
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in names[host]]

    monkeypatch.setattr(remote.socket, "getaddrinfo", look_up)
    return names


def refusal(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(ImageError) as caught:
        fetcher.fetch(url, PARAM)
    assert caught.value.param == PARAM
    return caught.value.message


def anywhere(*hosts: str) -> Fetcher:
    """One that may connect to loopback, where the test's site is."""
    return Fetcher(hosts, allows=lambda _: True)


def test_what_is_public() -> None:
    private = (
        "127.0.0.1 127.9.9.9 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 192.0.2.1 "
        "255.255.255.255 ::1 :: fe80::1 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: "
        "2001:db8::1 fec0::2 ::127.0.0.1 ::ffff:0:127.0.0.1 64:ff9b:1::1 100:0:0:1::1"
    )
    for address in private.split():
        assert not is_public(ipaddress.ip_address(address)), address
    for address in ("1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"):
        assert is_public(ipaddress.ip_address(address)), address


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["::1"], ["1.1.1.1", "192.168.0.1"], []]
)
def test_names_of_private_addresses(looked_up: dict[str, list[str]], addresses: list[str]) -> None:
    looked_up["cdn.example"] = addresses
    assert "not a public one" in refusal(Fetcher(["cdn.example"]), "http://cdn.example/a.png")


def test_a_picture(looked_up: dict[str, list[str]], port: int) -> None:
    """The connection goes to the address that was checked; the name is looked up once."""
    looked_up["cdn.example"] = ["127.0.0.1"]
    fetcher = anywhere(f"cdn.example:{port}")
    found = fetcher.fetch(f"http://cdn.example:{port}/ä b.png?q=1", PARAM)
    assert found == f"cdn.example:{port} /%C3%A4%20b.png?q=1".encode()
    assert looked_up["asked"] == ["cdn.example"]


def test_hosts_that_were_not_named(looked_up: dict[str, list[str]], port: int) -> None:
    looked_up["cdn.example"] = looked_up["other.example"] = ["127.0.0.1"]
    fetcher = anywhere("cdn.example")
    for url in (
        "http://other.example/a.png",
        "http://cdn.example.evil.example/",
        f"http://cdn.example:{port}/a.png",
        "http://evil.example#@cdn.example/",
        "http://127.0.0.1/",
    ):
        assert "not fetched from this host" in refusal(fetcher, url)
    for url in (
        "ftp://cdn.example/a",
        "http:///a",
        "http://me:secret@cdn.example/",
        "http://[bad/",
        "http://cdn.example:x/",
        "http://cdn.example/\ud800.png",
    ):
        assert "secret" not in refusal(fetcher, url)
    assert looked_up["asked"] == []


def test_redirects_are_checked_like_the_first_address(looked_up: dict[str, list[str]], port: int) -> None:
    looked_up["cdn.example"] = looked_up["two.example"] = ["127.0.0.1"]
    here = f"http://cdn.example:{port}"
    fetcher = anywhere(f"cdn.example:{port}", f"two.example:{port}")
    assert fetcher.fetch(f"{here}/to?http://two.example:{port}/x", PARAM) == f"two.example:{port} /x".encode()
    assert fetcher.fetch(f"{here}/to?/y", PARAM).endswith(b"/y")
    assert "not fetched" in refusal(fetcher, f"{here}/to?http://other.example/")
    assert "http(s)" in refusal(fetcher, f"{here}/to?file:///etc/passwd")
    assert "valid URL" in refusal(fetcher, f"{here}/to?http://[bad/")
    assert "redirects" in refusal(fetcher, f"{here}/to?/to?/to?/to?/to?/to?/x")
    inside = Fetcher([f"cdn.example:{port}", "in.example"], allows=lambda address: str(address) != "10.0.0.1")
    looked_up["in.example"] = ["10.0.0.1"]
    assert "public" in refusal(inside, f"{here}/to?http://in.example/")


def test_time_size_and_failures(looked_up: dict[str, list[str]], port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up["cdn.example"] = ["127.0.0.1"]
    fetcher = anywhere(f"cdn.example:{port}", "gone.example", "cdn.example:1")
    assert "404" in refusal(fetcher, f"http://cdn.example:{port}/missing")
    assert "failed" in refusal(fetcher, "http://gone.example/a.png")
    assert "failed" in refusal(fetcher, "http://cdn.example:1/a.png")
    monkeypatch.setattr(remote, "MAX_BYTES", 99_999)
    assert "over the limit" in refusal(fetcher, f"http://cdn.example:{port}/big")
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    began = time.monotonic()
    assert "too long" in refusal(fetcher, f"http://cdn.example:{port}/slow")
    assert time.monotonic() - began < 50  # all of it comes after 60


def test_over_http(serve: Start, port: int) -> None:
    """This machine's own addresses stay out of reach, also for a server that was told to fetch from them."""
    own = serve("--allow-image-host", "localhost", "--allow-image-host", f"127.0.0.1:{port}")
    for url, says in (
        ("http://localhost/a.png", "public"),
        (f"http://127.0.0.1:{port}/a.png", "public"),
        ("http://elsewhere.example/a.png", "not fetched from this host"),
    ):
        reply = own.post({"messages": [{"role": "user", "content": look({"url": url})}]})
        assert says in refused(reply, 400, "messages.0.content.1.image_url.url", "invalid_image")
