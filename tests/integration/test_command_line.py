"""What commands say: help, messages with something to do, facts as a table and as JSON."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from pocketvlm.cli import main
from pocketvlm.cli.catalog import find_catalog
from pocketvlm.cli.commands import app
from pocketvlm.files.locate import iota

ORDER = "chat app read batch serve models pull remove plan convert verify inspect doctor bench".split()


def run(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["pocketvlm", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        else:
            code = 0
    assert isinstance(code, int)
    return code, out.getvalue(), err.getvalue()


def refused(*arguments: str | Path) -> str:
    """Run a command that must end with 2 and one line, and return the line."""
    code, _, err = run(*arguments)
    assert (code, err.count("\n"), err.startswith("error: ")) == (2, 1, True), err
    return err.removeprefix("error: ").rstrip()


@pytest.fixture(scope="module")
def group() -> Any:
    return typer.main.get_group(app)


def shown(group: Any, command: str | None) -> str:
    """The help of a command, or of all, as it is printed."""
    out = io.StringIO()
    with redirect_stdout(out):
        context = typer.Context(group, info_name="pocketvlm")
        if command is None:
            text = group.get_help(context)
        else:
            found = group.get_command(context, command)
            text = found.get_help(typer.Context(found, context, command))
    return out.getvalue() + (text or "")


def test_commands_come_in_the_order_of_use(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = shown(group, None)
    lines = re.findall(r"^│ ([a-z]+) +[A-Z]", text, re.MULTILINE)
    assert [name for name in lines if name in ORDER] == ORDER
    assert [text.index(title) for title in ("Ask about", "Get models", "Make and", "This machine")] == sorted(
        text.index(title) for title in ("Ask about", "Get models", "Make and", "This machine")
    )


@pytest.mark.parametrize("columns", [20, 59, 60, 80])
def test_help_fits_the_terminal(columns: int, group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in (None, *ORDER):
        text = shown(group, command)
        assert "<bool>" not in text and "<str>" not in text and "--help" in text, text
        # A word that is longer than the terminal is not broken.
        long = [line for line in text.splitlines() if len(line) > columns and len(line.split()) > 1]
        assert not long, (command, long)


def test_a_wrong_command_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, _, err = run("pul", "x")
    assert code == 2 and "Did you mean 'pull'?" in err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_errors_without_colour(variable: dict[str, str]) -> None:
    import pty

    code = "from pocketvlm.cli import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    leader, follower = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code, "inspect", "nope.gguf"],
        stderr=follower,
        env=environment | {"TERM": "xterm"} | variable,
        timeout=60,
        check=False,
    )
    os.close(follower)
    printed = os.read(leader, 1000)
    os.close(leader)
    assert b"error: nope.gguf" in printed and (b"\x1b" in printed) is (not variable)


def test_messages_show_options(tmp_path: Path) -> None:
    picture = tmp_path / "large.png"
    Image.new("1", (1500, 1000)).save(picture)
    assert refused("chat", "Hi", picture, "--max-pixels", "1").endswith("or raise the limit with --max-pixels")
    read = run("read", picture, "-o", tmp_path / "large.md", "--max-pixels", "1")
    assert "with --max-pixels" in " ".join(read[2].split())
    mmproj = tmp_path / "mmproj.gguf"
    mmproj.touch()
    assert refused("chat", "Hi", "--mmproj", mmproj).endswith("needs a language model: give --model as well")
    assert refused("chat", "Hi", "-m", iota(), "--mmproj", mmproj).endswith("omit --mmproj")
    assert refused("chat", "Hi", "--temperature", "9") == "--temperature: must be at most 2.0"
    assert refused("convert", tmp_path, "-o", iota(), "--quantize", "iq1_s").endswith("use --imatrix auto or a file")


def test_models_that_were_not_pulled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert find_catalog() is not None, "install pocketvlm again (make .venv/.dev): its entry points have changed"
    told = refused("chat", "Hi", "-m", "smolvlm-256m")
    assert re.fullmatch(
        r"smolvlm-256m: was not pulled yet; get it with: pocketvlm pull smolvlm-256m "
        r"\(0\.\d GB to download, 0\.\d GB when converted\)",
        told,
    ), told
    assert "did you mean smolvlm-" in refused("chat", "Hi", "-m", "smolvlm")
    assert "pocketvlm pull acme/some-model" in refused("inspect", "acme/some-model")
    assert "none of that name was pulled" in refused("chat", "Hi", "-m", "nothing-like-it")
    code, out, _ = run("plan", "smolvlm-256m", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["pulled"] is False and plan["model"] == "smolvlm-256m"
    assert plan["parts"]["vocabulary"] > 1e6 and plan["first_token_s"] is None
    assert plan["memory_bytes"] == sum(plan["parts"].values())
    code, out, _ = run("plan", "smolvlm-256m", "--memory", "100M")
    assert code == 1 and "not pulled, so this is estimated" in out and "is too little" in " ".join(out.split())


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    output = tmp_path / "new"
    for given, words in (
        (iota(), f"is a bundle, which needs no conversion; use it: pocketvlm chat --model {iota()}"),
        (gguf, "is a GGUF file, which needs no conversion; use it: pocketvlm chat --model"),
        ("smolvlm-256m", "is a model of the catalogue; `pocketvlm pull smolvlm-256m` downloads and converts it"),
        ("smolvlm-256", "did you mean smolvlm-256m"),
        ("acme/some-model", "if it is a model of the hub, run: pocketvlm pull acme/some-model"),
        (tmp_path, "has no config.json"),
    ):
        for more in ([], ["--dry-run"]):
            assert words in refused("convert", given, "-o", output, *more)
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("photo.png", "photo.png: is a picture, not a model; ask about it: pocketvlm chat"),
        ("paper", "paper: is a PDF, not a model"),
        ("notes.txt", "notes.txt: is not a GGUF file"),
    ],
)
def test_inspect_of_what_is_no_model(name: str, words: str, sample_png: Path, tmp_path: Path) -> None:
    (tmp_path / "paper").write_bytes(b"%PDF-1.7\n" + bytes(100))
    (tmp_path / "notes.txt").write_text("hello\n" * 100)
    shutil.copy(sample_png, tmp_path / "photo.png")
    assert words in refused("inspect", tmp_path / name)


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON has all that the table shows, and no path is broken, however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", "30")
    code, out, _ = run("doctor")
    assert code == 0 and str(iota()) in out
    report = json.loads(run("doctor", "--json")[1])
    assert {"system", "processor", "library", "host_total", "host_free", "devices"} <= report.keys()
    words = set(re.findall(r"[\w./-]{6,}", json.dumps(report)))
    table = " ".join(out.split())
    for fact in (report["iota"], report["models_folder"], report["features"], report["device"], report["python"]):
        assert fact in table
    for path in re.findall(r"/[\w./-]{6,}", table):
        assert path.rstrip(".;:,") in words, path
    assert report["missing_packages"].keys() >= {"server", "documents", "video"}


def test_remove(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    models = tmp_path / "pocketvlm" / "models"
    assert "no model was pulled" in run("models", "--local")[1]
    for name in ("small", "acme/large"):
        shutil.copytree(iota(), models / name)
    assert refused("remove", "small") == "--yes: is needed where there is no terminal to ask at"
    assert "`pocketvlm models --local` lists them" in refused("remove", "small", "../small", "--yes")
    assert "comes with pocketvlm" in refused("remove", "iota", "--yes")
    listed = json.loads(run("models", "--local", "--json")[1])
    assert [(model["name"], model["last_used"]) for model in listed] == [("acme/large", None), ("small", None)]
    code, out, _ = run("models", "--local")
    assert code == 0 and re.search(r"^small +5\.\d MB  never", out, re.MULTILINE), out
    assert run("remove", "small", "acme/large", "--yes")[1].count("removed ") == 2
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("arguments", [("inspect", "iota"), ("--version",)])
def test_a_reader_that_has_ended(arguments: tuple[str, ...]) -> None:
    """As `pocketvlm ... | head` reads no further."""
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "pocketvlm", *arguments]
        child = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(write)
    assert (child.returncode, child.stderr) == (0, "")
