"""Options are written once: as fields that check themselves, and of which the command line is made."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from pocketvlm import VLM, LoadOptions, RequestError
from pocketvlm.cli.command_options import Fields, expand_options
from pocketvlm.cli.commands import app
from pocketvlm.engine.interface import EngineOptions
from pocketvlm.system.options import MEBIBYTES, Option, check_options, describe, option_fields


@dataclass(frozen=True)
class Oven:
    heat: Annotated[int, Option("Heat in degrees.", least=0, most=250)] = 180
    seconds: Annotated[float, Option("How long.", above=0)] = 60.0
    size: Annotated[int | None, Option("Room in {unit}.", ("--room",), MEBIBYTES, least=1)] = None
    mode: Annotated[Literal["fan", "grill", "both"], Option("What turns.")] = "fan"
    trays: Annotated[tuple[str, ...], Option("A tray; may be repeated.", ("--tray",))] = ()
    recipe: Annotated[str | Path | None, Option("A file.")] = None
    light: bool = False  # not an option

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("heat", 251, "must be from 0 to 250"),
        ("heat", True, "must be a whole number"),
        ("heat", None, "must be a whole number"),
        ("seconds", 0, "must be more than 0"),
        ("seconds", float("nan"), "must be more than 0"),
        ("seconds", "long", "must be a number"),
        ("size", 0, "must be at least 1"),
        ("mode", "steam", "invalid value 'steam'; use fan, grill or both"),
    ],
)
def test_a_value_that_is_not_valid(name: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        Oven(**{name: value})
    assert (refused.value.param, refused.value.message) == (name, message)


def run(arguments: list[str]) -> tuple[list[Any], Any]:
    """What a command got that offers the oven's fields, and what was printed."""
    received: list[Any] = []

    def bake(
        dish: Annotated[str, typer.Argument()],
        *,
        oven: Annotated[Oven, Fields("heat", "size", "mode", "trays", "recipe", heat=200)],
        quick: bool = False,
    ) -> None:
        """Bake."""
        received.extend([dish, oven, quick])

    app = typer.Typer()
    app.command()(expand_options(bake))
    return received, CliRunner().invoke(app, arguments)


def test_a_command_gets_the_dataclass() -> None:
    received, _ = run(["pie"])
    assert received == ["pie", Oven(heat=200), False]
    received, _ = run("pie --heat 90 --room 3 --mode both --tray a --tray b --recipe x.md --quick".split())
    assert received == ["pie", Oven(90, 60.0, 3 << 20, "both", ("a", "b"), "x.md"), True]


def test_a_command_names_the_option_that_is_wrong() -> None:
    _, result = run(["pie", "--room", "-1"])
    assert isinstance(result.exception, RequestError)
    assert str(result.exception) == "--room: must be at least 1"


def test_help_has_the_unit_and_the_default() -> None:
    _, result = run(["--help"])
    shown = " ".join(result.output.split())
    assert "Room in MiB." in shown and "200" in shown and "--seconds" not in shown and "--light" not in shown
    assert "    size = None: Room in bytes." in describe(Oven)


def test_load_options_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(RequestError, match="vision: invalid value 'x'; use auto, gguf or onnx"):
        VLM.load("nowhere", vision="x")
    with pytest.raises(RequestError, match="parallel"):
        VLM.load("nowhere", LoadOptions(threads=1), parallel=0)
    with pytest.raises(TypeError, match="paralel"):
        VLM.load("nowhere", paralel=1)  # type: ignore[call-arg]
    with pytest.raises(FrozenInstanceError):
        LoadOptions().threads = 2  # type: ignore[misc]


def test_every_load_option_is_a_keyword_with_help() -> None:
    names = {field.name for field in fields(LoadOptions)}
    parameters = inspect.signature(VLM.load).parameters
    assert set(parameters) == names | {"target", "options"}
    assert set(option_fields(LoadOptions)) == names
    for name, field in option_fields(LoadOptions).items():
        assert field.help(command_line=True).endswith(".") and parameters[name].default == field.default
        assert f"    {name} = " in str(LoadOptions.__doc__)


def test_options_win_over_defaults_and_keywords_over_options(iota_bundle: Path) -> None:
    options = LoadOptions(context_size=256, threads=1, vision="gguf", name="mine")
    with VLM.load(iota_bundle, options, context_size=512) as vlm:
        assert (vlm.info.context_size, vlm.info.name) == (512, "mine")


def test_the_engine_gets_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = LoadOptions(model="m.gguf", parallel=3, picture_cache=Path("kept"))
    assert options.engine_options() == EngineOptions(parallel=3, picture_cache=str(tmp_path / "kept"))


@pytest.mark.parametrize("command", ["chat hi", "batch docs", "serve --port 0"])
@pytest.mark.parametrize("exact", [True, False])
def test_commands_pass_exact_on(command: str, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LoadedError(Exception):
        pass

    def load(_target: Any, options: LoadOptions) -> VLM:
        raise LoadedError(options.exact)

    monkeypatch.setattr(VLM, "load", load)
    arguments = command.split() + ["-o", str(tmp_path / "out.jsonl"), "--prompt", "?"] * command.startswith("batch")
    result = CliRunner().invoke(app, [*arguments, *["--exact"] * exact])
    assert isinstance(result.exception, LoadedError), result.output
    assert result.exception.args == (exact,)
