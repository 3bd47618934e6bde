"""What users may import is listed in one place, and nothing that 0.1 had disappears: options, keywords, JSON keys."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer.main

import pocketvlm
from pocketvlm import VLM, bench, errors, messages

# Recorded from version 0.1: {command: its arguments, and its options as {flags: [default, environment variable]}}, the
# keywords of VLM's methods, and the JSON keys of messages.
NAMES_OF_0_1: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "names_of_0_1.json").read_text("utf-8"))


def in_a_fresh_process(code: str) -> Any:
    """What `code` prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_nothing_else_leaks() -> None:
    code = (
        "import json, pocketvlm\n"
        "names = list(pocketvlm.__all__)\n"
        "for name in names: getattr(pocketvlm, name)\n"
        "star = {}\n"
        "exec('from pocketvlm import *', star)\n"
        "print(json.dumps([names, dir(pocketvlm), [name for name in star if name != '__builtins__']]))\n"
    )
    names, shown, star = in_a_fresh_process(code)
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(shown) == sorted(star)


def test_every_name_is_at_home() -> None:
    """In its module under the same name, with a docstring where it is our class or module."""
    for name in pocketvlm.__all__:
        value = getattr(pocketvlm, name)
        if inspect.isclass(value):
            assert value.__module__.startswith("pocketvlm.") and value.__name__ == name
        if name in ("VLM", "LoadOptions", "bench", "errors"):
            assert value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = pocketvlm.Nothing


def test_all_errors_and_messages_are_public() -> None:
    ours = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert ours | set(messages.__all__) < set(pocketvlm.__all__)
    for name in bench.__all__:
        assert getattr(bench, name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from pocketvlm.vlm import VLM", "use `from pocketvlm import VLM`"),
        ("from pocketvlm.bench.measure import measure", "is now pocketvlm.bench.run"),
    ],
)
def test_old_names_warn(code: str, message: str) -> None:
    sys.modules.pop("pocketvlm.vlm", None)  # imported once, it does not warn again
    names: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, names)
    assert [str(warning.message).endswith(message) for warning in caught] == [True]
    assert names.get("VLM", VLM) is VLM and names.get("measure", bench.run) is bench.run


def test_every_option_of_0_1_is_still_there() -> None:
    from pocketvlm.cli import commands

    root: Any = typer.main.get_command(commands.app)
    for name, recorded in NAMES_OF_0_1["commands"].items():
        command = root.get_command(None, name) if name else root
        arguments = [parameter.name for parameter in command.params if parameter.param_type_name == "argument"]
        assert arguments[: len(recorded["arguments"])] == recorded["arguments"], name
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        for flags, (default, *envvar) in recorded["options"].items():
            wanted = set(flags.split())
            (option,) = [option for option in options if wanted <= {*option.opts, *option.secondary_opts}]
            assert option.default == default, (name, flags)
            assert [option.envvar] == envvar or not envvar, (name, flags)


@pytest.mark.parametrize("name", NAMES_OF_0_1["python"])
def test_every_keyword_of_0_1_is_still_there(name: str) -> None:
    member = getattr(VLM, name.removeprefix("VLM."))
    keywords = set(inspect.signature(member).parameters) if callable(member) else set()
    assert set(NAMES_OF_0_1["python"][name]) <= keywords


@pytest.mark.parametrize("name", NAMES_OF_0_1["json"])
def test_every_key_of_0_1_is_still_there(name: str) -> None:
    keys = {field.alias or key for key, field in getattr(pocketvlm, name).model_fields.items()}
    assert set(NAMES_OF_0_1["json"][name]) <= keys
