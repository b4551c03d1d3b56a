"""Exercises are marked bodies of the product, in one place or several:

    # <solution id="advantages" points="10">
    ...
    # </solution>
"""

import ast
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(
    r'^(?P<indent> *)# <solution id="(?P<id>\w+)" points="(?P<points>\d+)">\n'
    r"(?P<body>.*?)(?=^ *# <(?P<closed>/?)solution|\Z)",  # the next marker closes it, if it can
    re.MULTILINE | re.DOTALL,
)


def marked(path: Path, text: str, exercise: str) -> list[re.Match]:
    """The marks of an exercise in a file. ValueError for one that does not close."""
    found = [mark for mark in MARK.finditer(text) if mark["id"] == exercise]
    if not all(mark["closed"] for mark in found):
        raise ValueError(f"{path}: the marker of {exercise} does not close before the next marker")
    return found


def exchange(path: Path, exercise: str, bodies: list[str]) -> None:
    """Put other bodies for an exercise into a file."""
    text = path.read_text()
    pairs = zip(marked(path, text, exercise), bodies, strict=True)
    for mark, body in reversed(list(pairs)):
        text = text[: mark.start("body")] + body + text[mark.end("body") :]
    path.write_text(text)


def check_body(path: Path, body: str, indent: str) -> None:
    """ValueError for a body that is not Python, or that ends its function and goes on behind it."""
    try:
        parsed = ast.parse(f"def marked():\n{body}").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: the body is not Python: {error}") from error
    if len(parsed) > 1 or parsed[0].body[0].col_offset != len(indent):
        raise ValueError(f"{path}: the body leaves its function: indent it by {len(indent)} spaces")


def product_files() -> list[Path]:
    """The Python files of the product, relative to its root."""
    folders = [ROOT, *(ROOT / name for name in ("kernels", "runtime", "benchmarks", "study"))]
    return sorted(path.relative_to(ROOT) for folder in folders for path in folder.glob("*.py"))


def exercises(ids: Iterable[str] = ()) -> dict[str, dict[Path, list[re.Match]]]:
    """{exercise: {file: its marks}} of these ids, or all. ValueError for an unknown id."""
    found = {}
    for path in product_files():
        text = (ROOT / path).read_text()
        for exercise in {mark["id"] for mark in MARK.finditer(text)}:
            found.setdefault(exercise, {})[path] = marked(path, text, exercise)
    for exercise in set(ids) - set(found):
        raise ValueError(f"{exercise}: no such exercise; there are {', '.join(sorted(found))}")
    return {exercise: found[exercise] for exercise in sorted(ids or found, key=heading)}


def heading(exercise: str) -> tuple[str, int]:
    """Where an exercise is set: (assignment, the name of its page in course/; place there)."""
    for page in sorted((ROOT / "course").glob("?_*.md")):
        if found := re.search(rf"^## {exercise}\b", page.read_text(), re.MULTILINE):
            return page.stem, found.start()
    raise ValueError(f"{exercise}: no page of course/ has the heading ## {exercise}")


def run(command: Callable) -> None:
    """A function as a command. Errors that a user can mend end in one line."""
    try:
        tyro.cli(command, description=sys.modules["__main__"].__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
