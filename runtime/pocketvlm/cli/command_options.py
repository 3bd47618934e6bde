"""Options of commands: made of the fields of options dataclasses, or shared by several commands."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.help import ANSWERS, ENGINE, PICTURES
from pocketvlm.errors import RequestError
from pocketvlm.system.options import OptionField, option_fields

# ---- options of several commands that are not fields

MODEL_HELP = "Bundle, .gguf file or name of a pulled model; by default iota, the model in the box."
Model = Annotated[str | None, typer.Option("-m", "--model", help=MODEL_HELP)]
ModelArgument = Annotated[str | None, typer.Argument(help=MODEL_HELP)]
MorePictures = Annotated[
    list[str] | None,
    typer.Option("-i", "--image", metavar="PICTURE...", help="Pictures, too: all files that follow, as *.png."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Memory budget, e.g. 4G or 512M: context, vision encoder and tokens of pictures are chosen to fit.",
        rich_help_panel=ENGINE,
    ),
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of an answer.", rich_help_panel=ANSWERS)]
Temperature = Annotated[
    float | None, typer.Option(help="Sampling temperature; 0, the default, is greedy.", rich_help_panel=ANSWERS)
]
Resolution = Annotated[
    str,
    typer.Option(
        help="Resolution of pictures: low, auto (never enlarge) or high (the model's full size).",
        rich_help_panel=PICTURES,
    ),
]

Pages = Annotated[
    str | None,
    typer.Option(
        help="Pages of a PDF or another file of several pictures, such as 1-3,7 or 5-.", rich_help_panel=PICTURES
    ),
]
Password = Annotated[
    str | None,
    typer.Option(
        help="Password of an encrypted PDF.",
        envvar="POCKETVLM_PASSWORD",
        show_envvar=True,
        rich_help_panel=PICTURES,
    ),
]

Fps = Annotated[float | None, typer.Option(help="Frames of each second of a video.", rich_help_panel=PICTURES)]
Changes = Annotated[
    bool,
    typer.Option(
        "--changes",
        help="Leave out frames of a video in which nothing moves (1 a second, or --fps).",
        rich_help_panel=PICTURES,
    ),
]
Frames = Annotated[
    int | None, typer.Option(help="Frames of a video, at even times; by default 8.", rich_help_panel=PICTURES)
]


Choice = Annotated[
    list[str] | None,
    typer.Option("--choice", help="An answer to decide between; give at least two.", rich_help_panel=ANSWERS),
]
YesNo = Annotated[bool, typer.Option("--yes-no", help="Decide between yes and no.", rich_help_panel=ANSWERS)]
Scale = Annotated[
    str | None,
    typer.Option(
        "--scale", metavar="0-10", help="Decide on a whole number from the first to the last.", rich_help_panel=ANSWERS
    ),
]


def given_choices(choice: list[str] | None, yes_no: bool, scale: str | None) -> dict[str, Any]:
    """Return the choices of a command line as keywords of `choices_of`; none where it names none.

    Raises RequestError that names the option.
    """
    from pocketvlm.decisions.choices import scale_of, texts_of

    flags = {"choices": ("--choice", choice), "yes_no": ("--yes-no", yes_no or None), "scale": ("--scale", scale)}
    given = {name: value for name, (_, value) in flags.items() if value is not None}
    if len(given) > 1:
        first, second = (flags[name][0] for name in [*given][:2])
        raise RequestError(f"cannot be combined with {first}", second)
    try:
        if choice is not None:
            texts_of(choice)
        elif scale is not None:
            numbers = scale_of(scale).numbers
            return {"scale": [numbers[0], numbers[-1]]}
    except RequestError as error:
        raise RequestError(error.message, "--scale" if scale is not None else "--choice") from None
    return given


def check_detail(*details: str) -> None:
    from pocketvlm.messages import Detail

    for detail in details:
        if detail not in get_args(Detail):
            raise RequestError(f"must be low, auto or high, not {detail}", "--detail")


# ---- fields of options dataclasses


@dataclass(frozen=True, init=False)
class Fields:
    """The fields of a dataclass that a command offers, in the order of --help. `defaults` replace the dataclass's.

    They stand in the `panel` of --help.
    """

    names: tuple[str, ...]
    panel: str
    defaults: dict[str, Any]

    def __init__(self, *names: str, panel: str = ENGINE, **defaults: Any) -> None:
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "panel", panel)
        object.__setattr__(self, "defaults", defaults)


# How commands that answer many requests load their model.
ManyRequests = Annotated[
    LoadOptions,
    Fields(
        "mmproj",
        "vision",
        "device",
        "context_size",
        "parallel",
        "threads",
        "exact",
        "cache_type",
        "max_pixels",
        "calibration",
        parallel=2,
    ),
]


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace parameters that are `Annotated[<options dataclass>, Fields(...)]` by one option for each field.

    The command gets the dataclass. A value that the dataclass refuses is reported by the option's name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, _Group] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        fields = next((extra for extra in getattr(hints[name], "__metadata__", ()) if isinstance(extra, Fields)), None)
        if fields is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
        else:
            groups[name] = _Group(hints[name].__origin__, fields)
            parameters += groups[name].parameters()

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group.pop(values)
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    return run


class _Group:
    """The options that stand for one dataclass."""

    def __init__(self, options: type[Any], fields: Fields) -> None:
        self._options = options
        self._panel = fields.panel
        known = option_fields(options)
        self._fields = {
            _parameter_name(known[name]): replace(known[name], default=fields.defaults.get(name, known[name].default))
            for name in fields.names
        }

    def parameters(self) -> Iterator[inspect.Parameter]:
        for name, field in self._fields.items():
            annotation = _annotation(field, self._panel)
            default = _shown_default(field)
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def pop(self, values: dict[str, Any]) -> Any:
        """Remove the group's values from those of the command line, and return the dataclass made of them."""
        arguments = {
            field.name: _from_command_line(field, values.pop(name, _shown_default(field)))
            for name, field in self._fields.items()
        }
        try:
            return self._options(**arguments)
        except RequestError as error:
            flag = next((field.flags[0] for field in self._fields.values() if field.name == error.param), error.param)
            raise RequestError(error.message, flag) from None


def _parameter_name(field: OptionField) -> str:
    return field.flags[0].removeprefix("--").replace("-", "_")


def _annotation(field: OptionField, panel: str) -> Any:
    kind, metavar = field.type, None
    if get_origin(kind) is Literal:
        kind = str  # the dataclass checks it
    elif get_origin(kind) is tuple:
        kind = list[str] | None
    elif Path in get_args(kind):
        kind, metavar = str, "PATH"
    option = field.option
    return Annotated[
        kind | None if field.optional else kind,
        typer.Option(
            *field.flags,
            help=field.help(command_line=True),
            metavar=metavar,
            envvar=option.envvar,
            rich_help_panel=panel,
        ),
    ]


def _shown_default(field: OptionField) -> Any:
    if field.default == ():
        return None
    return field.default // field.option.unit.factor if field.option.unit and field.default else field.default


def _from_command_line(field: OptionField, value: Any) -> Any:
    if get_origin(field.type) is tuple:
        return tuple(value or ())
    if value is None and field.option.envvar and os.environ.get(field.option.envvar) == "":
        return ""  # click takes it for a variable that is not set, and would serve without the key that was meant
    return value * field.option.unit.factor if field.option.unit and value else value
