"""DocTags, the notation of docling's models, as Markdown.

The tags are those of docling-core's `DocumentToken` and `TableToken`
(https://github.com/docling-project/docling-core, docling_core/types/doc/tokens.py), the meanings those of the paper on
SmolDocling (https://arxiv.org/abs/2503.11576). An answer that was cut off, or lacks end tags, is converted as far as it
goes; tags that are not DocTags are text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pocketvlm.reading.notation.tables import OTSL_CELLS, otsl_table

_LEAVES = frozenset(
    "text title caption footnote formula code page_header page_footer paragraph reference handwritten_text "
    "checkbox_selected checkbox_unselected smiles".split()
)
_CONTAINERS = frozenset(
    "doctag otsl chart table document_index ordered_list unordered_list list_item picture inline form "
    "key_value_region group".split()
)
_NUMBERED = r"section_header_level_\d{1,3}|key_\d+|value_\d+"  # they have an end tag
_VOID = r"loc_\d+|link_\d+|page_break|_[A-Za-z0-9#+]+_"  # they have none
_CLASSES = frozenset(
    "other picture_group pie_chart bar_chart line_chart flow_chart stacked_bar_chart scatter_chart heatmap "
    "remote_sensing natural_image chemistry_molecular_structure chemistry_markush_structure icon logo signature stamp "
    "qr_code bar_code screenshot map stratigraphic_chart cad_drawing electrical_diagram".split()
)
_NAMES = "|".join([*sorted({*_LEAVES, *_CONTAINERS, *_CLASSES, *OTSL_CELLS, "nl"}), _NUMBERED, _VOID])
_TAG = re.compile(rf"<(/?)({_NAMES})>")
_PAIRED = re.compile(rf"{'|'.join(sorted({*_LEAVES, *_CONTAINERS}))}|{_NUMBERED}")
_CLOSED_BY_BLOCKS = re.compile(rf"{'|'.join(sorted(_LEAVES))}|section_header_level_\d{{1,3}}")
_DEEPEST = 50  # elements within each other; a page has a few
_BULLET = re.compile(r"^[-*•·◦○▪‣–]\s+")
_NUMBER = re.compile(r"^\(?(\d{1,3})[.)]\s+")


@dataclass(eq=False)  # compared by identity: a value has everything within it
class _Node:
    name: str
    children: list[_Node | str] = field(default_factory=list)

    def text(self) -> str:
        """Return the text within, without tags and line breaks."""
        return " ".join("".join(child if isinstance(child, str) else child.text() for child in self.children).split())

    def nodes(self) -> list[_Node]:
        """Return the children; text between elements counts as one of the kind `text`."""
        nodes = [_Node("text", [child]) if isinstance(child, str) else child for child in self.children]
        return [node for node in nodes if node.name != "text" or node.text()]


def markdown(source: str) -> str:
    """Return the Markdown of a page in DocTags. Page headers and footers are paragraphs; positions are left out."""
    return "\n\n".join(_blocks(_parse(source)))


def _parse(source: str) -> _Node:
    root = _Node("doctag")
    stack = [root]
    end = 0
    for tag in _TAG.finditer(source):
        if text := source[end : tag.start()]:
            stack[-1].children.append(text)
        end = tag.end()
        closing, name = tag.groups()
        if not _PAIRED.fullmatch(name):
            stack[-1].children.append(_Node(name))
        elif not closing:
            inline = any(node.name == "inline" for node in stack)
            while not inline and len(stack) > 1 and _CLOSED_BY_BLOCKS.fullmatch(stack[-1].name):
                stack.pop()  # its end tag is missing
            node = _Node(name)
            stack[-1].children.append(node)
            if len(stack) < _DEEPEST:
                stack.append(node)
        elif any(node.name == name for node in stack[1:]):
            while stack.pop().name != name:
                pass
    if text := source[end:]:
        stack[-1].children.append(text)
    return root


def _blocks(node: _Node) -> list[str]:
    blocks: list[str] = []
    loose: list[_Node] = []  # items without a list
    for child in node.children:
        if isinstance(child, _Node) and child.name == "list_item":
            loose.append(child)
            continue
        if loose and not (isinstance(child, str) and not child.strip()):
            blocks.append(_items(loose, numbered=False))
            loose = []
        blocks += [text] if isinstance(child, str) and (text := " ".join(child.split())) else []
        blocks += _block(child) if isinstance(child, _Node) else []
    return [*blocks, *([_items(loose, numbered=False)] if loose else [])]


def _block(node: _Node) -> list[str]:
    """Return the Markdown of one element, as blocks that stand apart."""
    name = node.name
    if name.startswith("section_header_level_"):
        return _headed("#" * (min(int(name.rpartition("_")[2]), 5) + 1), node)
    match name:
        case "title":
            return _headed("#", node)
        case "ordered_list" | "unordered_list":
            children = node.nodes()
            items = [child for child in children if child.name in ("list_item", "text")]
            others = [block for child in children if child.name not in ("list_item", "text") for block in _block(child)]
            return [*([_items(items, numbered=name == "ordered_list")] if items else []), *others]
        case "code":
            return [_fence(node)]
        case "formula":
            return [f"$${text}$$"] if (text := node.text()) else []
        case "inline":
            return [text] if (text := _inline(node)) else []
        case "otsl" | "table" | "chart" | "document_index":
            return _table(node)
        case "picture":
            return _picture(node)
        case "checkbox_selected" | "checkbox_unselected":
            return [f"- [{'x' if name == 'checkbox_selected' else ' '}] {node.text()}"]
        case "form" | "key_value_region":
            return _pairs(node)
        case "doctag" | "group":
            return _blocks(node)
        case "smiles":
            return [f"`{text}`"] if (text := node.text()) else []
    return [text] if (text := node.text()) else []


def _headed(marks: str, node: _Node) -> list[str]:
    return [f"{marks} {text}"] if (text := node.text()) else []


def _items(items: list[_Node], *, numbered: bool) -> str:
    lines: list[str] = []
    number = 0
    for item in items:
        lists = ("ordered_list", "unordered_list")
        inner = [child for child in item.nodes() if child.name in lists]
        own = _Node("inline", [child for child in item.children if isinstance(child, str) or child.name not in lists])
        text = _inline(own)
        number += 1
        if numbered:
            if match := _NUMBER.match(text):
                number, text = int(match[1]), text[match.end() :]
            mark = f"{number}. "
        else:
            mark, text = "- ", _BULLET.sub("", text)
        lines.append(mark + text)
        for block in (block for child in inner for block in _block(child)):
            lines += [" " * len(mark) + line for line in block.splitlines()]
    return "\n".join(lines)


def _inline(node: _Node) -> str:
    """Return the parts of a paragraph, with formulas and code within the line."""
    texts = []
    for child in node.children:
        if isinstance(child, str):
            texts.append(" ".join(child.split()))
        elif child.name == "formula":
            texts.append(f"${child.text()}$")
        elif child.name == "code":
            texts.append(f"`{child.text()}`")
        elif child.name in ("inline", "text", "list_item"):
            texts.append(_inline(child))
        else:
            texts.append(child.text())
    return " ".join(filter(None, texts))


def _fence(node: _Node) -> str:
    language = next((child.name.strip("_") for child in node.nodes() if child.name.startswith("_")), "")
    language = "" if language == "unknown" else language.lower()
    text = "".join(child for child in node.children if isinstance(child, str)).strip("\n")
    longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _table(node: _Node) -> list[str]:
    captions = [text for child in node.nodes() if child.name == "caption" and (text := child.text())]
    cells: list[str] = []
    for child in node.children:
        if isinstance(child, str):
            cells.append(child)
        elif child.name in OTSL_CELLS or child.name == "nl":
            cells.append(f"<{child.name}>")
        elif child.name not in ("caption", "otsl") and not child.name.startswith("loc_"):
            cells.append(child.text())
    inner = [block for child in node.nodes() if child.name == "otsl" for block in _table(child)]
    return [*captions, *filter(None, [otsl_table("".join(cells)).markdown()]), *inner]


def _picture(node: _Node) -> list[str]:
    kind = next((child.name for child in node.nodes() if child.name in _CLASSES), None)
    inner = [block for child in node.nodes() if _PAIRED.fullmatch(child.name) for block in _block(child)]
    return [*inner, picture_mark(kind)]


def picture_mark(kind: str | None = None) -> str:
    """Return what stands in Markdown for a picture on the page; a viewer does not show it."""
    return f"<!-- picture: {kind.replace('_', ' ')} -->" if kind else "<!-- picture -->"


def _pairs(node: _Node) -> list[str]:
    keys: dict[str, str] = {}
    values: dict[str, str] = {}
    others: list[str] = []
    for child in node.nodes():
        kind, _, number = child.name.rpartition("_")
        if kind in ("key", "value"):
            (keys if kind == "key" else values)[number] = child.text()
        elif _PAIRED.fullmatch(child.name):
            others += _block(child)
    lines = [f"- {keys.get(n, '')}: {values.get(n, '')}".replace("- : ", "- ").rstrip() for n in {**keys, **values}]
    return [*(["\n".join(lines)] if lines else []), *others]
