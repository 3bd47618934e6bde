"""`pocketvlm pull` against a server that speaks the hub's protocol, in fair weather and in foul."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session
from typer import Typer
from typer.testing import CliRunner

import pocketvlm
from pocketvlm.errors import (
    CheckpointError,
    DownloadError,
    ModelNotFoundError,
    OutputError,
    ProofError,
    QuantizationError,
)
from pocketvlm.files.bundle import Bundle
from pocketvlm.files.locate import locate
from pocketvlm_converters.catalog.entry import get_entry
from pocketvlm_converters.cli.models import models as list_models
from pocketvlm_converters.proof.conversion import KEEP_IT
from pocketvlm_converters.pull import gguf_pair
from pocketvlm_converters.pull import hub as client
from pocketvlm_converters.pull import pull as way
from pocketvlm_converters.pull.pull import Wanted, name_of, pull

from .hub_server import COMMIT, HubServer, Repository, serving

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHECKPOINT = Path(__file__).parents[2] / "models" / "iota" / "checkpoint"
MODEL, MMPROJ, WEIGHTS = "iota-Q4_K_M.gguf", "mmproj-iota-Q8_0.gguf", "model.safetensors"
READY = "acme/iota-gguf"
# The installed command may be older than the command.
COMMAND = """
from pocketvlm.cli import commands, main
from pocketvlm_converters.cli.pull import pull
commands.app.command("pull")(pull)
main()
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iota_bundle: Path) -> Iterator[HubServer]:
    with serving() as server:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(client, "_WAIT", 0.0)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        files = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir() if path.is_file()}
        server.repositories["acme/iota"] = Repository({**files, "README.md": b"read me"})
        model, mmproj = (next(iota_bundle.glob(pattern)).read_bytes() for pattern in ("model-*.gguf", "mmproj-*.gguf"))
        server.repositories[READY] = Repository({MODEL: model, MMPROJ: mmproj, "README.md": b"read me"})
        yield server


def models(tmp_path: Path) -> Path:
    return tmp_path / "data" / "pocketvlm" / "models"


def refused(wanted: Wanted, message: str, error: type[Exception] = DownloadError) -> None:
    with pytest.raises(error, match=message) as raised:
        pull(wanted)
    assert "\n" not in str(raised.value)


def left(folder: Path) -> list[str]:
    """What can be seen there, and what is hidden and no download."""
    return [path.name for path in folder.rglob("*") if path.is_file() and ".download" not in str(path)]


def test_a_ready_pair_becomes_a_bundle(hub: HubServer, tmp_path: Path) -> None:
    said: list[str] = []
    bundle = pull(Wanted(READY), say=said.append)
    assert {path for path, *_ in hub.log if "README" in path} == set()
    assert name_of(bundle) == READY and bundle.path == models(tmp_path) / READY
    bundle.verify()
    manifest = bundle.manifest
    assert [(f.role, f.quantization) for f in manifest.files] == [("model", "Q4_K_M"), ("mmproj", "q8_0")]
    assert (manifest.family, manifest.source.name) == ("smolvlm", READY) and COMMIT in manifest.notes[0]
    assert sorted(path.name for path in models(tmp_path).rglob("*")) == sorted(
        ["acme", "iota-gguf", MODEL, MMPROJ, "manifest.json"]
    ), "the download is gone"
    found = locate(READY, model=None, mmproj=None)
    assert found.model == bundle.path / MODEL and found.name == "iota-gguf"
    size = sum(file.size for file in manifest.files)
    [line] = said
    assert line.startswith(f"{READY} at {COMMIT[:12]}: {size / 1e6:,.1f} MB; needs about {size / 1e6:.1f} MB of disk")
    assert re.search(r"space; [\d.]+ GB are free$", line), line
    with pytest.raises(ModelNotFoundError, match="none of that name was pulled"):
        locate("acme/other", model=None, mmproj=None)


def test_it_is_there_already(hub: HubServer, tmp_path: Path) -> None:
    pull(Wanted(READY))
    asked = len(hub.log)
    refused(Wanted(READY), "already exists; force=True", OutputError)
    assert len(hub.log) == asked
    hub.repositories[READY].files[MODEL] += b"\0" * 32
    first = Bundle(models(tmp_path) / READY).manifest.files[0].size
    assert pull(Wanted(READY, force=True)).manifest.files[0].size == first + 32
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious").touch()
    refused(Wanted(READY, output=taken, force=True), "not a bundle", OutputError)
    refused(Wanted(READY, output=tmp_path / "no" / "where"), "does not exist", OutputError)


