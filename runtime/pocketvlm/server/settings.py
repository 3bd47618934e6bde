"""The settings of a server, checked once."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.errors import RequestError, quoted
from pocketvlm.pictures.handles import HandleLimits
from pocketvlm.pictures.images import MAX_PIXELS
from pocketvlm.server.protocols.responses.stored import ResponseLimits
from pocketvlm.system.options import MEBIBYTES, MEGAPIXELS, Option, check_options

MEBIBYTE = MEBIBYTES.factor
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """Times in seconds, sizes in bytes. Raises RequestError whose `param` names the field.

    `slots` requests run together and `queue` more wait; others are refused with 429. `handles` limits the pictures that
    clients upload once and then name, `documents` those of PDFs and other files of several, `responses` the answers
    that they continue by their id. `page`: browsers get a page at /.
    """

    host: Annotated[str, Option("Address to listen on; all but loopback need an API key.")] = "127.0.0.1"
    port: Annotated[int, Option("Port to listen on; 0 picks a free one.")] = 8080
    api_key: Annotated[str | None, Option("Key that clients must send.", envvar="POCKETVLM_API_KEY")] = None
    slots: Annotated[int, Option("Requests that run together.", least=1)] = 1
    queue: Annotated[int, Option("Requests that may wait; more are refused with 429.", least=0)] = 64
    max_body: Annotated[int, Option("Largest body of a request, in {unit}.", unit=MEBIBYTES, least=1)] = 64 * MEBIBYTE
    max_pixels: Annotated[int, Option("Largest picture, in {unit}.", unit=MEGAPIXELS, least=1)] = MAX_PIXELS
    read_timeout: Annotated[float, Option("Seconds that the body of a request may take to arrive.", above=0)] = 30.0
    grace: Annotated[float, Option("Seconds that running requests get when the server is stopped.", least=0)] = 30.0
    allowed_hosts: Annotated[
        tuple[str, ...],
        Option("Another name of the server that clients may send as Host; may be repeated.", ("--allowed-host",)),
    ] = ()
    allowed_origins: Annotated[
        tuple[str, ...],
        Option(
            "Web page that may call the server, e.g. https://example.org, or * for any; may be repeated.",
            ("--allow-origin",),
        ),
    ] = ()
    image_hosts: Annotated[
        tuple[str, ...],
        Option("Host that pictures may be fetched from, none by default; may be repeated.", ("--allow-image-host",)),
    ] = ()
    strict_model: Annotated[
        bool, Option("Refuse other names of models; by default a model that is served alone answers to any name.")
    ] = False
    idle_unload: Annotated[
        float | None,
        Option(
            "Seconds without requests after which a model is unloaded; 0: never; by default 300 with several models.",
            least=0,
        ),
    ] = None
    page: bool = True
    handles: HandleLimits = field(default_factory=HandleLimits)
    documents: DocumentLimits = field(default_factory=DocumentLimits)
    responses: ResponseLimits = field(default_factory=ResponseLimits)

    def __post_init__(self) -> None:
        check_options(self)
        if not 0 <= self.port <= 65535:
            raise RequestError("must be from 0 (any free port) to 65535", "port")
        # A header carries printable ASCII, and loses blanks at the ends.
        if self.api_key is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", self.api_key):
            raise RequestError("must be printable ASCII without blanks at its ends, and not empty", "api_key")
        for name in ("allowed_hosts", "image_hosts"):
            for host in getattr(self, name):
                if not _HOST.fullmatch(host):
                    raise RequestError(f"invalid host {quoted(host)}; use e.g. example.org or [::1]:8080", name)
        for origin in self.allowed_origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.scheme or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
                raise RequestError(f"invalid origin {quoted(origin)}; use e.g. https://example.org", "allowed_origins")
        if self.api_key is None and not is_loopback(self.host):
            raise RequestError(
                f"listening on {self.host} lets other machines in, which needs a key: set --api-key or the environment "
                "variable POCKETVLM_API_KEY",
                "api_key",
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server on `host`. Names other than localhost are not looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False
