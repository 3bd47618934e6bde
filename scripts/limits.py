"""Run iota under small limits: `.venv/bin/python scripts/limits.py [addresses|files|memory|threads ...]`.

Addresses (`ulimit -v`) and memory are in MB, memory and threads are those of a control group (as root, on Linux). Each
limit is set for `pocketvlm chat` with a picture, and for `pocketvlm serve` with one request. The outcomes:

    answer    the right one
    refused   one line on standard error and exit code 2; of a running server, a reply in JSON, after which it lives on
    killed    by the kernel before a model could be loaded or in a chat, and one line that says so
    BAD       anything else: a traceback, several lines, a signal, no end

Outcomes are kept in build/limits.jsonl. Run the script again to continue; remove the file to start again.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE, QUESTION, ANSWER = ROOT / "docs" / "sample.png", "How many shapes are there?", "2"
RESULTS = ROOT / "build" / "limits.jsonl"
PATIENCE = 60.0  # seconds until a run counts as one without an end
LIMITS: dict[str, Sequence[int]] = {
    "addresses": range(200, 901, 20),
    "files": (*range(8, 17), 20, 24, 32, 48, 64),
    "memory": range(60, 401, 20),
    "threads": (*range(1, 17), 20, 24, 32),
}
COMMANDS = ("chat", "serve")
_MB = 1 << 20
# The group and its limit, in version 1 and 2.
_GROUPS = {
    "memory": (("memory", "memory.limit_in_bytes"), ("", "memory.max")),
    "threads": (("pids", "pids.max"), ("", "pids.max")),
}
_CGROUPS = Path("/sys/fs/cgroup")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kinds", nargs="*", metavar="KIND", choices=[*LIMITS, []], help="all kinds by default")
    options.add_argument("--command", choices=COMMANDS, help="both by default")
    options.add_argument("--values", type=int, nargs="+", help="limits to set, instead of the usual ones")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    arguments = options.parse_args()
    until = time.monotonic() + arguments.seconds
    commands = [arguments.command] if arguments.command else COMMANDS
    results = _read(arguments.results)
    for kind in arguments.kinds or LIMITS:
        if reason := unavailable(kind):
            print(f"{kind}: skipped, because {reason}")
            continue
        values = arguments.values or LIMITS[kind]
        for command in commands:
            for value in values:
                if (kind, command, value) not in results and time.monotonic() < until:
                    outcome = results[kind, command, value] = run(kind, command, value)
                    with arguments.results.open("a") as file:
                        file.write(json.dumps([kind, command, value, outcome]) + "\n")
            known = [(value, results[kind, command, value]) for value in values if (kind, command, value) in results]
            print(f"{kind}, {command}: {summary(known)}", flush=True)
    sys.exit(any(outcome.startswith("BAD") for outcome in results.values()))


def _read(path: Path) -> dict[tuple[str, str, int], str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(kind, command, value): outcome for kind, command, value, outcome in lines}


def summary(outcomes: Sequence[tuple[int, str]]) -> str:
    """Join neighbours of the same outcome."""
    runs = []
    for outcome, same in groupby(outcomes, key=lambda pair: pair[1]):
        values = [value for value, _ in same]
        runs.append(f"{values[0]}{f' to {values[-1]}' if len(values) > 1 else ''} {outcome}")
    return "; ".join(runs)


def run(kind: str, command: str, value: int) -> str:
    """Return the outcome of a command under one limit."""
    with limited(kind, value) as limit, tempfile.TemporaryDirectory(prefix="pocketvlm-limits-") as folder:
        # Nothing is remembered: the first run on a machine measures the encoders, and needs most.
        environment = {**os.environ, "XDG_CACHE_HOME": folder, "PYTHONUNBUFFERED": "1"}
        return (chat if command == "chat" else serve)(limit, environment, Path(folder))


def chat(limit: Callable[[], None], environment: dict[str, str], folder: Path) -> str:
    with started(["chat", QUESTION, "-i", str(PICTURE)], limit, environment, folder) as process:
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return f"BAD no end: {_last(_errors(folder))}"
        errors = _errors(folder)
        if code == 0 and _output(folder).strip() == ANSWER and not _is_noise(errors):
            return "answer"
        return _refusal(code, folder)


def serve(limit: Callable[[], None], environment: dict[str, str], folder: Path) -> str:
    with started(["serve", "--port", "0", "--log-level", "warning"], limit, environment, folder) as process:
        until = time.monotonic() + PATIENCE
        while not (port := re.search(r"at http://127\.0\.0\.1:(\d+)/v1", _output(folder))):
            if (code := process.poll()) is not None:
                return _refusal(code, folder)
            if time.monotonic() > until:
                return f"BAD no start: {_last(_errors(folder))}"
            time.sleep(0.05)
        try:
            reply = _ask(int(port[1]))
        except (OSError, http.client.HTTPException) as error:
            ended = f" with {process.returncode}" if process.poll() is not None else ""
            return f"BAD no reply{ended}: {error!r}: {_last(_errors(folder))}"
        try:
            _get(int(port[1]), "/health")
        except (OSError, http.client.HTTPException) as error:
            return f"BAD not alive: {error!r}: {_last(_errors(folder))}"
        process.terminate()
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return "BAD no stop"
    errors = _errors(folder)
    if _is_noise(errors) or code:
        return f"BAD {reply}, ended with {code}: {_last(errors)}"
    return reply


def _ask(port: int) -> str:
    url = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    body = json.dumps({"messages": [{"role": "user", "content": content}]})
    status, reply = _get(port, "/v1/chat/completions", body)
    if status == 200:
        text = reply["choices"][0]["message"]["content"]
        return "answer" if text == ANSWER else f"BAD answer {text!r}"
    return f"refused ({status} {reply['error']['code']})"


def _get(port: int, path: str, body: str | None = None) -> tuple[int, dict[str, dict[str, str]]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@contextmanager
def started(
    arguments: list[str], limit: Callable[[], None], environment: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command with its output in `folder`. It is killed at the end if it still runs, with its children."""
    command = [sys.executable, "-m", "pocketvlm", *arguments]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
            preexec_fn=limit,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _output(folder: Path) -> str:
    return (folder / "out").read_text(errors="replace")


