"""How to load a model: every option, for Python and for the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ParamSpec, Protocol, TypeVar

from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.engine.options import EngineOptions
from pocketvlm.pictures.handles import HandleLimits
from pocketvlm.pictures.images import MAX_PIXELS
from pocketvlm.system.options import MEGAPIXELS, Option, describe

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class LoadOptions(EngineOptions):
    """The options of `VLM.load`. They are also the options of the command line, with the same defaults.

    Raises RequestError, whose `param` names the option, for a value that is not valid.
    """

    model: Annotated[
        str | Path | None, Option("Language model as a .gguf file, to load it without a bundle; goes with `mmproj`.")
    ] = None
    mmproj: Annotated[str | Path | None, Option("Vision encoder of a .gguf model: a .gguf or .onnx file.")] = None
    supervised: Annotated[
        bool,
        Option("Run the model in a process of its own, which is started again if native code crashes or hangs."),
    ] = False
    verify: Annotated[bool, Option("Compare the files of a bundle with their hashes.")] = True
    max_pixels: Annotated[int, Option("Largest picture, in {unit}.", unit=MEGAPIXELS, least=1)] = MAX_PIXELS
    max_image_tokens: Annotated[int | None, Option("Most tokens of one picture.", least=1)] = None
    handle_limits: Annotated[HandleLimits | None, Option("Limits for the pictures of `VLM.add_image`.")] = None
    document_limits: Annotated[DocumentLimits | None, Option("Limits for PDFs and other files of pages.")] = None
    name: Annotated[str | None, Option("Name of the model in answers, instead of its own.", flags=("--alias",))] = None
    calibration: Annotated[
        str | Path | None, Option("File of `pocketvlm decide --calibrate`, for the probabilities of decisions.")
    ] = None
    session: Annotated[
        str | Path | None, Option("File that `VLM.save` has written; `VLM.conversation` goes on from it.")
    ] = None

    def engine_options(self) -> EngineOptions:
        """Return the options of the engine alone. The path of the picture cache is absolute."""
        values = {field.name: getattr(self, field.name) for field in fields(EngineOptions)}
        if self.picture_cache is not None:
            values["picture_cache"] = str(Path(self.picture_cache).absolute())
        return EngineOptions(**values)


LoadOptions.__doc__ = f"{inspect.cleandoc(LoadOptions.__doc__ or '')}\n\n{describe(LoadOptions)}"


class Load(Protocol[P, T_co]):
    """A function that loads a model; P are its keywords."""

    def __call__(
        self, target: str | Path | None = None, options: LoadOptions | None = None, *args: P.args, **keywords: P.kwargs
    ) -> T_co: ...


def accepts_fields_of(options: Callable[P, LoadOptions]) -> Callable[[Callable[..., T]], Load[P, T]]:
    """Show the fields of `options` as the keywords of a class method that takes **keywords.

    Type checkers, editors and `help` then know them, although they are written in the dataclass alone.
    """

    def decorate(method: Any) -> Any:
        own = inspect.signature(method.__func__)
        named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        keywords = [p.replace(annotation=p.empty) for p in inspect.signature(options).parameters.values()]
        method.__func__.__signature__ = own.replace(parameters=[*named, *keywords])
        return method

    return decorate
