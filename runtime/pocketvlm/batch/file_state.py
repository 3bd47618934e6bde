"""What a file was when a question about it was asked, to see later whether its content has changed."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketvlm.pictures.content_digest import content_digest


@dataclass(frozen=True)
class FileState:
    """Size in bytes, times in nanoseconds as the system has them, and the digest of the content.

    The content is read only where size or a time differs. `changed_ns` is the change time of the inode: programs that
    write into a file and set its modification time back do not set that. `sha256` is pictures' `content_digest`.
    """

    size: int
    modified_ns: int
    changed_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """Return the state of a file; None where it cannot be read."""
        try:
            status = path.stat()  # before the content: a later change is then seen by its time
            if not stat.S_ISREG(status.st_mode):
                return None
            return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, content_digest(path))
        except (OSError, ValueError):  # a name with NUL
            return None

    def now(self, path: Path) -> FileState | None:
        """Return the state with the size and times of now; None where the content is another.

        A file that cannot be read, or is gone, counts as it was: an answer about it is all that there is.
        """
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return self
            now = replace(self, size=status.st_size, modified_ns=status.st_mtime_ns, changed_ns=status.st_ctime_ns)
            if now == self or content_digest(path) == self.sha256:
                return now
        except (OSError, ValueError):
            return self
        return None

    def to_json(self) -> dict[str, Any]:
        return vars(self).copy()

    @classmethod
    def from_json(cls, value: Any) -> FileState:
        """Raises ValueError, KeyError or TypeError where `value` is not a state."""
        return cls(int(value["size"]), int(value["modified_ns"]), int(value["changed_ns"]), sha256=str(value["sha256"]))
