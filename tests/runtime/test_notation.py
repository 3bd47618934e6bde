"""The notations of document models, as Markdown and as plain text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.reading.notation import doctags, markup
from pocketvlm.reading.notation.tables import otsl_table
from pocketvlm.reading.read_page import Format, PageText
from pocketvlm.reading.write_document import document_pieces
from pocketvlm.system.option_names import use_flags

# Ours in DocTags, and what docling-core makes of them: tests/golden/doctags.py.
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent.parent / "golden" / "doctags.json").read_text("utf-8"))


def shown(markdown: str) -> str:
    """What a viewer shows: comments, the width of columns and the language of code make no difference."""
    text = re.sub(r"<!--.*?-->\n*", "", markdown)
    text = re.sub(r"^\|[-| ]+\|$", lambda rule: "|" + "---|" * (rule[0].count("|") - 1), text, flags=re.MULTILINE)
    text = re.sub(r"(?<=\|) +| +(?=\|)", "", text)
    return re.sub(r"^```\w+$", "```", text, flags=re.MULTILINE).strip()


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "cut off"])
def test_doctags_as_docling_has_them(name: str) -> None:
    expected = GOLDEN[name]["markdown"].replace("Logo\n\n", "")  # docling writes the kind of a picture as text
    assert shown(doctags.markdown(GOLDEN[name]["doctags"])) == shown(expected)


def test_doctags_that_are_cut_off_keep_what_there_is() -> None:
    page = GOLDEN["cut off"]
    assert doctags.markdown(page["doctags"]) == f"{page['markdown']}\n\nthank you for"
    for end in range(len(GOLDEN["table"]["doctags"])):
        doctags.markdown(GOLDEN["table"]["doctags"][:end])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<code><_C++_>a <b> c</code>", "```c++\na <b> c\n```"),
        ("<code>```\nx\n```</code>", "````\n```\nx\n```\n````"),
        ("<text>one<section_header_level_1>Two</section_header_level_1>", "one\n\n## Two"),  # no end tag
        ("<section_header_level_1>One<text>two</text><text>three</text>", "## One\n\ntwo\n\nthree"),
        ("<text>a</title> b</text>", "a b"),  # an end tag without a beginning
        ("<inline><text>where</text><formula>x</formula><text>is small</text></inline>", "where $x$ is small"),
        ("<list_item>one</list_item>\n<list_item>two</list_item>", "- one\n- two"),  # without a list
        ("<unordered_list><list_item>• one</list_item></unordered_list>", "- one"),
        (
            "<ordered_list><list_item>3. three</list_item><list_item>4. four</list_item></ordered_list>",
            "3. three\n4. four",
        ),
        (
            "<unordered_list><list_item>a<ordered_list><list_item>b</list_item></ordered_list></list_item>"
            "</unordered_list>",
            "- a\n  1. b",
        ),
        (
            "<key_value_region><key_0><loc_1>Name<link_0></key_0><value_0>Ada</value_0><key_1>Place</key_1>"
            "</key_value_region>",
            "- Name: Ada\n- Place:",
        ),
        (
            "<chart><bar_chart><ched>Year<ched>Sales<nl><fcel>2025<fcel>7<nl></chart>",
            "| Year | Sales |\n| --- | --- |\n| 2025 | 7 |",
        ),
        ("<unordered_list>one<list_item>two</list_item></unordered_list>", "- one\n- two"),
        ("<picture><logo>Our sign</picture>", "Our sign\n\n<!-- picture: logo -->"),
        ("<section_header_level_12>deep</section_header_level_12>", "###### deep"),
        ("<reference>[1] A book</reference><handwritten_text>Thanks!</handwritten_text>", "[1] A book\n\nThanks!"),
        ("", ""),
        ("<html> is no DocTag & <b>neither</b>", "<html> is no DocTag & <b>neither</b>"),
    ],
)
def test_doctags(source: str, expected: str) -> None:
    assert doctags.markdown(f"<doctag>{source}</doctag>") == expected
    assert doctags.markdown(source) == expected


SPANS = "<ched>Item<ched>2025<lcel><nl><ucel><ched>May<ched>June<nl><rhed>Cards & pens<fcel>1<fcel>2<nl>"


def test_cells_that_span_make_an_html_table() -> None:
    assert otsl_table(SPANS).markdown().splitlines() == [
        "<table>",
        '<tr><th rowspan="2">Item</th><th colspan="2">2025</th></tr>',
        "<tr><th>May</th><th>June</th></tr>",
        "<tr><th>Cards &amp; pens</th><td>1</td><td>2</td></tr>",
        "</table>",
    ]
    both = otsl_table("<fcel>a<lcel><nl><ucel><xcel><nl>").markdown()
    assert '<td rowspan="2" colspan="2">a</td>' in both
    assert otsl_table(SPANS).plain() == "Item\t2025\t\n\tMay\tJune\nCards & pens\t1\t2"


@pytest.mark.parametrize("source", ["<lcel><nl>", "<ucel>a<nl>", "<xcel>", "<nl><nl>", "<fcel>a<nl><lcel><nl>", ""])
def test_otsl_that_makes_no_sense_is_a_table_all_the_same(source: str) -> None:
    otsl_table(source).markdown()


def test_otsl_in_a_text() -> None:
    text = "Prices:\n<fcel>Item<fcel>Price<nl>\n<fcel>A|B<fcel>4 < 5<nl>Thank you.\n<otsl><fcel>x<fcel>y</otsl>"
    assert markup.otsl(text) == (
        "Prices:\n\n| Item | Price |\n| --- | --- |\n| A\\|B | 4 < 5 |\n\nThank you.\n\n| x | y |\n| --- | --- |"
    )
    assert markup.otsl("a <fcel") == "a <fcel"
    assert markup.otsl("<fcel>a<fcel>b\n\nThank you.") == "| a | b |\n| --- | --- |\n\nThank you."


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>",
            "| a | b |\n| --- | --- |\n| 1 | 2 |",
        ),
        (
            "<table><thead><tr><td>a</td></tr></thead><tbody><tr><td>b\n c</td></tr></tbody></table>",
            "| a |\n| --- |\n| b c |",
        ),
        ("<table><tr><td>a<td>b<tr><td>c", "| a | b |\n| --- | --- |\n| c |  |"),  # cut off, without end tags
        (
            "<table><tr><td><p>x</p><b>y</b><br/>z &amp; &#8364;|</td></tr></table>",
            "| x <b>y</b><br>z &amp; &#8364;\\| |\n| --- |",
        ),
        (
            "<TABLE border=1><TR><TD colspan='2'>a</TD></TR></TABLE>",
            '<table>\n<tr><td colspan="2">a</td></tr>\n</table>',
        ),
        ("<table><tr><td rowspan='9999999999' colspan='x'>a</td></tr></table>", "| a |\n| --- |"),
        ("<table><tr><td>a<table><tr><td>b</td></tr></table></td></tr></table>c", "| a b |\n| --- |\n\nc"),
        ("<table></table>", ""),
        ("<table><tr><td>a <!b> <!-- c --><?d</td></tr></table>", "| a &lt;!b> &lt;?d |\n| --- |"),
        ("1 < 2 <table", "1 < 2 <table"),
    ],
)
def test_html_tables(source: str, expected: str) -> None:
    assert markup.markdown(source) == expected


def test_a_large_span_is_cut() -> None:
    assert 'rowspan="200"' in markup.markdown("<table><tr><td rowspan='999999999'>a</td></tr></table>")
    row = "<tr>" + "<td colspan='200'>a</td>" * 7 + "</tr>"
    assert markup.plain_text(f"<table>{row}</table>").count("\t") == 1001  # not 1200


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("```markdown\n# A\n\ntext\n```", "# A\n\ntext"),
        ("```markdown\n# A\n", "# A"),  # cut off
        ("```python\nx\n```", "```python\nx\n```"),  # the page is a program
        ("```\na\n```\ntext\n```\nb\n```", "```\na\n```\ntext\n```\nb\n```"),
        ("a\n\n\n\n\nb\r\n", "a\n\nb"),
    ],
)
def test_markdown(source: str, expected: str) -> None:
    assert markup.markdown(source) == expected


def test_labels_and_places_are_taken_out() -> None:
    """As in the output that the model's documentation shows, and the later form with both in one pair of tags."""
    page = (
        "<|ref|>title<|/ref|><|det|>[[330, 198, 558, 230]]<|/det|>\n# Offer 4711\n\n"
        "<|ref|>image<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n\n"
        "<|ref|>image_caption<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n<center>Our sign </center>\n\n"
        "<|det|>text [90, 230, 910, 380]<|/det|>Dear Ms Okafor\n\n"
        "<|ref|>table<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7, 8]]<|/det|>\n<table><tr><td>a</td></tr></table>"
    )
    assert markup.grounded(page) == (
        "# Offer 4711\n\n<!-- picture -->\n\nOur sign \n\nDear Ms Okafor\n\n| a |\n| --- |"
    )


