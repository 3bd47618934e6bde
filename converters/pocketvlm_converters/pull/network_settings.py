"""Environment variables for proxies and certificates: which one is wrong if no connection can be made with them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pocketvlm.errors import quoted, shortened

_PROXIES = ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY")
_SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def explain_settings(error: Exception) -> str:
    """Return one line about why an HTTP client cannot be made: the variable, what is wrong, and what to do.

    Proxies may contain a password, so only their schemes are shown.
    """
    schemes = {name: value.partition("://")[0].lower() for name, value in _set(_PROXIES) if "://" in value}
    if isinstance(error, ImportError):
        name = next((name for name, scheme in schemes.items() if scheme.startswith("socks")), None)
        if name:
            return f"{name} names a SOCKS proxy, which needs one more package: pip install 'httpx[socks]'"
    elif isinstance(error, OSError):
        name, value = next(_set(_CERTIFICATES), ("", ""))
        if name:
            reason = error.strerror or str(error)
            return f"{name} is {quoted(value)}, which has no usable certificates ({reason}); correct or unset it"
    else:
        name = next((name for name, scheme in schemes.items() if scheme not in _SCHEMES), None)
        if name:
            return f"{name} begins with {schemes[name]}://; use http://, https:// or socks5:// as in {name}=http://HOST:PORT"
    lines = str(error).splitlines() or [type(error).__name__]
    known = ", ".join(name for name, _ in _set((*_PROXIES, *_CERTIFICATES))) or "none is set"
    return f"the settings of proxies and certificates cannot be used: {shortened(lines[0])} (variables: {known})"


def _set(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the variables that are set, in capitals or not, with their values."""
    for name in names:
        for spelling in (name.lower(), name):
            if value := os.environ.get(spelling):
                yield spelling, value
