"""`pocketvlm serve`: models over HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.command_options import MODEL_HELP, Fields, expand_options
from pocketvlm.cli.console import waiting
from pocketvlm.cli.help import ENGINE
from pocketvlm.cli.served_models import Served, served_models
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.errors import PocketVLMError, RequestError, shortened
from pocketvlm.pictures.handles import HandleLimits
from pocketvlm.server.protocols.responses.stored import ResponseLimits
from pocketvlm.server.settings import Settings, is_loopback
from pocketvlm.system.extras import install_extra

if TYPE_CHECKING:
    from pocketvlm.server.models import Models

_FILES = 8  # of the event loop (3), and of a few connections
_FILES_OF_ENGINE = 2  # pipes
_THREADS = 2  # of a request, and of the shutdown
_THREADS_OF_ENGINE = 15  # of the supervisor (3), and of the engine's process (12)
SERVED_HELP = (
    f"{MODEL_HELP} May be repeated, as NAME=PATH to set the name, and MODEL.gguf+MMPROJ.gguf to add a projector."
)
_MEMORY_HELP = (
    "Memory budget, e.g. 4G or 512M: context, vision encoder and tokens of pictures are chosen to fit. Several models "
    "share it; by default they share the memory that is free at the start."
)
_PACKAGES = ("starlette", "uvicorn", "prometheus_client")
Offline = Annotated[
    bool, typer.Option("--offline", help="Forbid this process to reach or listen on any address but loopback.")
]
_RED_SQUARE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAGAAAABgAQMAAADYVuV7AAAABlBMVEX////cHh7/Hx2WAAAA"
    "IUlEQVR42mNgGAXkAEYGBob/MBYTsswoZ5RDfc4oIA8AAJHeAWAJ6gn/AAAAAElFTkSuQmCC"
)


@expand_options
def serve(
    models: Annotated[list[str] | None, typer.Option("-m", "--model", help=SERVED_HELP)] = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Serve every pulled model by its name, after those of --model.")
    ] = False,
    options: Annotated[
        LoadOptions,
        Fields(
            "mmproj",
            "name",
            "context_size",
            "parallel",
            "threads",
            "vision",
            "device",
            "picture_cache_size",
            "picture_cache",
            "picture_files_size",
            "speculate",
            "exact",
            "cache_type",
            "max_pixels",
            "calibration",
            "stuck_after",
            parallel=4,
        ),
    ],
    memory: Annotated[str | None, typer.Option(help=_MEMORY_HELP, rich_help_panel=ENGINE)] = None,
    settings: Annotated[
        Settings,
        Fields(
            "host",
            "port",
            "api_key",
            "queue",
            "max_body",
            "read_timeout",
            "grace",
            "allowed_hosts",
            "allowed_origins",
            "image_hosts",
            "strict_model",
            "idle_unload",
            panel="HTTP",
        ),
    ],
    handles: Annotated[HandleLimits, Fields("seconds", "count", "size", panel="Uploaded pictures")],
    documents: Annotated[
        DocumentLimits, Fields("pages", "seconds", "request_seconds", "memory", panel="Documents and videos")
    ],
    responses: Annotated[ResponseLimits, Fields("seconds", "count", "size", panel="Kept responses")],
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve a page for browsers at /.")] = True,
    offline: Offline = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines of JSON.")] = False,
    log_level: Annotated[str, typer.Option(help="Log level: debug, info, warning or error.")] = "info",
) -> None:
    """Serve models over HTTP with the APIs of OpenAI, Anthropic and Ollama.

    The first model is loaded at the start, others when a request names them. When memory is short, the model that was
    not used for longest is unloaded.
    """
    if log_level not in ("debug", "info", "warning", "error"):
        raise RequestError("must be debug, info, warning or error", "--log-level")
    settings = replace(settings, page=page, handles=handles, documents=documents, responses=responses)
    has_key = settings.api_key is not None
    serve_models(
        partial(served_models, models or (), every, memory=memory),
        replace(options, document_limits=documents),
        settings,
        offline=offline,
        log_json=log_json,
        log_level=log_level,
        ready=lambda pool, url: _announce(pool, url, has_key=has_key, has_page=page),
    )


def serve_models(
    locate: Callable[[LoadOptions], Served],
    options: LoadOptions,
    settings: Settings,
    *,
    offline: bool,
    log_json: bool,
    log_level: str,
    ready: Callable[[Models, str], None],
    ports: Sequence[int] = (),
    load_first: bool = True,
) -> None:
    """Serve the models that `locate` returns until the process is asked to stop.

    `ready` is called with them and the address once the server answers; the first model is loaded by then, unless
    `load_first` is false. With `ports`, the first free one of them is taken. Sockets that a service manager passes on
    are served instead of the address in `settings`.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise PocketVLMError(f"{', '.join(missing)} is not installed; {install_extra('server')}")
    from pocketvlm.server import logs, run
    from pocketvlm.server.service_manager import passed_sockets

    passed = passed_sockets()
    settings = run.adopt(passed, settings)
    if offline:
        from pocketvlm.system import offline as network

        if not is_loopback(settings.host) or settings.image_hosts:
            raise RequestError("cannot be combined with another --host or with --allow-image-host", "--offline")
        network.enforce()
    from pocketvlm.system.allocator import freeze_garbage_collector, return_large_blocks
    from pocketvlm.system.limits import require_files, require_threads

    return_large_blocks()
    logs.set_up(as_json=log_json, level=log_level)
    # Before the model is loaded, so that a port in use is reported at once.
    sockets = passed or [run.listen_on_first(settings, ports) if ports else run.listen(settings)]
    from pocketvlm.server.app import Service
    from pocketvlm.server.models import Models

    with ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(sock)
        options = replace(options, supervised=True)
        served = locate(options)
        settings = replace(settings, slots=options.parallel, max_pixels=served.max_pixels)
        require_files(_FILES + _FILES_OF_ENGINE * len(served.sources))
        require_threads(_THREADS + _THREADS_OF_ENGINE * len(served.sources))
        pool = Models(served.sources, settings, served.memory)
        try:
            if load_first:
                with waiting("loading"):
                    pool.first.adopt(served.sources[0].load())
            url = run.url_of(sockets[0])
            service = Service(pool, settings)
            freeze_garbage_collector()
            run.serve(service, settings, run.Listening(sockets, passed=bool(passed)), lambda: ready(pool, url))
        finally:
            pool.close()


def _announce(models: Models, url: str, *, has_key: bool, has_page: bool) -> None:
    """Print where the server listens, and a first request to paste."""
    content = [{"type": "text", "text": "What is in the picture?"}]
    if models.first.facts.vision:
        content.append({"type": "image_url", "image_url": _RED_SQUARE})
    body = json.dumps({"messages": [{"role": "user", "content": content}]})
    authorization = ' -H "Authorization: Bearer $POCKETVLM_API_KEY"' if has_key else ""
    names = ", ".join(shortened(model.name) for model in models)
    try_it = f"Open {url} in a browser, or try" if has_page else "Try"
    typer.echo(f"pocketvlm serves {names} at {url}/v1 (Ctrl-C stops it). {try_it}:\n")
    typer.echo(f"curl {url}/v1/chat/completions{authorization} -H 'Content-Type: application/json' -d '{body}'\n")
    sys.stdout.flush()
