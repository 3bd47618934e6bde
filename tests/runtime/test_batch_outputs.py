"""The table and the sidecars of a batch say what its record says, and do no harm."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pocketvlm.batch.csv_table import schema_fields, write_csv
from pocketvlm.batch.find_pictures import find_pictures, is_requests_file
from pocketvlm.batch.outputs import Outputs
from pocketvlm.batch.sidecars import Sidecars, sidecar, sidecar_path
from pocketvlm.errors import RequestError

DC = "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


def answered(custom_id: str, answer: Any, finish: str = "stop") -> dict[str, Any]:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": {"choices": [choice], "model": "m"}}}


def failed(custom_id: str, message: str, param: str | None = None) -> dict[str, Any]:
    body = {"error": {"message": message, "param": param}}
    return {"custom_id": custom_id, "response": {"status_code": 400, "body": body}}


def table(lines: list[dict[str, Any]], folder: Path, schema: object = None) -> list[list[str]]:
    path = folder / "table.csv"
    write_csv(path, lambda: lines, "file", schema)
    return list(csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline="")))


# ---- the table


def test_a_row_for_each_line(tmp_path: Path) -> None:
    field = "messages.0.content.0.path"
    lines = [answered("ä.jpg", 'Ein "Hund", und\neine Katze 🐈'), failed("b.jpg", f"{field}: b.jpg: is empty", field)]
    assert table(lines, tmp_path) == [
        ["file", "answer", "error"],
        ["ä.jpg", 'Ein "Hund", und\neine Katze 🐈', ""],
        ["b.jpg", "", "b.jpg: is empty"],
    ]
    data = (tmp_path / "table.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbffile,answer,error\r\n"), "Excel knows UTF-8 by the mark"


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1+1", "\r\n=1", "＝1", '=HYPERLINK("file:///x")']
)
def test_no_text_is_a_formula(text: str, tmp_path: Path) -> None:
    schema = {"properties": {"text": {"type": "string"}, "texts": {"type": "array"}}}
    [_, row] = table([answered(text, {"text": text, "texts": [text, "b"]})], tmp_path, schema)
    text = text.replace("\r", "")
    assert row == [f"'{text}", f"'{text}", f"'{text}; b", ""]
    [_, row] = table([answered("a", text), failed("a", text)][:1], tmp_path)
    assert row[1] == f"'{text}"


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    schema = {"properties": {"count": {"type": "integer"}}}
    [_, row] = table([answered("a", {"count": -5})], tmp_path, schema)
    assert row == ["a", "-5", ""]


class Size(BaseModel):
    width: int
    unit: str


class Thing(BaseModel):
    name: str
    size: Size
    colours: list[str]
    parts: list[Size]
    is_new: bool
    error: str | None


def test_fields_of_a_schema_are_columns(tmp_path: Path) -> None:
    """As pydantic writes schemas: with references. Fields of ours that are named alike get another name."""
    thing = Thing(
        name="cup",
        size=Size(width=3, unit="cm"),
        colours=["red", "blue"],
        parts=[Size(width=1, unit="m")],
        is_new=True,
        error=None,
    )
    lines = [answered("a", thing.model_dump()), answered("b", {"name": "more", "extra": 1}), failed("c", "gone")]
    lines.append(answered("d", '{"name": "cu', "length"))
    header, *rows = table(lines, tmp_path, Thing.model_json_schema())
    assert header == "file name size.width size.unit colours parts is_new error extra error_".split()
    assert rows[0] == ["a", "cup", "3", "cm", "red; blue", '[{"width": 1, "unit": "m"}]', "true", "", "", ""]
    assert rows[1] == ["b", "more", "", "", "", "", "", "", "1", ""]
    assert rows[2] == ["c", *[""] * 8, "gone"]
    assert rows[3] == ["d", *[""] * 8, 'the answer was cut off; raise --max-tokens: {"name": "cu']


def test_decisions(tmp_path: Path) -> None:
    answers = [{"type": "predicate", "name": "ä", "probability": 0.75}]
    theirs = {"custom_id": "b", "response": {"status_code": 200, "body": {"answers": answers, "model": "m"}}}
    assert table([answered("a", "x"), theirs], tmp_path)[2] == ["b", json.dumps(answers, ensure_ascii=False), ""]
    body = {"kind": "choice", "choice": "red", "probabilities": {"red": 0.75, "blue": 0.25}}
    ours = {"custom_id": "c", "response": {"status_code": 200, "body": body}}
    header, *rows = table([theirs, ours], tmp_path)
    assert header == ["file", "answer", "probability", "error"]
    assert [row[2] for row in rows] == ["", "0.75"]


def test_schemas_without_fields(tmp_path: Path) -> None:
    endless: dict[str, Any] = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "properties": {"x": {"$ref": "#/$defs/a"}}}
    assert schema_fields(endless) == ["x"]
    tree = {"properties": {"name": {}, "child": {"$ref": "#"}}}
    assert len(schema_fields(tree)) < 20
    for schema in ({}, True, {"type": "array"}, {"$ref": "#/none"}, {"properties": 5}):
        assert schema_fields(schema) == []
    assert table([answered("a", [1, 2])], tmp_path, {"type": "array"})[0] == ["file", "answer", "error"]


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [5]}, {"choices": "x"}, {"error": "x"}])
def test_lines_that_were_edited(body: dict[str, Any], tmp_path: Path) -> None:
    for status, error in ((200, ""), (500, "no reason is recorded")):
        line = {"custom_id": "a", "response": {"status_code": status, "body": body}}
        assert table([line], tmp_path)[1] == ["a", "", error]
        assert table([line], tmp_path, {"properties": {"x": {}}})[1][0] == "a"


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    assert table([answered("\udce9.jpg", "x")], tmp_path)[1][0] == "\\udce9.jpg"


@pytest.mark.parametrize(
    ("output", "format", "expected"),
    [
        ("a.jsonl", None, ("a.jsonl", None)),
        ("a", None, ("a", None)),
        ("a.CSV", None, ("a.jsonl", "a.CSV")),
        ("a.csv", "jsonl", ("a.csv", None)),
        ("a.txt", "csv", ("a.jsonl", "a.txt")),
        ("-", "csv", (None, None)),
    ],
)
def test_which_files_are_written(output: str, format: str | None, expected: tuple[str | None, str | None]) -> None:
    outputs = Outputs.named(Path(output), format)
    assert (outputs.record, outputs.table) == tuple(name and Path(name) for name in expected)


def test_a_table_of_others_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("a,b\n")
    with pytest.raises(RequestError, match=r"not made from a record mine.jsonl; use another -o"):
        Outputs.named(tmp_path / "mine.csv", None)
    with pytest.raises(RequestError, match=r"name the table .*x.csv"):
        Outputs.named(tmp_path / "x.jsonl", "csv")
    with pytest.raises(RequestError, match="jsonl or csv, not xls"):
        Outputs.named(tmp_path / "x.xls", "xls")


# ---- sidecars

HARD = 'A sign: "Fish & <b>Chips</b>" ]]> 5 € \x00\x1b[31m\ud800\ufffe\u2028 & &amp; 🐟'


def parsed(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()


def test_every_text_is_proper_xml(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg.xmp"
    path.write_bytes(sidecar(HARD, "xmp", "<model> & co"))
    [item] = parsed(path).findall(f".//{DC}description/{RDF}Alt/{RDF}li")
    shown = 'A sign: "Fish & <b>Chips</b>" ]]> 5 €   [31m  \u2028 & &amp; 🐟'
    assert item.text == shown
    assert item.get("{http://www.w3.org/XML/1998/namespace}lang") == "x-default"
    if exiftool := shutil.which("exiftool"):
        done = subprocess.run(
            [exiftool, "-j", "-validate", "-warning", "-a", "-XMP:all", path],
            capture_output=True,
            timeout=60,
            check=True,
        )
        [entry] = json.loads(done.stdout)
        assert entry["Description"] == shown and entry["CaptionWriter"] == "pocketvlm (<model> & co)"
        assert entry["Validate"] == "OK"


def test_fields_have_their_own_properties(tmp_path: Path) -> None:
    answer = {"title": "Dinner", "caption": "Two people eat.", "tags": ["people", "food & drink", 5], "count": 2}
    path = tmp_path / "a.xmp"
    path.write_bytes(sidecar(json.dumps(answer), "xmp", "m"))
    texts = {
        name: [item.text for item in parsed(path).findall(f".//{DC}{name}//{RDF}li")]
        for name in ("description", "title", "subject")
    }
    assert texts == {"description": ["Two people eat."], "title": ["Dinner"], "subject": ["people", "food & drink"]}
    assert sidecar(json.dumps(answer), "txt", "m") == b"Two people eat.\n"
    assert sidecar('{"count": 2}', "txt", "m") == b'{"count": 2}\n'


def test_what_is_not_ours_is_kept(tmp_path: Path) -> None:
    ours, others, edited = (tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg"))
    sidecars = Sidecars("txt", {path.name: path for path in (ours, others, edited)})
    (tmp_path / "b.txt").write_text("Written by hand.")
    lines = [answered(name, "A dog.") for name in ("a.jpg", "b.jpg", "c.jpg")]
    for line in lines:
        sidecars.write(line)
    assert sidecars.written == 2 and sidecars.kept == {tmp_path / "b.txt"}
    (tmp_path / "c.txt").write_text("A dog. It is Rex.\n")
    for line in lines:
        sidecars.remove(line)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "b.txt": "Written by hand.",
        "c.txt": "A dog. It is Rex.\n",
    }
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere.txt")
    sidecars.write(lines[0])
    assert not (tmp_path / "elsewhere.txt").exists()


def test_two_pictures_with_one_sidecar(tmp_path: Path) -> None:
    """A raw file and its JPEG have two XMP sidecars, and one text, which is that of the first."""
    pictures = {name: tmp_path / name for name in ("IMG_1.CR2", "IMG_1.JPG")}
    assert [sidecar_path(path, "xmp").name for path in pictures.values()] == ["IMG_1.CR2.xmp", "IMG_1.JPG.xmp"]
    sidecars = Sidecars("txt", pictures)
    for name in ("IMG_1.JPG", "IMG_1.CR2"):
        sidecars.write(answered(name, name))
    assert (tmp_path / "IMG_1.txt").read_text() == "IMG_1.CR2\n" and sidecars.kept == {tmp_path / "IMG_1.txt"}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sidecars = Sidecars("xmp", {"a": tmp_path / "file" / "a.jpg", "b": tmp_path / "b.jpg"})
    for name in "ab":
        sidecars.write(answered(name, "x"))
    assert [*sidecars.faults.values()] == ["Not a directory"] and sidecars.written == 1


# ---- which pictures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "photos/a.jpg",
        "photos/a.jpg.xmp",
        "photos/a.txt",
        "photos/other.txt",
        "photos/b.NEF",
        "photos/x.docx",
        "photos/sub/c.png",
        "photos/.hidden.png",
        "photos/.cache/d.png",
        "more/e.webp",
        "more/letter.pdf",
        "more/README",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "names", "passed_over"),
    [
        (["photos"], ["a.jpg", "b.NEF", "sub/c.png"], {".txt": 1, ".docx": 1}),
        (
            ["photos", "more"],
            ["photos/a.jpg", "photos/b.NEF", "photos/sub/c.png", "more/e.webp", "more/letter.pdf"],
            {".txt": 1, ".docx": 1, "": 1},
        ),
        (["photos/*"], ["photos/a.jpg", "photos/b.NEF", "photos/sub/c.png"], {".txt": 1, ".docx": 1}),
        (["./photos/*.jpg", "photos/a.jpg", "more/[de].webp"], ["photos/a.jpg", "more/e.webp"], {}),
        (["**/*.p*"], ["more/letter.pdf", "photos/sub/c.png"], {}),
        (["photos/.hidden.png"], ["photos/.hidden.png"], {}),
        (["photos/gone.jpg", "more"], ["photos/gone.jpg", "more/e.webp", "more/letter.pdf"], {"": 1}),
        (["."], ["more/e.webp", "more/letter.pdf", "photos/a.jpg", "photos/b.NEF", "photos/sub/c.png"], None),
    ],
)
def test_folders_files_and_patterns(
    sources: list[str], names: list[str], passed_over: dict[str, int] | None, folder: Path
) -> None:
    assert folder == Path.cwd()
    paths = [Path(source) for source in sources]
    assert not is_requests_file(paths[0])
    pictures, others = find_pictures(paths)
    assert [*pictures] == names
    assert passed_over is None or others == passed_over
    assert all(path.exists() or path.name == "gone.jpg" for path in pictures.values())


def test_outputs_are_not_counted(folder: Path) -> None:
    pictures, others = find_pictures([folder / "more"], [folder / "more" / "README"])
    assert [*pictures] == ["e.webp", "letter.pdf"] and not others


@pytest.mark.parametrize(("source", "words"), [("*.gif", "matches no file"), ("photoss", "no such file or folder")])
def test_sources_that_name_nothing(source: str, words: str, folder: Path) -> None:
    assert folder == Path.cwd()
    with pytest.raises(RequestError, match=words):
        find_pictures([Path("more"), Path(source)])
