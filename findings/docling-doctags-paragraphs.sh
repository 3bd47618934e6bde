#!/usr/bin/env bash
# docling-core writes paragraphs, references and handwriting in DocTags, and drops them when it reads its own DocTags.
#
# Version: docling-core 2.104.0.
#
# Expected: a document that is exported to DocTags and loaded again has the same texts, or a warning says which are lost.
#
# Seen: of the labels of texts that export_to_doctags writes, `paragraph`, `reference` and `handwritten_text` are not
# read by load_from_doctags: their texts are gone, with no warning, while the texts around them are there. So is the
# last element where a page in DocTags is cut off, as by a limit of tokens: its words are there, its end tag is not.
#
#   label              written as                        read back
#   text               <text>...</text>                  yes
#   footnote           <footnote>...</footnote>          yes
#   paragraph          <paragraph>...</paragraph>        no
#   reference          <reference>...</reference>        no
#   handwritten_text   <handwritten_text>...             no
#
# Why it matters: DocTags is what Granite-Docling and SmolDocling write, and load_from_doctags is the documented way
# from their answers to Markdown. A bibliography can vanish from a page that looks complete. The words are still in the
# answer; look for tags that the parser does not know, or convert DocTags yourself.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile docling-core==2.104.0
PYTHONDONTWRITEBYTECODE=1 "$dir/venv/bin/python" -W error - <<'PYTHON'
import sys

from docling_core.types.doc import BoundingBox, CoordOrigin, DocItemLabel, DoclingDocument, ProvenanceItem, Size
from docling_core.types.doc.document import DocTagsDocument
from PIL import Image

PLACE = BoundingBox(l=10, t=10, r=90, b=20, coord_origin=CoordOrigin.TOPLEFT)
EXPECTED = {"text": True, "footnote": True, "paragraph": False, "reference": False, "handwritten_text": False}


def read(doctags):
    page = DocTagsDocument.from_doctags_and_image_pairs([doctags], [Image.new("RGB", (500, 500))])
    return [item.text for item in DoclingDocument.load_from_doctags(page).texts]


changed = False
for label, expected in EXPECTED.items():
    document = DoclingDocument(name="letter")
    document.add_page(1, Size(width=500, height=500))
    for name, words in ((DocItemLabel.TEXT, "before"), (DocItemLabel(label), "within"), (DocItemLabel.TEXT, "after")):
        document.add_text(name, words, prov=ProvenanceItem(page_no=1, bbox=PLACE, charspan=(0, len(words))))
    doctags = document.export_to_doctags()
    texts = read(doctags)
    print(f"{label}: written {f'<{label}>' in doctags}, read {texts}")
    changed |= f"<{label}>" not in doctags or texts != ["before", *["within"] * expected, "after"]
cut = doctags[: doctags.index("after") + len("after")]
print(f"cut off after the last word: read {read(cut)}")
changed |= "after" in read(cut)
sys.exit("docling-core reads its own DocTags differently now" if changed else 0)
PYTHON
