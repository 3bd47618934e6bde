"""`pocketvlm serve`: the model over HTTP, as OpenAI's clients ask for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from pocketvlm.cli.loading import (
    PICTURE_FILES_SIZE,
    Device,
    Encoder,
    Memory,
    Mmproj,
    Model,
    PictureCache,
    PictureCacheSize,
    PictureFilesSize,
    Speculate,
    Threads,
    kept,
    loading,
    waiting,
)
from pocketvlm.errors import PocketVLMError, RequestError

if TYPE_CHECKING:
    from pocketvlm.chat.vlm import VLM

_OPTIONS = {  # where they are called otherwise than the field
    "slots": "parallel",
    "allowed_hosts": "allowed-host",
    "allowed_origins": "allow-origin",
    "image_hosts": "allow-image-host",
    "seconds": "image-ttl",
    "count": "image-count",
    "size": "image-store",
}
_NEEDS = ("starlette", "uvicorn", "prometheus_client")
# A red square.
_PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAGAAAABgAQMAAADYVuV7AAAABlBMVEX////cHh7/Hx2WAAAA"
    "IUlEQVR42mNgGAXkAEYGBob/MBYTsswoZ5RDfc4oIA8AAJHeAWAJ6gn/AAAAAElFTkSuQmCC"
)


def serve(
    model: Model = None,
    mmproj: Mmproj = None,
    host: Annotated[str, typer.Option(help="The address to listen on; all but loopback need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes any that is free.")] = 8080,
    alias: Annotated[str | None, typer.Option(help="The name that clients call the model by.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="POCKETVLM_API_KEY", help="The key that clients must send.", show_envvar=True),
    ] = None,
    ctx_size: Annotated[
        int | None, typer.Option(help="Context of a request in tokens; the model's own up to 8192 by default.")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Requests that run together; the others wait.")] = 4,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are refused with 429.")] = 64,
    threads: Threads = None,
    memory: Memory = None,
    vision: Encoder = "auto",
    device: Device = "auto",
    picture_cache_size: PictureCacheSize = None,
    picture_cache: PictureCache = None,
    picture_files_size: PictureFilesSize = PICTURE_FILES_SIZE,
    speculate: Speculate = "auto",
    max_body: Annotated[int, typer.Option(help="Largest request in MiB.")] = 64,
    max_pixels: Annotated[int, typer.Option(help="Largest picture in megapixels.")] = 100,
    read_timeout: Annotated[float, typer.Option(help="Seconds that a request's body may take.")] = 30.0,
    grace: Annotated[float, typer.Option(help="Seconds that running requests get when the server is stopped.")] = 30.0,
    stuck_after: Annotated[
        float, typer.Option(help="Seconds in one step or tile, after which the engine is started again.")
    ] = 600.0,
    allowed_host: Annotated[list[str] | None, typer.Option(help="Another name for the Host header.")] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web pages that may call, as https://example.org, or *.")
    ] = None,
    allow_image_host: Annotated[
        list[str] | None, typer.Option(help="A host that pictures may be fetched from; none by default.")
    ] = None,
    image_ttl: Annotated[float, typer.Option(help="Seconds that a picture keeps its handle, unused.")] = 3600.0,
    image_count: Annotated[int, typer.Option(help="Pictures that may have handles.")] = 256,
    image_store: Annotated[int, typer.Option(help="Memory for their files in MiB.")] = 256,
    offline: Annotated[bool, typer.Option("--offline", help="Forbid this process every address but loopback.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as lines of JSON.")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve a model over HTTP, as OpenAI's chat completions."""
    lacking = [name for name in _NEEDS if find_spec(name) is None]
    if lacking:
        raise PocketVLMError(f'this needs {", ".join(lacking)}: pip install "pocketvlm[server]"')
    if log_level not in ("debug", "info", "warning", "error"):
        raise RequestError("must be debug, info, warning or error", "--log-level")
    from pocketvlm.pictures.handles import HandleLimits
    from pocketvlm.server.settings import MEBIBYTE, Settings, is_loopback
    from pocketvlm.system import offline as network

    with _options_named():
        settings = Settings(
            host=host,
            port=port,
            api_key=api_key,
            slots=parallel,
            queue=queue,
            max_body=max_body * MEBIBYTE,
            max_pixels=max_pixels * 1_000_000,
            read_timeout=read_timeout,
            grace=grace,
            allowed_hosts=tuple(allowed_host or ()),
            allowed_origins=tuple(allow_origin or ()),
            image_hosts=tuple(allow_image_host or ()),
            handles=HandleLimits(image_ttl, image_count, image_store * MEBIBYTE),
        )
    if offline:
        if not is_loopback(host) or allow_image_host:
            raise RequestError("goes with neither --host elsewhere nor --allow-image-host", "--offline")
        network.enforce()
    from pocketvlm.server import logs, run
    from pocketvlm.system.allocator import freeze_garbage_collector, return_large_blocks

    return_large_blocks()
    logs.set_up(as_json=log_json, level=log_level)
    sock = run.listen(settings)  # before the model is loaded: a port that is taken shows at once
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.server.app import Service

    with sock:
        chosen = loading(
            model,
            mmproj,
            memory=memory,
            context_size=ctx_size,
            threads=threads,
            vision=vision,
            device=device,
            parallel=parallel,
            supervised=True,
            max_pixels=settings.max_pixels,
            stuck_after=stuck_after,
            speculate=speculate,
            name=alias,
            **kept(picture_cache_size, picture_cache, picture_files_size),
        )
        settings = replace(settings, max_pixels=chosen["max_pixels"])
        with waiting("loading"):
            vlm = VLM.load(**chosen)
        with vlm:
            url = run.url_of(sock)
            service = Service(vlm, settings)
            freeze_garbage_collector()
            run.serve(service, settings, sock, lambda: _tell(vlm, url, api_key is not None))


@contextmanager
def _options_named() -> Iterator[None]:
    """Settings' fields as who calls the command knows them."""
    try:
        yield
    except RequestError as error:
        name = str(error.param)
        raise RequestError(error.message, f"--{_OPTIONS.get(name, name).replace('_', '-')}") from None


def _tell(vlm: VLM, url: str, key: bool) -> None:
    """Where it listens, and a first request to paste."""
    content = [{"type": "text", "text": "What is in the picture?"}]
    if vlm.info.has_vision:
        content.append({"type": "image_url", "image_url": _PICTURE})
    body = json.dumps({"messages": [{"role": "user", "content": content}]})
    authorization = ' -H "Authorization: Bearer $POCKETVLM_API_KEY"' if key else ""
    typer.echo(f"pocketvlm serves {vlm.info.name} at {url}/v1 (Ctrl-C ends it). Try:\n")
    typer.echo(f"curl {url}/v1/chat/completions{authorization} -H 'Content-Type: application/json' -d '{body}'\n")
    sys.stdout.flush()
