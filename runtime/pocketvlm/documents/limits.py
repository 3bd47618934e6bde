"""How much a file of several pictures may take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pocketvlm.errors import RequestError
from pocketvlm.system.options import MEBIBYTES, Option, check_options


@dataclass(frozen=True)
class DocumentLimits:
    """Limits for documents. Raises RequestError whose `param` names the field.

    `seconds` and `memory` hold for the process that decodes; beyond them, it is ended. Windows has no such limits, and
    macOS perhaps none of memory.
    """

    pages: Annotated[
        int, Option("Most pages that a request may show the model.", ("--max-pages",), least=1, most=10_000)
    ] = 100
    seconds: Annotated[
        float, Option("Processor seconds that decoding one page may take.", ("--page-seconds",), above=0)
    ] = 20.0
    request_seconds: Annotated[
        float, Option("Seconds that decoding all pages of a request may take.", ("--document-seconds",), above=0)
    ] = 120.0
    memory: Annotated[
        int, Option("Memory for decoding, in {unit}.", ("--document-memory",), MEBIBYTES, least=128 << 20)
    ] = 1 << 30

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("seconds", "request_seconds"):
            if getattr(self, name) == math.inf:
                raise RequestError("must be finite", name)
