"""Embeddings in memory and in files: budgets, what is kept, what is dropped."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pocketvlm.errors import PictureCacheError
from pocketvlm.native.context import Aborted
from pocketvlm.vision.embedding_cache import ENTRY, EmbeddingCache, content_of
from pocketvlm.vision.embedding_disk_cache import DiskCache

Rows = npt.NDArray[np.float32]
WIDTH = 32
posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions")


def rows_of(number: int, tokens: int = 4) -> Rows:
    return np.random.default_rng(number).standard_normal((tokens, WIDTH), np.float32)


class Source:
    """Computes, and counts."""

    def __init__(self, cache: EmbeddingCache) -> None:
        self.cache = cache
        self.runs = 0

    def get(self, number: int, tokens: int = 4, name: str | None = None) -> Rows:
        def compute() -> Rows:
            self.runs += 1
            return rows_of(number, tokens)

        rows, tier = self.cache.encode(name or f"slot {number}", tokens, lambda: f"content {number}", compute)
        assert tier in ("none", "memory", "disk")
        assert np.array_equal(rows, rows_of(number, tokens))
        return rows


def held(cache: EmbeddingCache) -> int:
    """Bytes, as they are."""
    return sum(len(entry) if isinstance(entry, str) else entry.nbytes for entry in cache._entries.values())


def test_one_run_for_one_content() -> None:
    source = Source(EmbeddingCache(1 << 20))
    assert source.cache.recall("slot 1") is None
    first = source.get(1)
    assert source.get(1) is first and source.cache.recall("slot 1") is first
    assert source.get(1, name="a blank tile elsewhere") is first
    source.get(2)
    assert source.runs == 2
    found = source.cache.statistics()
    assert (found.encoded, found.from_memory, found.from_disk, found.evictions) == (2, 3, 0, 0)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1


def test_a_known_picture_needs_no_pixels() -> None:
    cache = EmbeddingCache(1 << 20)
    Source(cache).get(1)

    def never() -> Any:
        raise AssertionError

    assert cache.encode("slot 1", 4, never, never)[1] == "memory"


def test_the_budget_is_never_outgrown() -> None:
    rng = Random(0)
    budget = 40_000
    source = Source(EmbeddingCache(budget))
    most = 0
    for _ in range(3000):
        source.get(number := rng.randrange(60), tokens=4 + number)
        told = source.cache.statistics()
        most = max(most, held(source.cache))
        assert held(source.cache) <= told.bytes <= budget
        assert told.bytes == held_with_overhead(source.cache)
    assert most > 0.6 * budget, "it is used"
    told = source.cache.statistics()
    assert told.evictions > 0 and told.encoded == source.runs and told.encoded + told.from_memory == 3000


def held_with_overhead(cache: EmbeddingCache) -> int:
    return sum(ENTRY + (0 if isinstance(entry, str) else entry.nbytes) for entry in cache._entries.values())


def test_who_was_used_last_stays() -> None:
    source = Source(EmbeddingCache(8 * (2 * ENTRY + rows_of(0).nbytes)))
    for number in range(8):
        source.get(number)
    source.get(0)
    source.get(8)
    assert source.runs == 9
    source.get(0)
    assert source.runs == 9
    source.get(1)
    assert source.runs == 10


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    source = Source(EmbeddingCache(10_000))
    source.get(1)
    source.get(2, tokens=1000)
    source.get(1)
    source.get(2, tokens=1000)
    assert source.runs == 3
    assert source.cache.statistics().evictions == 0


def test_no_budget_keeps_nothing() -> None:
    source = Source(EmbeddingCache(0))
    source.get(1)
    source.get(1)
    assert source.runs == 2 and source.cache.statistics().encoded == 2 and not source.cache._entries


def test_clear() -> None:
    source = Source(EmbeddingCache(1 << 20))
    for number in range(5):
        source.get(number)
    source.cache.clear()
    assert source.cache.statistics().bytes == 0 == held(source.cache)
    source.get(1)
    assert source.runs == 6


def test_what_failed_is_not_kept() -> None:
    source = Source(EmbeddingCache(1 << 20))

    def cancelled() -> Rows:
        raise Aborted

    with pytest.raises(Aborted):
        source.cache.encode("slot 1", 4, lambda: "content 1", cancelled)
    assert source.cache.recall("slot 1") is None
    source.get(1)
    assert source.runs == 1


def test_from_many_threads() -> None:
    source = Source(EmbeddingCache(30_000))
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        rng = Random(seed)
        try:
            for _ in range(500):
                number = rng.randrange(30)
                if (rows := source.cache.recall(f"slot {number}")) is not None:
                    assert np.array_equal(rows, rows_of(number))
                source.get(number)
                if rng.random() < 0.01:
                    source.cache.clear()
        except BaseException as error:  # told by the thread that waits
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert source.cache.statistics().bytes == held_with_overhead(source.cache) <= 30_000


def test_contents_tell_tiles_apart() -> None:
    tile = np.zeros((4, 6, 3), np.uint8)
    other = tile.copy()
    other[3, 5, 2] = 1
    shapes = [tile, other, tile.reshape(6, 4, 3), np.zeros((4, 7, 3), np.uint8)]
    assert len({content_of(pixels) for pixels in shapes}) == 4
    assert content_of(np.asfortranarray(other)) == content_of(other)


# ---- files


def cache_in(folder: Path, size: int = 1 << 20, memory: int = 1 << 20, encoder: str = "encoder") -> Source:
    return Source(EmbeddingCache(memory, width=WIDTH, files=DiskCache(folder, size), encoder=encoder))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.emb"))


def age(source: Source, number: int) -> None:
    """Write an entry that is `number` seconds younger than the first: ages that any file system can tell apart."""
    files = source.cache._files
    assert files is not None
    before = set(entries(files._folder))
    source.get(number)
    [new] = set(entries(files._folder)) - before
    os.utime(new, (1000 + number, 1000 + number))


def test_files_outlive_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "pictures"
    cache_in(folder).get(1)
    again = cache_in(folder)
    again.get(1)
    again.get(1)
    assert again.runs == 0
    found = again.cache.statistics()
    assert (found.from_disk, found.from_memory, found.encoded) == (1, 1, 0)
    other = cache_in(folder, encoder="another encoder")
    other.get(1)
    assert other.runs == 1


@posix
def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    before = os.umask(0)
    try:
        cache_in(folder).get(1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    [entry] = entries(folder)
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [entry.name]


@posix
def test_a_folder_that_others_can_read(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    for folder in (empty, full):
        folder.mkdir()
        folder.chmod(0o755)
    (full / "letter.txt").write_text("mine")
    DiskCache(empty, 1000)
    assert stat.S_IMODE(empty.stat().st_mode) == 0o700
    with pytest.raises(PictureCacheError, match=r"full: others may look .*chmod 700"):
        DiskCache(full, 1000)
    assert stat.S_IMODE(full.stat().st_mode) == 0o755


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PictureCacheError, match=r"file: .* is not a folder") as caught:
        DiskCache(tmp_path / "file", 1000)
    assert caught.value.path == tmp_path / "file"
    with pytest.raises(PictureCacheError, match="Not a directory"):
        DiskCache(tmp_path / "file" / "below", 1000)
    if sys.platform == "linux":  # also root cannot write there
        with pytest.raises(PictureCacheError, match="/proc/pictures"):
            DiskCache("/proc/pictures", 1000)


@pytest.mark.parametrize("fault", ["byte", "cut", "empty", "longer", "head", "renamed", "shape"])
def test_damaged_entries_are_dropped(tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    cache_in(tmp_path / "c").get(1)
    [entry] = entries(tmp_path / "c")
    data = bytearray(entry.read_bytes())
    if fault == "byte":
        data[-3] ^= 1
    elif fault == "cut":
        del data[-1]
    elif fault == "empty":
        data.clear()
    elif fault == "longer":
        data.append(0)
    elif fault == "head":
        data[9] ^= 1
    entry.write_bytes(data)
    if fault == "renamed":  # a whole file under another's name
        cache_in(tmp_path / "c").get(2)
        [other] = [path for path in entries(tmp_path / "c") if path != entry]
        other.replace(entry)
    again = cache_in(tmp_path / "c")
    again.get(1, tokens=5 if fault == "shape" else 4)
    assert again.runs == 1
    assert "damaged" in caplog.text
    assert cache_in(tmp_path / "c").get(1, tokens=5 if fault == "shape" else 4) is not None
    last = cache_in(tmp_path / "c")
    last.get(1, tokens=5 if fault == "shape" else 4)
    assert last.runs == 0, "the whole one took its place"


def test_files_are_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    source = cache_in(folder, size=10_000, memory=0)
    for number in range(100):
        age(source, number)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000
    assert len(entries(folder)) == 10_000 // (52 + rows_of(0).nbytes)
    source.get(99)
    assert source.runs == 100
    source.get(0)
    assert source.runs == 101
    source.get(5, tokens=500)  # larger than all
    assert all(path.stat().st_size < 1000 for path in entries(folder))


def test_what_was_read_last_stays(tmp_path: Path) -> None:
    size = 52 + rows_of(0).nbytes
    source = cache_in(tmp_path / "c", size=3 * size, memory=0)
    for number in range(3):
        age(source, number)
    source.get(0)
    source.get(3)
    source.get(0)
    assert source.runs == 4
    source.get(1)
    assert source.runs == 5


def test_clear_removes_only_what_is_ours(tmp_path: Path) -> None:
    source = cache_in(tmp_path / "c")
    for number in range(5):
        source.get(number)
    (tmp_path / "c" / "notes.txt").write_text("mine")
    source.cache.clear()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["notes.txt"]
    source.get(1)
    assert source.runs == 6


def test_what_a_killed_process_left(tmp_path: Path) -> None:
    source = cache_in(tmp_path / "c")
    left, fresh = (
        tmp_path / "c" / f".{'a' * 64}.emb.1234abcd.partial",
        tmp_path / "c" / f".{'b' * 64}.emb.1234abcd.partial",
    )
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    source.get(1)
    assert not left.exists() and fresh.exists()


def test_a_folder_that_goes_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = cache_in(tmp_path / "c", memory=0)
    (tmp_path / "c").rmdir()
    source.get(1)
    source.get(1)
    assert source.runs == 2
    assert caplog.text.count("cannot be written") == 1
    source.cache.clear()


WRITER = """
import sys
from random import Random
from runtime.test_embedding_cache import cache_in
from pathlib import Path

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
source, rng = cache_in(folder, size=20_000, memory=0), Random(seed)
for _ in range(300):
    source.get(rng.randrange(60))
assert source.cache.statistics().from_disk > 0
"""


def test_several_processes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "c"
    tests = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(seed)], env=env, stderr=subprocess.PIPE, text=True
        )
        for seed in range(2)
    ]
    for writer in writers:
        _, told = writer.communicate(timeout=120)
        assert writer.returncode == 0 and "damaged" not in told, told
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20_000
    assert not list(folder.glob(".*.partial"))
    source = cache_in(folder, memory=0)
    for number in range(60):
        source.get(number)
    assert "damaged" not in caplog.text
