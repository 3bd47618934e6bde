"""What the documentation shows exists and runs. docs/server.md runs in tests/server/test_docs.py."""

from __future__ import annotations

import ast
import dataclasses
import re
import runpy
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import pocketvlm
from pages import PAGES, ROOT, Block, blocks, furnish, name_of, run, runnable
from pocketvlm.system.option_names import with_flags

HOOKS = runpy.run_path(str(ROOT / "scripts" / "docs_hooks.py"))
SOURCES = ("runtime", "converters", "models", "scripts")
FAST = {"docs/tutorial.md"}
ELSEWHERE = {"docs/server.md"}
COLUMNS = 120
FOLDERS = "tests|docs|runtime|converters|models|scripts|benchmarks|examples|cmake|service"
# Of other programs.
OPTIONS = set(
    "--architecture --build --build-arg --check --ctx-checkpoints --data-binary --find-links --install --no-deps "
    "--no-index --pip-args --python-version --target --user".split()
)


@cache
def commands() -> dict[str, Any]:
    by_name: dict[str, Any] = HOOKS["commands"]()
    return by_name


def prose(page: Path) -> str:
    """The text without code blocks and comments."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


# ---- what runs


def to_run() -> list[Any]:
    return [
        pytest.param(page, id=name_of(page), marks=[] if name_of(page) in FAST else pytest.mark.slow)
        for page in PAGES
        if name_of(page) not in ELSEWHERE and runnable(page)
    ]


@pytest.mark.parametrize("page", to_run())
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    furnish(tmp_path)
    run(runnable(page), tmp_path)


def test_the_first_screen_runs(tmp_path: Path) -> None:
    furnish(tmp_path)
    first, second, *_ = runnable(ROOT / "README.md")
    assert (first.language, second.language) == ("console", "python")
    printed = run([first, second], tmp_path).splitlines()
    assert printed[-1] == printed[1]


def test_a_failing_block_fails(tmp_path: Path) -> None:
    for block in (
        Block("sh", "true\nfalse\ntrue\n", run=True),
        Block("python", "raise SystemExit(1)", run=True),
        Block("console", "$ echo one\ntwo\n", run=True),
    ):
        with pytest.raises(AssertionError):
            run([block], tmp_path)


def test_console_blocks_are_compared(tmp_path: Path) -> None:
    assert "one" in run([Block("console", "$ echo one\none\n$ echo two\ntwo\n", run=True)], tmp_path)


# ---- what exists


def calls(command: str) -> list[list[str]]:
    """The words after `pocketvlm`, for each of its calls in a line of shell."""
    called: list[list[str]] = []
    inside = False
    for word in shlex.split(command, comments=True):
        if word.rpartition("/")[2] == "pocketvlm":
            called.append([])
            inside = True
        elif word in ("|", ">", "<", "&&", ";"):
            inside = False
        elif inside:
            called[-1].append(word)
    return called


def check(words: list[str]) -> None:
    """Parse `words` as the command line does; raises its usage error."""
    if words[0] in ("--help", "--version"):
        return
    assert words[0] in commands(), f"there is no command {words[0]}"
    commands()[words[0]].make_context(words[0], list(words[1:]))


def test_command_lines_parse() -> None:
    for page in PAGES:
        for words in (words for block in blocks(page) for command in block.commands for words in calls(command)):
            if words:
                with saying(f"{name_of(page)}: {' '.join(words)}"):
                    check(words)


@contextmanager
def saying(what: str) -> Iterator[None]:
    """Name what fails."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what}: {error}") from error


def test_wrong_command_lines_are_found() -> None:
    assert calls("cat x | pocketvlm chat 'a b' -i - > y  # why") == [["chat", "a b", "-i", "-"]]
    with pytest.raises(AssertionError, match="no command"):
        check(["serv"])
    for wrong in (["chat", "--no-such-option"], ["plan", "--ctx", "many"], ["inspect"]):
        with pytest.raises(Exception, match=r"[Nn]o such option|valid integer|Missing"):
            check(wrong)


def test_options_exist() -> None:
    parameters = [parameter for command in commands().values() for parameter in command.params]
    known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    for page in PAGES:
        spans = " ".join(re.findall(r"`([^`]+)`", prose(page)))
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", spans))
        assert options <= known | OPTIONS | {"--help", "--version"}, name_of(page)


