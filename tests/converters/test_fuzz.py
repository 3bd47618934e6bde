"""Whatever the files of a checkpoint hold: a ConversionError or a bundle, never another exception, never a hang."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConversionError
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.convert import convert
from pocketvlm_converters.families import find_family
from store import Store
from tiers import slow_but
from tiny import families

EXAMPLES = 32
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=5000,  # ms
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SINGLE = "model.safetensors"
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 7, 2**31, 2**32, 2**63, 10**12, 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from(["", "64", "default", "linear", "llama3", "yarn", "gelu", "\x00", "\ud800", "a\nb", "x" * 5000]),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)


@pytest.fixture(scope="module", params=slow_but(families(), "smolvlm"))
def original(request: pytest.FixtureRequest, store: Store) -> Path:
    return store.checkpoint(request.param)


@pytest.fixture
def victim(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def attempt(folder: Path, whole: bool = False) -> None:
    """All that reads the checkpoint's description; the `whole` conversion where nothing is wrong with it."""
    try:
        family = find_family(Checkpoint(folder))
        family.language(), family.projector()
        family.check_all_used()
        if whole:
            convert(
                folder, folder.parent / "bundle", quantize="f32", mmproj="f32", onnx="fp32", force=True, verify=False
            )
    except ConversionError as error:
        str(error).encode()  # it can be printed


def paths(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document."""
    steps = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for step, inner in steps:
        yield (*at, step)
        yield from paths(inner, (*at, step))


def changed(data: st.DataObject, document: Any, places: list[tuple[Any, ...]]) -> Any:
    """One to three values replaced or removed."""
    found = deepcopy(document)
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
        parent = found
        try:
            for step in place[:-1]:
                parent = parent[step]
            if data.draw(st.booleans()):
                parent[place[-1]] = data.draw(ODD)
            else:
                del parent[place[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
    return found


@settings(FUZZ, max_examples=EXAMPLES // 8)
@given(data=st.data())
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
    ],
)
def test_settings(data: st.DataObject, name: str, victim: Path, original: Path) -> None:
    if not (original / name).exists():
        return
    document = json.loads((original / name).read_text())
    made = changed(data, document, list(paths(document)))
    (victim / name).write_text(json.dumps(made))
    attempt(victim, whole=True)


@FUZZ
@given(data=st.data())
def test_header(data: st.DataObject, victim: Path, original: Path) -> None:
    raw = (original / SINGLE).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    document = json.loads(raw[8:start])
    text = json.dumps(changed(data, document, list(paths(document)))).encode()
    (victim / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + raw[start:])
    attempt(victim)


@FUZZ
@given(
    where=st.integers(0, 40_000),
    bytes_=st.binary(max_size=20) | st.sampled_from([b'"', b"[" * 3000, b"\\", b"\0" * 8, b"-"]),
    keep=st.integers(0, 20),
)
def test_bytes(where: int, bytes_: bytes, keep: int, victim: Path, original: Path) -> None:
    """Of the length, the header and the first weights, overwritten or inserted."""
    raw = (original / SINGLE).read_bytes()
    (victim / SINGLE).write_bytes(raw[:where] + bytes_ + raw[where + keep :])
    attempt(victim)
