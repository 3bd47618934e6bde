"""Write doctags.json: pages of ours in DocTags, and the Markdown that docling-core makes of them.

A record of how the file was made, not run by the tests:

    python tests/golden/doctags.py        # needs docling-core; it was run with docling-core 2.104.0

Page headers and footers are included. What a text has of `_` and `<` is not escaped.
"""

from __future__ import annotations

import json
from pathlib import Path

from docling_core.transforms.serializer.markdown import MarkdownDocSerializer, MarkdownParams
from docling_core.types.doc import ContentLayer, DoclingDocument
from docling_core.types.doc.document import DocTagsDocument
from PIL import Image

FILE = Path(__file__).with_name("doctags.json")


def at(*box: int) -> str:
    return "".join(f"<loc_{place}>" for place in box)


PAGES = {
    "letter": f"<doctag><page_header>{at(30, 20, 470, 30)}Rivera Printing, Easthaven</page_header>\n"
    f"<section_header_level_1>{at(30, 60, 300, 75)}Offer 4711</section_header_level_1>\n"
    f"<text>{at(30, 90, 470, 120)}Dear Ms Okafor, thank you for your letter of 3 May.</text>\n"
    f"<text>{at(30, 130, 470, 160)}We offer:</text>\n"
    f"<unordered_list><list_item>{at(40, 170, 400, 180)}500 cards</list_item>\n"
    f"<list_item>{at(40, 185, 400, 195)}20 posters</list_item>\n</unordered_list>\n"
    f"<page_footer>{at(230, 480, 270, 490)}Page 1</page_footer>\n</doctag>",
    "table": f"<doctag><otsl>{at(30, 60, 470, 200)}<caption>{at(30, 50, 200, 58)}Table 1: Prices</caption>"
    "<ched>Item<ched>Number<ched>Price<nl><fcel>Cards<fcel>500<fcel>40.00<nl><fcel>Posters<ecel><fcel>90.00<nl>"
    "</otsl>\n</doctag>",
    "code": f"<doctag><title>{at(1, 1, 400, 20)}How to print</title>\n"
    f"<code>{at(1, 30, 400, 60)}<_Python_>for page in book:\n    print(page)</code>\n"
    f"<formula>{at(1, 70, 400, 90)}E = m c^{{2}}</formula>\n</doctag>",
    "picture": f"<doctag><picture>{at(1, 1, 100, 100)}<logo><caption>{at(1, 101, 100, 110)}Our sign</caption></picture>"
    f"\n<text>{at(1, 120, 400, 130)}Since 1911</text>\n</doctag>",
    "steps": f"<doctag><ordered_list><list_item>{at(1, 1, 100, 10)}Open the lid</list_item>\n"
    f"<list_item>{at(1, 12, 100, 20)}Pour</list_item>\n</ordered_list>\n"
    f"<section_header_level_2>{at(1, 30, 100, 40)}Care</section_header_level_2>\n"
    f"<footnote>{at(1, 450, 100, 460)}1 Never upside down</footnote>\n</doctag>",
    "marks": f"<doctag><text>{at(1, 1, 400, 20)}a < b and snake_case</text>\n</doctag>",
    "boxes": f"<doctag><checkbox_selected>{at(1, 1, 100, 10)}By post</checkbox_selected>\n"
    f"<checkbox_unselected>{at(1, 12, 100, 20)}By hand</checkbox_unselected>\n</doctag>",
    "cut off": f"<doctag><section_header_level_1>{at(1, 1, 100, 10)}Offer</section_header_level_1>\n"
    f"<text>{at(1, 12, 400, 20)}Dear Ms Okafor</text>\n<text>{at(1, 30, 400, 40)}thank you for",
}


def converted(page: str) -> str:
    image = Image.new("RGB", (500, 500), "white")
    tags = DocTagsDocument.from_doctags_and_image_pairs([page], [image])
    document = DoclingDocument.load_from_doctags(tags)
    parameters = MarkdownParams(
        layers={ContentLayer.BODY, ContentLayer.FURNITURE}, escape_html=False, escape_underscores=False
    )
    return MarkdownDocSerializer(doc=document, params=parameters).serialize().text


if __name__ == "__main__":
    record = {name: {"doctags": page, "markdown": converted(page)} for name, page in PAGES.items()}
    FILE.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
