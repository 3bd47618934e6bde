"""Check that the code suits the Python that runs this: `python3.13 scripts/import_check.py`.

Parses every file, and imports every name that a module takes from the standard library when it is imported. Needs no
installed package, so it also runs with a Python that has none.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("runtime", "converters", "models/pocketvlm_models", "examples")


def main() -> None:
    problems: list[str] = []
    count = 0
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            count += 1
            problems += [f"{path.relative_to(ROOT)}: {problem}" for problem in check(path.read_text("utf-8"))]
    print(f"Python {sys.version.split()[0]}: {count} files, {len(problems)} problems")
    if problems:
        sys.exit("\n".join(problems))


def check(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield f"line {error.lineno}: {error.msg}"
        return
    for node in tree.body:  # not below `if` and `try`, which choose by version or system
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            wanted = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in wanted:
            if module.partition(".")[0] in sys.stdlib_module_names and not exists(module, name):
                yield f"line {node.lineno}: no {name or 'such module'} in {module}"


def exists(module: str, name: str | None) -> bool:
    try:
        imported = importlib.import_module(module)
    except ImportError:
        return False
    if name is None or hasattr(imported, name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