def _errors(folder: Path) -> list[str]:
    return (folder / "err").read_text(errors="replace").splitlines()


def _refusal(code: int, folder: Path) -> str:
    until = time.monotonic() + 2
    while code == -signal.SIGKILL and not _errors(folder) and time.monotonic() < until:
        time.sleep(0.05)  # another process writes the line
    errors = _errors(folder)
    if code == -signal.SIGKILL and len(errors) == 1 and errors[0].startswith("error: the kernel ended"):
        return "killed"
    if code == 2 and len(errors) == 1 and errors[0].startswith("error: "):
        return "refused"
    return f"BAD ended with {code} and {len(errors)} lines: {_last(errors)}"


def _is_noise(errors: list[str]) -> bool:
    """Return whether these are more than a few notes of one line each."""
    return len(errors) > 3 or any(re.search("traceback|libgomp|openblas|terminate", line, re.I) for line in errors)


def _last(lines: list[str]) -> str:
    return re.sub(r"\d{3,}", "N", lines[-1])[:150] if lines else ""


# --- limits


def unavailable(kind: str) -> str | None:
    """Return why limits of a kind cannot be set here; None if they can."""
    if kind not in _GROUPS:
        return None
    try:
        with limited(kind, LIMITS[kind][-1]):
            return None
    except OSError as error:
        return f"a control group cannot be made here: {error}"


@contextmanager
def limited(kind: str, value: int) -> Iterator[Callable[[], None]]:
    """Yield a function for a child process, which puts it under the limit."""
    if kind in _GROUPS:
        with group(kind, value * _MB if kind == "memory" else value) as folder:
            yield lambda: _join(folder)
    else:
        name, size = (resource.RLIMIT_AS, value * _MB) if kind == "addresses" else (resource.RLIMIT_NOFILE, value)
        yield lambda: resource.setrlimit(name, (size, size))


@contextmanager
def group(kind: str, value: int) -> Iterator[Path]:
    """Make a control group with a limit, and remove it at the end. Raises OSError where that is not allowed."""
    controller, limit = next(
        (pair for pair in _GROUPS[kind] if pair[0] and (_CGROUPS / pair[0]).is_dir()), _GROUPS[kind][1]
    )
    folder = _CGROUPS / controller / f"pocketvlm-limits-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / limit).write_text(str(value))
        yield folder
    finally:
        until = time.monotonic() + PATIENCE
        while folder.exists() and time.monotonic() < until:  # its last process may still be ending
            with suppress(OSError):
                folder.rmdir()
            time.sleep(0.05)


def _join(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))


if __name__ == "__main__":
    main()
