"""The hub, by huggingface_hub: what a repository holds, and its files, resumed and compared with their hashes."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from pocketvlm.errors import DownloadError
from pocketvlm_converters.progress import Progress, silent

_TRIES = 5  # in a row that bring nothing
_WAIT = 1.0  # seconds after the first of them, then twice as long each time
_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 20
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_PASSING = frozenset({408, 429, 500, 502, 503, 504})  # statuses that may be others a little later
_OFFLINE = ("POCKETVLM_OFFLINE", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class RemoteFile:
    """`sha256` is that of a large file's content; of a small one, `blob` is git's SHA-1."""

    name: str
    size: int
    sha256: str | None
    blob: str | None

    def digest(self) -> Any:
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    @property
    def expected(self) -> str:
        found = self.sha256 or self.blob
        assert found is not None
        return found


@dataclass(frozen=True)
class Listing:
    """A repository at one commit; names of `files` are as the hub tells them, so anything."""

    repository: str
    commit: str
    files: dict[str, RemoteFile]


class Hub:
    """At HF_ENDPOINT, or the public one; with the token of HF_TOKEN and no other.

    Raises DownloadError where the package is missing or the network is not to be used.
    """

    def __init__(self) -> None:
        told = next((name for name in _OFFLINE if os.environ.get(name, "").lower() not in ("", "0", "false", "no")), "")
        if told:
            raise DownloadError(f"{told} is set: nothing is downloaded")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            import huggingface_hub
            import huggingface_hub.errors
            import huggingface_hub.utils
        except ImportError:
            raise DownloadError("huggingface_hub is missing: pip install 'pocketvlm[hub]'") from None
        self._package = huggingface_hub
        self._endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        token = os.environ.get("HF_TOKEN", "").strip() or False
        own: dict[str, Any] = {"library_name": "pocketvlm", "library_version": version("pocketvlm"), "token": token}
        self._api = huggingface_hub.HfApi(endpoint=self._endpoint, **own)
        self._headers = huggingface_hub.utils.build_hf_headers(**own)
        self._session = huggingface_hub.utils.get_session()
        # For HTTP, whichever this version of huggingface_hub has.
        self._library: Any = sys.modules[type(self._session).__module__.partition(".")[0]]

    def listing(self, repository: str, revision: str | None) -> Listing:
        with self._explained(repository):
            found = self._api.model_info(repository, revision=revision, files_metadata=True, timeout=_TIMEOUT)
            files = [self._file(repository, sibling) for sibling in found.siblings or ()]
            if not _SHA1.fullmatch(str(found.sha)):
                raise ValueError("no commit")
            return Listing(repository, str(found.sha), {file.name: file for file in files})

    def download(self, listing: Listing, file: RemoteFile, folder: Path, progress: Progress = silent) -> Path:
        """To `folder`, which is made, or what lies there of it already. What was begun goes on.

        Raises DownloadError; a file that is not what the hub says is removed, one that broke off is kept to go on.
        """
        target, part = folder / file.name, folder / f"{file.name}.part"
        label = f"{listing.repository}/{file.name}"
        progress(file.name, 0, file.size)
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            with target.open("rb") as opened:
                right = _Part(opened, file).digest.hexdigest() == file.expected
            if right:
                progress(file.name, file.size, file.size)
                return target
            target.unlink()
        url = self._package.hf_hub_url(listing.repository, file.name, revision=listing.commit, endpoint=self._endpoint)
        with part.open("a+b") as opened:
            taken = _Part(opened, file)
            if taken.done > file.size:
                taken.restart()
            self._fill(taken, url, label, progress)
            opened.flush()
            os.fsync(opened.fileno())
        if taken.digest.hexdigest() != file.expected:
            part.unlink()
            raise DownloadError("is not what the hub says: its hash differs. It was removed; try again", label)
        part.replace(target)
        return target

    def _fill(self, taken: _Part, url: str, label: str, progress: Progress) -> None:
        failed = 0
        while taken.done < taken.file.size:
            before, reason = taken.done, "it ends early"
            try:
                with self._explained(label, transport=False):
                    self._stream(taken, url, label, progress)
            except self._transport_errors() as error:
                reason = _short(error)
            if taken.done > before:
                failed = 0
            elif taken.done < taken.file.size:
                failed += 1
                if failed == _TRIES:
                    at = f"{taken.done / 1e6:,.1f} of {taken.file.size / 1e6:,.1f} MB"
                    raise DownloadError(f"the connection broke at {at}: {reason}. Run it again to go on", label)
                time.sleep(_WAIT * 2 ** (failed - 1))

    def _stream(self, taken: _Part, url: str, label: str, progress: Progress) -> None:
        # A compressed answer would have another length, and ranges of another content.
        headers = {**self._headers, "Accept-Encoding": "identity"}
        if taken.done:
            headers["Range"] = f"bytes={taken.done}-"
        with self._session.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as answer:
            if answer.status_code in _PASSING:
                raise ConnectionError(f"the server answers with status {answer.status_code}")
            if answer.status_code >= 400:
                answer.read()
            self._package.utils.hf_raise_for_status(answer)
            if taken.done and answer.status_code != 206:  # it does not resume
                taken.restart()
            for block in answer.iter_bytes():  # as they come: what is collected first is lost with the connection
                taken.write(block)
                progress(taken.file.name, min(taken.done, taken.file.size), taken.file.size)
                if taken.done > taken.file.size:
                    taken.restart()
                    raise DownloadError("is longer than the hub says; it was removed", label)

    def _file(self, repository: str, sibling: Any) -> RemoteFile:
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        size = sibling.lfs.size if sibling.lfs else sibling.size
        hashed = _SHA256.fullmatch(str(sha256)) if sibling.lfs else _SHA1.fullmatch(str(sibling.blob_id))
        if not isinstance(sibling.rfilename, str) or type(size) is not int or size < 0 or not hashed:
            raise ValueError(f"a file without name, size or hash in {repository}")
        return RemoteFile(sibling.rfilename, size, sha256, None if sha256 else sibling.blob_id)

    def _transport_errors(self) -> tuple[type[Exception], ...]:
        return (self._library.TransportError, ConnectionError, TimeoutError)

    @contextmanager
    def _explained(self, label: str, transport: bool = True) -> Iterator[None]:
        """Errors of the hub in our words. Those of the connection only with `transport`."""
        errors = self._package.errors
        try:
            yield
        except errors.GatedRepoError:
            page = "/".join((self._endpoint, *label.split("/")[:2]))
            reason = f"is gated: accept its licence at {page}, then set HF_TOKEN to a token of your account"
            raise DownloadError(reason, label) from None
        except errors.RepositoryNotFoundError:
            raise DownloadError("no such repository, or a private one (HF_TOKEN may hold a token)", label) from None
        except errors.RevisionNotFoundError:
            raise DownloadError("has no such revision", label) from None
        except errors.EntryNotFoundError:
            raise DownloadError("is listed by the hub, but missing there", label) from None
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            refused = "; is HF_TOKEN right?" if status in (401, 403) else ""
            raise DownloadError(f"the hub refuses with status {status}{refused}", label) from None
        except errors.HFValidationError:
            raise DownloadError("is no name of a repository, as in owner/name", label) from None
        except self._transport_errors() as error:
            if not transport:
                raise
            raise DownloadError(f"{self._endpoint} cannot be reached: {_short(error)}", label) from None
        # RequestError: beside the connection's a loop of redirects, and content that is not encoded as it says.
        except (self._library.RequestError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DownloadError(f"the hub's answer makes no sense: {_short(error)}", label) from None


class _Part:
    """A file that grows, and the hash of what it has. What was there already is read once."""

    def __init__(self, opened: BinaryIO, file: RemoteFile) -> None:
        self.file, self._opened = file, opened
        opened.seek(0)
        self.digest, self.done = file.digest(), 0
        while block := opened.read(_BLOCK):
            self.digest.update(block)
            self.done += len(block)

    def write(self, block: bytes) -> None:
        self._opened.write(block)
        self.digest.update(block)
        self.done += len(block)

    def restart(self) -> None:
        self._opened.truncate(0)
        self.digest, self.done = self.file.digest(), 0


def _short(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
