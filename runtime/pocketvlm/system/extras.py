"""The extras of pocketvlm: what they bring, what of it is missing, and how to install it.

pocketvlm is not in a package index. So messages never name it to pip, which would
install what another has registered under the name.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*).*;.*extra == ['\"]([\w-]+)['\"]")
_FOR_DEVELOPERS = frozenset({"dev", "docs", "oracle"})


def install_extra(*names: str) -> str:
    """Return what to do to install extras, for the end of a message."""
    return f'run pip install ".[{",".join(names)}]" in the folder of pocketvlm\'s source'


def missing_packages() -> dict[str, list[str]]:
    """Return the packages that are missing, for each extra that users may want."""
    missing: dict[str, list[str]] = {}
    for requirement in requires("pocketvlm") or ():
        match = _REQUIREMENT.match(requirement)
        if match and match[2] not in _FOR_DEVELOPERS:
            packages = missing.setdefault(match[2], [])
            if not _is_installed(match[1]):
                packages.append(match[1])
    return missing


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