def test_from_python(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tomllib.loads((CHECKPOINT.parents[2] / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    # The installed entry points may be older than this one.
    point = EntryPoint("pull", group["pocketvlm.functions"]["pull"], "pocketvlm.functions")
    monkeypatch.setattr("pocketvlm.files.pull.entry_points", lambda **_: [point])
    steps: list[tuple[str, int, int]] = []
    folder = pocketvlm.pull(READY, progress=lambda step, done, total: steps.append((step, done, total)))
    assert folder == models(tmp_path) / READY and steps[-1][1] == steps[-1][2]
    Bundle(folder).verify()
    asked = len(hub.log)
    assert pocketvlm.pull(READY) == folder and len(hub.log) == asked, "it is there already"
    with pytest.raises(OutputError, match="already exists"):
        pocketvlm.pull(READY, quantize="Q8_0")
    for other, gguf in (("smolvlm-500m", False), ("acme/iota", True)):
        with pytest.raises(OutputError, match="already exists"):
            pocketvlm.pull(other, output=folder, gguf=gguf)
    (folder / MODEL).unlink()
    with pytest.raises(OutputError, match="already exists"):
        pocketvlm.pull(READY)  # incomplete
    assert pocketvlm.pull(READY, force=True) == folder and (folder / MODEL).is_file()
    with pytest.raises(DownloadError, match="neither an id of the catalogue"):
        pocketvlm.pull("no such model")
    monkeypatch.setattr("pocketvlm.files.pull.entry_points", lambda **_: [])
    with pytest.raises(DownloadError, match="with its extras hub and convert"):
        pocketvlm.pull(READY)


@pytest.mark.usefixtures("hub")
def test_what_appeared_meanwhile(tmp_path: Path) -> None:
    output, theirs = tmp_path / "mine", tmp_path / "mine" / "manifest.json"

    def say(_: str) -> None:
        output.mkdir()
        theirs.touch()

    with pytest.raises(OutputError, match="already exists; force=True"):
        pull(Wanted(READY, output=output), say=say)
    assert list(output.iterdir()) == [theirs] and list(tmp_path.rglob(MODEL)), "the download is kept"


def test_two_at_a_time(hub: HubServer, tmp_path: Path) -> None:
    hub.stall, hub.cuts[MODEL] = threading.Event(), [90_000]
    first = threading.Thread(target=pull, args=(Wanted(READY),))
    first.start()
    try:
        assert hub.stalled.wait(60)
        refused(Wanted(READY), "another pull uses this folder")
    finally:
        hub.stall.set()
        first.join()
    Bundle(models(tmp_path) / READY).verify()
    assert len(hub.asked(MODEL)) == 2 and not list(tmp_path.rglob("*.download"))


def test_without_hard_links(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    with monkeypatch.context() as broken:
        broken.setattr(gguf_pair.Manifest, "write", none)
        refused(Wanted(READY), "cannot be written", OutputError)
    assert left(tmp_path) == [] and len(list(tmp_path.rglob("*.gguf"))) == 2, "the download is kept"
    pull(Wanted(READY)).verify()
    assert len(hub.asked(MODEL)) == len(hub.asked(MMPROJ)) == 1


def test_which_of_several(hub: HubServer, tmp_path: Path) -> None:
    """A name alone does not tell which language model a projector belongs to."""
    files = hub.repositories[READY].files
    model, mmproj = files[MODEL], files[MMPROJ]
    files.update({"imatrix.gguf": model, "iota-UD-Q4_K_M.gguf": model})
    refused(Wanted(READY), "has several Q4_K_M files for quantize=: iota-Q4_K_M.gguf, iota-UD-Q4_K_M.gguf")
    refused(Wanted(READY, quantize="imatrix"), "has no imatrix file for quantize=; it has Q4_K_M")
    refused(Wanted(READY, onnx="int8"), "ready GGUF files have no ONNX encoder; omit onnx=")
    files.update({"iota-F16.gguf": model, "mmproj-iota-2-Q8_0.gguf": mmproj})
    refused(
        Wanted(READY, quantize="f16"), "has several Q8_0 files for mmproj=: mmproj-iota-2-Q8_0.gguf, mmproj-iota-Q8"
    )
    files["iota-F32-mmproj.gguf"] = mmproj
    files["iota-q4_k.gguf"] = model
    chosen = [file.quantization for file in pull(Wanted(READY, quantize="Q4_K", mmproj="f32")).manifest.files]
    assert chosen == ["Q4_K", "f32"]
    shutil.rmtree(models(tmp_path))
    for name in (MODEL, "iota-UD-Q4_K_M.gguf", "iota-F16.gguf", "iota-q4_k.gguf"):
        del files[name]
    refused(Wanted(READY), "has no language model in one piece whose name ends in its type")


def test_the_only_projector_needs_no_type_in_its_name(hub: HubServer) -> None:
    files = hub.repositories[READY].files
    files["mmproj.gguf"] = files.pop(MMPROJ)
    assert [file.quantization for file in pull(Wanted(READY)).manifest.files] == ["Q4_K_M", "unknown"]


def test_where_it_is_told_to(hub: HubServer, tmp_path: Path) -> None:
    said: list[str] = []
    bundle = pull(Wanted(READY, output=tmp_path / "mine", keep=True), say=said.append)
    kept = tmp_path / ".mine.download" / COMMIT / "iota-gguf"
    assert name_of(bundle) == str(tmp_path / "mine") and said[-1] == f"kept {kept}"
    assert sorted(path.name for path in kept.iterdir()) == [MODEL, MMPROJ]
    asked = hub.asked(MODEL)
    (kept.parent / "stray").touch()
    (kept.parent.parent / "stray").touch()
    pull(Wanted(READY, output=tmp_path / "mine", force=True)).verify()
    assert hub.asked(MODEL) == asked and not kept.parent.parent.exists()


def test_shards_that_are_no_checkpoint(hub: HubServer, tmp_path: Path) -> None:
    """What the converter refuses is told, and what was downloaded for it stays."""
    files = hub.repositories["acme/iota"].files
    files["model-1.safetensors"] = files["model-2.safetensors"] = files.pop(WEIGHTS)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    refused(Wanted("acme/iota"), "model-2.safetensors: tensor .* is in model-1.safetensors as well", CheckpointError)
    assert len(hub.asked("model-1.safetensors")) == len(hub.asked("model-2.safetensors")) == 1
    assert left(tmp_path) == []
    refused(Wanted("acme/iota"), "as well", CheckpointError)
    assert len(hub.asked("model-1.safetensors")) == 1


def test_a_connection_that_breaks_is_taken_up_again(hub: HubServer) -> None:
    hub.cuts[MODEL] = [70_000, 0, 100_000, 0, 0]
    pull(Wanted(READY)).verify()
    starts = [int(span[6:-1]) if span else 0 for span in hub.asked(MODEL)]
    assert len(starts) == 6 and starts == sorted(starts) and starts[1] == starts[2] == 70_000
    assert starts[3:] == [170_000] * 3


def test_what_was_begun_goes_on(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts[MODEL] = [90_000, *[0] * client._TRIES]
    refused(Wanted(READY), f"{READY}/{MODEL}: the connection broke at 0.1 of .* Run it again to resume")
    assert left(tmp_path) == []
    said: list[str] = []
    pull(Wanted(READY), say=said.append).verify()
    assert hub.asked(MODEL)[-1] == "bytes=90000-" and "90.0 KB are already downloaded" in said[0]


def test_a_server_that_cannot_resume(hub: HubServer) -> None:
    hub.ranges = False
    hub.cuts[MODEL] = [90_000]
    pull(Wanted(READY)).verify()


@pytest.mark.parametrize("name", [MODEL, "config.json"])
def test_a_wrong_hash(name: str, hub: HubServer, tmp_path: Path) -> None:
    repository = READY if name == MODEL else "acme/iota"
    right = hub.repositories[repository].files[name]
    hub.repositories[repository].served[name] = b"x" + right[1:]
    refused(Wanted(repository), f"{repository}/{name}: is not what the hub lists: its hash differs")
    assert not list(tmp_path.rglob(f"{name}*"))
    hub.repositories[repository].served[name] = right + b"x"
    refused(Wanted(repository), f"{repository}/{name}: is longer than the hub says")
    assert left(tmp_path) == []


def test_a_damaged_part_is_not_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts[MODEL] = [90_000, *[0] * client._TRIES]
    refused(Wanted(READY), "the connection broke")
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(b"x" * 90_000)
    refused(Wanted(READY), "its hash differs. It was removed; try again")
    hub.cuts[MMPROJ] = [0] * client._TRIES
    refused(Wanted(READY), "the connection broke")
    (whole,) = tmp_path.rglob(MODEL)
    whole.write_bytes(b"x" * whole.stat().st_size)
    pull(Wanted(READY)).verify()


def test_what_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    refused(Wanted("acme/nothing"), "acme/nothing: no such repository, or a private one")
    refused(Wanted("acme/iota", revision="old"), "acme/iota: has no such revision")
    refused(Wanted("nothing"), "nothing: is neither an id of the catalogue nor owner/name of the hub")
    refused(Wanted("iota"), "iota: comes with pocketvlm")
    for name in ("../iota", "a/b/c", "/etc/passwd", "--x/y"):
        refused(Wanted(name), f"{name}: is neither an id of the catalogue nor owner/name of the hub")
    refused(Wanted("a..b/c"), r"a\.\.b/c: is not a valid name of a repository")
    hub.repositories[READY].served[MMPROJ] = None
    refused(Wanted(READY), f"{MMPROJ}: is listed by the hub, but missing there")
    refused(Wanted(READY, quantize="Q2_K"), "has no Q2_K file for quantize=; it has Q4_K_M")
    refused(Wanted("acme/iota", gguf=True), "acme/iota: has no GGUF files")
    del hub.repositories[READY].files[MMPROJ]
    refused(Wanted(READY), "has no projector")
    assert left(tmp_path) == []
    hub.repositories["acme/iota"].listed = [{"rfilename": "chat_template.json", "size": 1 << 40, "blobId": COMMIT}]
    refused(
        Wanted("acme/iota"),
        "acme/iota/chat_template.json: has 1,099,511,627,776 bytes; at most 16,777,216 are accepted",
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model(status: int, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["acme/iota"].refused = (status, "GatedRepo")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    refused(
        Wanted("acme/iota"),
        "config.json: is gated: accept its licence at http.*/acme/iota, then set HF_TOKEN",
    )
    tokens = {token for path, _, token in hub.log if not path.startswith("/cdn/")}
    assert tokens == {"Bearer hf_secret"}


def test_the_token_goes_to_nobody_else(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(Wanted(READY))
    assert {token for path, _, token in hub.log if path.startswith("/cdn/")} == {None}


def test_trouble_at_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = 418
    refused(Wanted("acme/iota"), "acme/iota: the hub refuses with status 418")
    hub.status = None
    hub.repositories["acme/iota"].listed = [{"rfilename": "x", "size": -1, "blobId": COMMIT}]
    refused(Wanted("acme/iota"), "the hub's answer is not valid")
    hub.repositories[READY].commit = "../../evil"
    refused(Wanted(READY), "the hub's answer is not valid")
    hub.repositories[READY].commit = COMMIT
    hub.repositories[READY].refused = (503, "")
    refused(Wanted(READY), "the connection broke at 0.0 .*: the server answers with status 503")
    assert len([path for path, *_ in hub.log if path.endswith(MODEL)]) == client._TRIES
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(Wanted("acme/iota"), "http://127.0.0.1:9 cannot be reached: ")


@pytest.mark.parametrize(
    ("repository", "requests"),
    [
        ({"refused": (302, ""), "headers": {"Location": f"/acme/iota/resolve/{COMMIT}/config.json"}}, 21),
        ({"headers": {"Content-Encoding": "gzip"}}, 1),
    ],
)
def test_answers_that_make_no_sense(repository: dict[str, Any], requests: int, hub: HubServer) -> None:
    hub.repositories["acme/iota"] = replace(hub.repositories["acme/iota"], **repository)
    refused(Wanted("acme/iota"), "acme/iota/config.json: the hub's answer is not valid: ")
    assert len([path for path, *_ in hub.log if path.endswith("config.json")]) == requests, "it is not asked again"


def test_what_the_hub_is_told(hub: HubServer) -> None:
    pull(Wanted(READY))
    (agent,) = hub.agents
    parts = [part.split("/") for part in str(agent).split("; ")]
    assert [name for name, _ in parts] == ["pocketvlm", "hf_hub", "python"]
    assert parts[0][1] == version("pocketvlm")


def test_a_name_too_long() -> None:
    for name in ("x" * 300, f"{'x' * 300}/x"):
        with pytest.raises(ModelNotFoundError, match="cannot be looked up: File name too long"):
            locate(name, model=None, mmproj=None)
    with pytest.raises(ModelNotFoundError, match="cannot be looked up: File name too long"):
        locate(f"{'x' * 300}.gguf", model=None, mmproj=None)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:9", "ALL_PROXY begins with socks://"),
        ("https_proxy", "foo://me:secret@host", "https_proxy begins with foo://"),
        ("HTTP_PROXY", "ftp://host", "HTTP_PROXY begins with ftp://"),
        ("ALL_PROXY", "socks5://me:secret@127.0.0.1:9", "ALL_PROXY names a SOCKS proxy, .* pip install"),
        ("https_proxy", "socks5h://127.0.0.1:9", "https_proxy names a SOCKS proxy"),
        ("SSL_CERT_FILE", "/nowhere", "SSL_CERT_FILE is '/nowhere'.* unset it"),
        ("SSL_CERT_FILE", __file__, "SSL_CERT_FILE is .*test_pull.py', which has no usable certificates"),
    ],
)
def test_settings_with_which_no_connection_can_be_made(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "socks5" in value and find_spec("socksio"):
        pytest.skip("here it can be made")
    close_session()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv(name, value)
    with pytest.raises(DownloadError, match=words) as caught:
        client.Hub()
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_where_nothing_may_be_downloaded(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETVLM_OFFLINE", "1")
    refused(Wanted(READY), "POCKETVLM_OFFLINE is set: nothing is downloaded")
    monkeypatch.delenv("POCKETVLM_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(Wanted(READY), r"huggingface_hub is missing: run pip install \"\.\[hub\]\"")
    assert not hub.log


def test_converters_that_are_missing(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way, "find_spec", lambda name: None if name == "onnx" else object())
    refused(Wanted("acme/iota"), r"conversion needs onnx: run pip install \"\.\[convert\]\"")
    assert len(hub.log) == 1


@pytest.mark.usefixtures("hub")
def test_a_failed_proof_says_what_keeps_the_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pull has no such option; the conversion of what it downloaded has it."""

    def fail(*_: object, **__: object) -> None:
        raise ProofError(f"language: differs; {KEEP_IT}", "bundle")

    monkeypatch.setattr(way, "convert", fail)
    message = rf"convert the downloaded files in (/\S*/{COMMIT}/iota) with keep_unproven=True$"
    with pytest.raises(ProofError, match=message) as raised:
        pull(Wanted("acme/iota"))
    found = re.search(message, str(raised.value))
    assert found and (Path(found[1]) / WEIGHTS).is_file()


def test_names_of_a_stranger(hub: HubServer, tmp_path: Path) -> None:
    """Whatever the hub lists, only plain names of known kinds are asked for or written."""
    evil = ("../../evil.gguf", "/tmp/evil.gguf", "a\\evil.gguf", "folder/evil.gguf", ".evil-Q8_0.gguf", "evil\n.gguf")
    hub.repositories[READY].files.update(dict.fromkeys(evil, b"evil" * 5000))
    pull(Wanted(READY)).verify()
    index = {"weight_map": {"a": "../evil.safetensors"}}
    files = hub.repositories["acme/iota"].files
    files["../evil.safetensors"] = files.pop(WEIGHTS)
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    refused(Wanted("acme/iota"), "weight_map has '../evil.safetensors'; expected the name of a .safetensors file")
    files["model.safetensors.index.json"] = b'{"weight_map": {"a": "model-1.safetensors"}}'
    refused(Wanted("acme/iota"), "acme/iota/model-1.safetensors: is missing from the repository; the index lists it")
    assert not list(tmp_path.rglob("*evil*")) and not any("evil" in path for path, *_ in hub.log)


def test_what_is_no_checkpoint(hub: HubServer, tmp_path: Path) -> None:
    files = hub.repositories["acme/iota"].files
    weights = files.pop(WEIGHTS)
    files["pytorch_model.bin"] = b"pickle"
    refused(Wanted("acme/iota"), "only pytorch_model.bin: pickles can run code and are never downloaded")
    files["adapter_config.json"] = b"{}"
    refused(Wanted("acme/iota"), "is an adapter .LoRA.; download it, and convert the model that it was trained on")
    del files["adapter_config.json"]
    files[WEIGHTS] = weights
    config = json.loads(files["config.json"])
    files["config.json"] = json.dumps(config | {"model_type": "clippy"}).encode()
    refused(Wanted("acme/iota"), "^acme/iota/config.json: unknown architecture 'clippy'", CheckpointError)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "what cannot be converted is not kept"
    refused(Wanted("acme/iota", quantize="Q9"), "unknown type 'Q9' of the language model", QuantizationError)
    refused(Wanted("acme/iota", mmproj="none", onnx="none"), "needs a vision encoder", QuantizationError)
    assert not hub.asked(WEIGHTS), "told before gigabytes are downloaded"
    del files["config.json"]
    refused(Wanted("acme/iota"), "is not a checkpoint: it has no config.json")
    hub.repositories[READY].files[MMPROJ] = hub.repositories[READY].files[MODEL] + b"\0"
    refused(Wanted(READY), "is a language model, not a multimodal projector", Exception)


def test_a_full_disk(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        refused(Wanted(READY), "cannot be written: .*; nothing was written", OutputError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    asked = hub.asked(MODEL)
    refused(Wanted(READY), "needs about .* MB of disk space; 1.0 MB are free", OutputError)
    space = r"needs about {} of disk space to download and convert; 1.0 MB are free; make room"
    refused(Wanted("acme/iota"), space.format(r"\d\d\.\d MB"), OutputError)
    files = hub.repositories["acme/iota"].files  # as if the same bytes were quantized
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | {"quantization_config": {"bits": 4}}).encode()
    refused(Wanted("acme/iota"), space.format(r"1\d\d\.\d MB"), OutputError)
    assert hub.asked(MODEL) == asked and not hub.asked(WEIGHTS) and left(tmp_path) == []


def test_a_name_of_the_catalogue(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = get_entry("smolvlm-256m")
    assert entry.gguf
    files = hub.repositories[READY].files
    hub.repositories[entry.gguf] = Repository({**files, "iota-Q8_0.gguf": files[MODEL]})
    monkeypatch.setattr("pocketvlm_converters.cli.models._TYPES", ())
    bundle = pull(Wanted("SmolVLM-256M", gguf=True))
    assert bundle.path == models(tmp_path) / "smolvlm-256m" and bundle.file("model").name == "iota-Q8_0.gguf"
    assert locate("smolvlm-256m", model=None, mmproj=None).model.name == "iota-Q8_0.gguf"
    with pytest.raises(
        ModelNotFoundError, match=f"none of that name was pulled; smolvlm-256m was made from {entry.gguf}"
    ):
        locate(entry.gguf.lower(), model=None, mmproj=None)
    app = Typer()
    app.command()(list_models)
    told = json.loads(CliRunner().invoke(app, [entry.id, "--json"]).stdout)
    assert told["pulled"] == str(bundle.path)


@pytest.mark.slow
def test_from_a_checkpoint_to_an_answer(hub: HubServer, tmp_path: Path, sample_png: Path) -> None:
    """Ctrl-C in the midst of it; then the rest, the conversion and a chat."""
    hub.stall, hub.cuts[WEIGHTS] = threading.Event(), [1_000_000]
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")}
    command = [sys.executable, "-c", COMMAND, "pull", "acme/iota", "--quantize", "f32", "--onnx", "none"]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert hub.stalled.wait(60)
    while sum(part.stat().st_size for part in tmp_path.rglob("*.part")) < 1_000_000:
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=60)
    hub.stall.set()
    assert first.returncode == 130 and "interrupted: run it again to resume" in told and "Traceback" not in told
    assert left(tmp_path) == []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert hub.asked(WEIGHTS) == [None, "bytes=1000000-"]
    assert "--model acme/iota" in done.stdout and "proven" not in done.stderr
    assert sorted(path.name for path in (models(tmp_path) / "acme").iterdir()) == ["iota"]
    question = ["chat", "How many shapes are there?", "-i", str(sample_png), "--model", "acme/iota"]
    chat = [sys.executable, "-c", COMMAND, *question]
    answer = subprocess.run(chat, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert answer.stdout.strip() == "2", answer.stderr
    missing = [sys.executable, "-c", COMMAND, "pull", "acme/nothing"]
    refusal = subprocess.run(missing, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert refusal.returncode == 2 and refusal.stderr.startswith("error: acme/nothing: no such repository")
    assert len(refusal.stderr.splitlines()) == 1