def test_paths_exist() -> None:
    for page in PAGES:
        if name_of(page) != "CHANGELOG.md":
            spans = re.findall(rf"`((?:{FOLDERS})/[^`\s]*)`", prose(page))
            names = [span for span in spans if not re.search(r"[A-Z]{2,}|[*<]", span.removesuffix("README.md"))]
            assert not [name for name in names if not (ROOT / name).exists()], name_of(page)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    targets |= {".venv/.dev", ".venv/.demo", ".venv/.bench"}
    for page in PAGES:
        lines = [command for block in blocks(page) for command in block.commands]
        lines += re.findall(r"`(make [^`]+)`", prose(page))
        for line in lines:
            words = shlex.split(line, comments=True)
            if words and words[0] == "make":
                named = [word for word in words[1:] if "=" not in word]
                assert set(named) <= targets, f"{name_of(page)}: {line}"


def test_environment_variables() -> None:
    """The page lists what the code reads and sets, and nothing else of ours."""
    text = (ROOT / "docs" / "reference" / "environment.md").read_text("utf-8")
    used: set[str] = set()
    for path in (path for source in SOURCES for path in (ROOT / source).rglob("*.py")):
        source = path.read_text("utf-8")
        if re.search(r"environ\b|envvar", source):
            nodes = ast.walk(ast.parse(source))
            texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            used |= {text for text in texts if re.fullmatch(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+|CC|CXX|LOCALAPPDATA", text)}
    listed = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", text))
    # scripts/setup_venv.py sets the first two for pip and its build, scripts/wheels.py one for apt, scripts/clients one
    # for a client. The last two are names of os.sysconf and sysconfig.
    others = {
        "PIP_DISABLE_PIP_VERSION_CHECK",
        "SKBUILD_BUILD_DIR",
        "APT_CONFIG",
        "LLM_USER_PATH",
        "SC_CLK_TCK",
        "HOST_GNU_TYPE",
    }
    assert used - listed <= others
    ours = {name for name in listed if name.startswith("POCKETVLM")}
    assert ours <= used


@cache
def messages() -> tuple[str, ...]:
    """The texts in the code; what is filled in is a NUL."""
    texts: list[str] = []
    for path in (path for source in SOURCES for path in (ROOT / source).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return tuple(texts)


@pytest.mark.parametrize(
    "message", re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
)
def test_the_code_has_the_message(message: str) -> None:
    pattern = re.compile(".*".join(map(re.escape, message.split("..."))), re.DOTALL)
    options = ("force", "keep_unproven")  # as the command line shows them
    assert any(pattern.search(with_flags(text, options)) for text in messages())


def test_the_options_of_load_are_documented() -> None:
    listed = re.findall(r"^`(\w+)` = `", HOOKS["load_options"](), re.MULTILINE)
    assert sorted(listed) == sorted(field.name for field in dataclasses.fields(pocketvlm.LoadOptions))


def test_the_public_names_are_documented() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    documented = re.findall(r"^::: ([\w.]+)$", "\n".join(page.read_text("utf-8") for page in pages), re.MULTILINE)
    names = {f"pocketvlm.{name}" for name in pocketvlm.__all__ if not name.endswith("Error")}
    names |= {f"pocketvlm.bench.{name}" for name in pocketvlm.bench.__all__}
    assert sorted(documented) == sorted(names - {"pocketvlm.bench", "pocketvlm.__version__"})


# ---- how it is written


def test_dropped_words() -> None:
    for page in PAGES:
        words = r"\b(?:tells?|told|nobody|whoever|so many|mend|mends|mended|aside)\b"
        assert not re.findall(words, prose(page)), name_of(page)


def test_lines_are_short() -> None:
    for page in PAGES:
        lines = page.read_text("utf-8").splitlines()
        long = [number for number, line in enumerate(lines, 1) if len(line) > COLUMNS]
        assert not long, f"{name_of(page)}: lines {long} have more than {COLUMNS} columns"


def test_what_does_not_run_says_why() -> None:
    for page in PAGES:
        said = page.read_text("utf-8").count("<!-- not run")
        assert said == sum(not block.run for block in blocks(page)), name_of(page)
