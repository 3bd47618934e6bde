"""The hub, through huggingface_hub: list a repository, and download its files, with resuming and a check of hashes."""

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

from pocketvlm.errors import DownloadError, shortened
from pocketvlm.system.atomic import replace
from pocketvlm.system.extras import install_extra
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.pull.network_settings import explain_settings

_TRIES = 5  # attempts in a row that receive no data
_WAIT = 1.0  # seconds after the first of them; doubles each time
_TIMEOUT = 30.0  # seconds without data
_BLOCK = 1 << 20  # bytes
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})  # HTTP statuses after which a retry may succeed
_OFFLINE = ("POCKETVLM_OFFLINE", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `sha256` is the hash of a large file; a small file has only `blob`, git's SHA-1."""

    name: str
    size: int
    sha256: str | None
    blob: str | None

    def digest(self) -> Any:
        """Return a hashlib object whose final value is `expected`, if the content is right."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    @property
    def expected(self) -> str:
        expected = self.sha256 or self.blob
        assert expected is not None
        return expected


@dataclass(frozen=True)
class Listing:
    """A repository at one commit. The names of `files` are the hub's, so they are untrusted."""

    repository: str
    commit: str
    files: dict[str, RemoteFile]


class Hub:
    """The hub at HF_ENDPOINT, by default the public one. Only the token in HF_TOKEN is used, if there is one.

    Raises DownloadError if huggingface_hub is missing, or the environment forbids network access.
    """

    def __init__(self) -> None:
        for name in _OFFLINE:
            if os.environ.get(name, "").lower() not in ("", "0", "false", "no"):
                raise DownloadError(f"{name} is set: nothing is downloaded; unset it to use the network")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            import huggingface_hub
            import huggingface_hub.errors
            import huggingface_hub.utils
        except ImportError:
            raise DownloadError(f"huggingface_hub is missing: {install_extra('hub')}") from None
        self._package = huggingface_hub
        self._endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        token = os.environ.get("HF_TOKEN", "").strip() or False
        client: dict[str, Any] = {"library_name": "pocketvlm", "library_version": version("pocketvlm"), "token": token}
        self._api = huggingface_hub.HfApi(endpoint=self._endpoint, **client)
        self._headers = huggingface_hub.utils.build_hf_headers(**client)
        try:
            self._session = huggingface_hub.utils.get_session()
        except (ValueError, ImportError, OSError) as error:  # proxies and certificates are read when it is made
            raise DownloadError(explain_settings(error)) from None
        # The HTTP library that this version of huggingface_hub uses, for the classes of its errors.
        self._http: Any = sys.modules[type(self._session).__module__.partition(".")[0]]

    def listing(self, repository: str, revision: str | None) -> Listing:
        """Return the files of a repository. Raises DownloadError."""
        with self._explained_errors(repository):
            info = self._api.model_info(repository, revision=revision, files_metadata=True, timeout=_TIMEOUT)
            files = [self._file(repository, sibling) for sibling in info.siblings or ()]
            if not _SHA1.fullmatch(str(info.sha)):
                raise ValueError("no commit")
            return Listing(repository, str(info.sha), {file.name: file for file in files})

    def download(self, listing: Listing, file: RemoteFile, folder: Path, progress: Progress = silent) -> Path:
        """Download a file to `folder`, which is created, unless it is already there. A partial download is resumed.

        Raises DownloadError. A file with a wrong hash or size is removed, one whose download broke off is kept.
        """
        target, part = folder / file.name, folder / f"{file.name}.part"
        label = f"{listing.repository}/{file.name}"
        progress(file.name, 0, file.size)
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            with target.open("rb") as opened:
                complete = _Part(opened, file).digest.hexdigest() == file.expected
            if complete:
                progress(file.name, file.size, file.size)
                return target
            target.unlink()
        url = self._package.hf_hub_url(listing.repository, file.name, revision=listing.commit, endpoint=self._endpoint)
        with part.open("a+b") as opened:
            content = _Part(opened, file)
            if content.done > file.size:
                content.restart()
            self._complete(content, url, label, progress)
            opened.flush()
            os.fsync(opened.fileno())
        if content.digest.hexdigest() != file.expected:
            part.unlink()
            raise DownloadError("is not what the hub lists: its hash differs. It was removed; try again", label)
        replace(part, target)
        return target

    def _complete(self, part: _Part, url: str, label: str, progress: Progress) -> None:
        """Download the rest of a file, with retries."""
        failures = 0
        while part.done < part.file.size:
            before, reason = part.done, "it ends early"
            try:
                with self._explained_errors(label, transport=False):
                    self._stream(part, url, label, progress)
            except self._transport_errors() as error:
                reason = _first_line(error)
            if part.done > before:
                failures = 0
            elif part.done < part.file.size:
                failures += 1
                if failures == _TRIES:
                    position = f"{part.done / 1e6:,.1f} of {part.file.size / 1e6:,.1f} MB"
                    raise DownloadError(f"the connection broke at {position}: {reason}. Run it again to resume", label)
                time.sleep(_WAIT * 2 ** (failures - 1))

    def _stream(self, part: _Part, url: str, label: str, progress: Progress) -> None:
        # Without compression, which would change the length, and the ranges would be those of the compressed content.
        headers = {**self._headers, "Accept-Encoding": "identity"}
        if part.done:
            headers["Range"] = f"bytes={part.done}-"
        with self._session.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response:
            if response.status_code in _TRANSIENT:
                raise ConnectionError(f"the server answers with status {response.status_code}")
            if response.status_code >= 400:
                response.read()
            self._package.utils.hf_raise_for_status(response)
            if part.done and response.status_code != 206:  # the server does not support ranges
                part.restart()
            for block in response.iter_bytes():  # unbuffered: blocks of a fixed size would be lost with the connection
                part.write(block)
                progress(part.file.name, min(part.done, part.file.size), part.file.size)
                if part.done > part.file.size:
                    part.restart()
                    raise DownloadError("is longer than the hub says; it was removed", label)

    def _file(self, repository: str, sibling: Any) -> RemoteFile:
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        size = sibling.lfs.size if sibling.lfs else sibling.size
        hashed = _SHA256.fullmatch(str(sha256)) if sibling.lfs else _SHA1.fullmatch(str(sibling.blob_id))
        if not isinstance(sibling.rfilename, str) or type(size) is not int or size < 0 or not hashed:
            raise ValueError(f"a file without name, size or hash in {repository}")
        return RemoteFile(sibling.rfilename, size, sha256, None if sha256 else sibling.blob_id)

    def _transport_errors(self) -> tuple[type[Exception], ...]:
        return (self._http.TransportError, ConnectionError, TimeoutError)

    @contextmanager
    def _explained_errors(self, label: str, transport: bool = True) -> Iterator[None]:
        """Turn errors of huggingface_hub into DownloadErrors; those of the connection only with `transport`."""
        errors = self._package.errors
        try:
            yield
        except errors.GatedRepoError:
            page = "/".join((self._endpoint, *label.split("/")[:2]))
            reason = f"is gated: accept its licence at {page}, then set HF_TOKEN to a token of your account"
            raise DownloadError(reason, label) from None
        except errors.RepositoryNotFoundError:
            raise DownloadError(
                "no such repository, or a private one, which needs HF_TOKEN set to a token of your account", label
            ) from None
        except errors.RevisionNotFoundError:
            raise DownloadError("has no such revision; use a branch, tag or commit of the repository", label) from None
        except errors.EntryNotFoundError:
            raise DownloadError("is listed by the hub, but missing there", label) from None
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            advice = "; check HF_TOKEN" if status in (401, 403) else ""
            raise DownloadError(f"the hub refuses with status {status}{advice}", label) from None
        except errors.HFValidationError:
            raise DownloadError("is not a valid name of a repository; use owner/name", label) from None
        except self._transport_errors() as error:
            if not transport:
                raise
            raise DownloadError(f"{self._endpoint} cannot be reached: {_first_line(error)}", label) from None
        # Besides errors of the connection, RequestError includes redirect loops and content with a wrong encoding.
        except (self._http.RequestError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DownloadError(f"the hub's answer is not valid: {_first_line(error)}", label) from None


class _Part:
    """A partly downloaded file and the hash of its content. The content that already exists is read once."""

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


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return shortened(lines[0] if lines else type(error).__name__)
