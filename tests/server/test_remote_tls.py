"""Pictures over TLS: the connection goes to the address that was checked, and the certificate must be the name's."""

from __future__ import annotations

import functools
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import ImageError
from pocketvlm.server import remote
from pocketvlm.server.remote import Fetcher

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
PARAM = "messages.0.content.0.image_url.url"
NAME = "cdn.example"


def openssl(*arguments: str, at: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=at, check=True, capture_output=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, ca.pem, and certificates by it and by nobody, with their keys."""
    at = tmp_path_factory.mktemp("tls")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test", "-days", "2", at=at)
    for name, host in (("right", NAME), ("other", "other.example")):
        (at / "names").write_text(f"subjectAltName=DNS:{host}")
        openssl("req", "-new", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={host}", at=at)
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem", at=at)
    alone = ("-addext", f"subjectAltName=DNS:{NAME}", "-subj", f"/CN={NAME}", "-days", "2")
    openssl("req", "-x509", *key, "-keyout", "alone.key", "-out", "alone.pem", *alone, at=at)
    return at


class Handler(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a picture")

    def log_message(self, *_: Any) -> None:
        pass


class Site:
    """On loopback, with one of the certificates. `named` are the names that clients asked for, `asked` the paths."""

    def __init__(self, made: Path, certificate: str) -> None:
        self.asked: list[str] = []
        self.named: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made / f"{certificate}.pem", made / f"{certificate}.key")
        context.sni_callback = lambda _, name, __: self.named.append(name)
        handler = type("Asked", (Handler,), {"asked": self.asked})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # handshakes that clients break off
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port: int = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Site]]:
    """Starts sites; names lead to loopback, and the authority is one of those that this machine trusts."""
    running: list[Site] = []

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        assert host in (NAME, "127.0.0.1"), "only the name is looked up"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        remote.socket, "getaddrinfo", lambda host, *a, **k: real(host, *a, **k) if host[0].isdigit() else look_up(host)
    )
    trusting = functools.partial(ssl.create_default_context, cafile=str(made / "ca.pem"))
    monkeypatch.setattr(remote.ssl, "create_default_context", trusting)

    def begin(certificate: str) -> Site:
        running.append(Site(made, certificate))
        return running[-1]

    yield begin
    for one in running:
        one.server.shutdown()
        one.server.server_close()


def fetcher(port: int) -> Fetcher:
    return Fetcher([f"{NAME}:{port}"], allows=lambda _: True)


def test_the_certificate_is_the_names_and_the_connection_the_addresss(site: Callable[[str], Site]) -> None:
    found = site("right")
    assert fetcher(found.port).fetch(f"https://{NAME}:{found.port}/a.png", PARAM) == b"a picture"
    assert found.named == [NAME] and found.asked == ["/a.png"]


@pytest.mark.parametrize("certificate", ["other", "alone"])
def test_a_wrong_certificate(site: Callable[[str], Site], certificate: str) -> None:
    """Of another name, or signed by nobody whom this machine trusts: nothing is asked for."""
    found = site(certificate)
    with pytest.raises(ImageError, match="SSLCertVerificationError") as caught:
        fetcher(found.port).fetch(f"https://{NAME}:{found.port}/a.png", PARAM)
    assert caught.value.param == PARAM
    assert found.asked == []


def test_an_authority_that_is_not_trusted(site: Callable[[str], Site], monkeypatch: pytest.MonkeyPatch) -> None:
    found = site("right")
    monkeypatch.undo()
    monkeypatch.setattr(Fetcher, "_resolve", lambda *_: "127.0.0.1")
    with pytest.raises(ImageError, match="SSLCertVerificationError"):
        fetcher(found.port).fetch(f"https://{NAME}:{found.port}/a.png", PARAM)
    assert found.asked == []


def test_plain_http_at_a_tls_port(site: Callable[[str], Site]) -> None:
    found = site("right")
    with pytest.raises(ImageError, match="failed"):
        fetcher(found.port).fetch(f"http://{NAME}:{found.port}/a.png", PARAM)
    assert found.asked == []


def test_a_redirect_is_verified_again(site: Callable[[str], Site]) -> None:
    first, second = site("right"), site("other")
    both = Fetcher([f"{NAME}:{first.port}", f"{NAME}:{second.port}"], allows=lambda _: True)
    with pytest.raises(ImageError, match="SSLCertVerificationError"):
        both.fetch(f"https://{NAME}:{first.port}/to?https://{NAME}:{second.port}/b.png", PARAM)
    assert first.asked and second.asked == []
