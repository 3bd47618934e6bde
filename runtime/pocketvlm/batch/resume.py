"""Compare the record of a batch with its requests: what is answered, and what is to be asked again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketvlm.batch.file_state import FileState
from pocketvlm.batch.lines import identified, line_id
from pocketvlm.batch.requests import BatchInput, BatchItem
from pocketvlm.batch.results import Entry, Results
from pocketvlm.errors import RequestError, quoted

_NEXT = "use --force to ask again, or another -o"


@dataclass
class Resumption:
    """How many requests have an answer (`moved`: under an earlier name), and which are asked again, and why.

    `gone` has the custom_ids of answers to what is not asked here. They stay in the record.
    """

    answered: int = 0
    moved: int = 0
    failed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    forced: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


def resume(results: Results, batch: BatchInput, fingerprint: str, *, force: bool = False) -> Resumption:
    """Settle what is done of a batch, and which lines of the record are to be replaced.

    A request is asked again if it failed or if a file that it names has other content. Raises RequestError where the
    record has answers of another model, or to another prompt or other options, unless `force` has these asked again.
    """
    summary = Resumption()
    done: set[str] = set()
    changes: dict[str, dict[str, Any] | None] = {}
    new: list[BatchItem] = []
    for item in batch.items:
        entry = results.entries.get(item.custom_id)
        if entry is None:
            new.append(item)
            continue
        changes[item.custom_id] = None
        if (fault := _difference(entry, item.hash, fingerprint)) is not None:
            if not force:
                raise RequestError(fault, str(results.path))
            summary.forced.append(item.custom_id)
        elif entry.status != 200:
            summary.failed.append(item.custom_id)
        elif entry.files and (files := _files_now(entry.files, batch.files(item))) is None:
            summary.changed.append(item.custom_id)
        else:
            done.add(item.custom_id)
            del changes[item.custom_id]
            if entry.files and files != entry.files:  # touched only: the next run need not read them again
                changes[item.custom_id] = {"files": [file and file.to_json() for file in files or ()]}
    asked = {item.custom_id for item in batch.items}
    summary.gone = [custom_id for custom_id in results.entries if custom_id not in asked]
    _check_gone(results, batch, summary.gone, force)
    for item, entry, state in _moved(results, batch, summary.gone, new, fingerprint):
        line = results.line(entry.custom_id) or {}
        renamed = identified({**line, "custom_id": item.custom_id}, item.hash)
        changes[entry.custom_id] = {**renamed, "files": [state.to_json()]}
        done.add(item.custom_id)
        summary.moved += 1
    summary.gone = [custom_id for custom_id in summary.gone if custom_id not in changes]
    summary.answered = len(done)
    results.settle(done, changes)
    return summary


def _difference(entry: Entry, request_hash: str, fingerprint: str) -> str | None:
    """Return what an answer differs in from what this batch would ask; None if in nothing."""
    if entry.id != line_id(request_hash):
        return f"has answers to another prompt, request or option, such as that to {quoted(entry.custom_id)}; {_NEXT}"
    if entry.fingerprint not in (None, fingerprint):
        return f"has answers of another model ({entry.fingerprint}, this is {fingerprint}); use that model, or {_NEXT}"
    return None


def _files_now(before: tuple[FileState | None, ...], paths: Sequence[Path]) -> tuple[FileState | None, ...] | None:
    """Return the states of the files of an answer; None where one has other content than it had."""
    if len(paths) != len(before):
        return before
    states = tuple(state and state.now(path) for state, path in zip(before, paths, strict=True))
    return None if any(was and not now for was, now in zip(before, states, strict=True)) else states


def _check_gone(results: Results, batch: BatchInput, gone: list[str], force: bool) -> None:
    """Raise RequestError where all that the record has are answers to other questions: it is another batch's."""
    if not gone or force or len(gone) < len(results.entries):
        return
    if not any(results.entries[name].id == line_id(batch.defaults.hash(name, "")) for name in gone):
        raise RequestError(
            f"has answers to other requests only, such as that to {quoted(gone[0])}; use another -o", str(results.path)
        )


def _moved(
    results: Results, batch: BatchInput, gone: list[str], new: list[BatchItem], fingerprint: str
) -> list[tuple[BatchItem, Entry, FileState]]:
    """Return pictures under a new name with the answers that they got under another one, which is gone."""
    by_content: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for name in gone:
        entry = results.entries[name]
        same = entry.id == line_id(batch.defaults.hash(name, "")) and entry.fingerprint == fingerprint
        if same and entry.status == 200 and entry.files and len(entry.files) == 1 and entry.files[0]:
            by_content[entry.files[0].size, entry.files[0].sha256].append(entry)
    sizes = {size for size, _ in by_content}
    pairs = []
    for item in new if sizes else []:
        if item.picture is None or not _has_size(item, sizes):
            continue
        state = FileState.of(item.picture)
        if state and (entries := by_content.get((state.size, state.sha256))):
            pairs.append((item, entries.pop(0), state))
    return pairs


def _has_size(item: BatchItem, sizes: set[int]) -> bool:
    try:
        return item.picture is not None and item.picture.stat().st_size in sizes
    except OSError:
        return False