PIECES = st.sampled_from(
    "<doctag> </doctag> <text> </text> <list_item> </list_item> <unordered_list> <otsl> </otsl> <fcel> <lcel> <ucel> "
    "<xcel> <ecel> <nl> <loc_5> <picture> <logo> <caption> <code> <_C_> <formula> <inline> </inline> <key_0> <value_0> "
    "<table> </table> <tr> </tr> <td> <td/rowspan=3> </td> <th colspan=2> <?y <!-- --> &amp; &x <br> ``` | ** # "
    "<|ref|> <|/ref|> <|det|> <|/det|> image [[1, 2]] a b1".split(" ")
)


@given(st.lists(PIECES | st.sampled_from(["\n", "\n\n", " "]), max_size=40).map("".join))
@settings(max_examples=100, deadline=None)
def test_no_answer_is_an_error(source: str) -> None:
    for convert in (doctags.markdown, markup.markdown, markup.otsl, markup.grounded, markup.plain_text):
        markup.plain_text(convert(source))


@pytest.mark.parametrize("form", ["markdown", "text", "json"])
def test_a_page_that_cannot_be_read_names_options_of_the_command(form: Format) -> None:
    use_flags({"max_pixels": "--max-pixels"})
    try:
        page = PageText(1, "a", "", error="1 is too large; raise max_pixels=2")
        written = "".join(document_pieces("a", [page], form))
    finally:
        use_flags({})
    assert "raise --max-pixels 2" in written and "max_pixels" not in written


def test_elements_within_each_other_without_end() -> None:
    assert "a" in doctags.markdown("<unordered_list><list_item>" * 5000 + "a")
    assert "a" in markup.markdown("<table><tr><td>" * 5000 + "a")


def test_plain_text() -> None:
    source = (
        "# Offer **4711**\n\n<!-- picture: logo -->\n\nDear *Ms* Okafor,<br>see [our site](http://x.test) &amp; pay "
        "$a*b*c$.\n\n| Item | A\\|B |\n|---|:-:|\n| **Cards** | 40 |\n\n"
        '<table>\n<tr><td rowspan="2">x</td><td>y &lt; 1</td></tr>\n<tr><td>z</td></tr>\n</table>\n\n'
        "```python\nprint()\n```\n![a sign](s.png)"
    )
    assert markup.plain_text(source) == (
        "Offer 4711\n\nDear *Ms* Okafor,\nsee our site & pay $a*b*c$.\n\nItem\tA|B\nCards\t40\n\n"
        "x\ty < 1\n\tz\n\nprint()\na sign"
    )
