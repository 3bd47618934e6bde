#!/usr/bin/env bash
# rich's Markdown prints nothing of a table that is written in HTML, nor of a number with a dot.
#
# Version: rich 15.0.0.
#
# Expected: a terminal cannot show HTML, so it is printed as it stands, or at least its text is. "42." is text.
#
# Seen: tags of HTML vanish, and so does all text in a block of HTML. "42." is a list of one empty item, as CommonMark
# has it, and such an item is printed without its number.
#
#   source                               printed
#   <table><tr><td>42</td></tr></table>  nothing
#   5 <b>apples</b>                      5 apples
#   a <- b -> c                          a <- b -> c
#   42.                                  nothing
#   42. is it                            42 is it
#
# Why it matters: vision-language models transcribe tables as HTML, and answer with a number. A program that shows their
# answers with rich shows an empty answer, with no error. Disabling the rules html_block and html_inline of its parser
# helps, with `Markdown.parsed` replaced.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile rich==15.0.0
cd "$dir"
PYTHONDONTWRITEBYTECODE=1 venv/bin/python - <<'PYTHON'
import io
import sys

from rich.console import Console
from rich.markdown import Markdown

expected = {
    "<table><tr><td>42</td></tr></table>": "",
    "5 <b>apples</b>": "5 apples",
    "a <- b -> c": "a <- b -> c",
    "42.": "",
    "42. is it": "42 is it",
}
changed = False
for source, before in expected.items():
    file = io.StringIO()
    Console(file=file, width=60).print(Markdown(source))
    printed = file.getvalue().strip()
    print(f"{source:40}{printed!r}")
    changed |= printed != before
sys.exit("rich behaves differently now" if changed else 0)
PYTHON
