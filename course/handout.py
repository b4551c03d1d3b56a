"""Write the repository as a handout: chosen bodies are taken out, and what gives them away.

    python -m course.handout OUT                  # all exercises
    python -m course.handout OUT --only kl law    # these alone; the others stay solved
"""

import argparse
import ast
import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from course.check import cases
from course.marks import ROOT, chosen, exchange, marks, product_files

COPIED = """
    kernels runtime benchmarks study bench recipes models tests course
    README.md LICENSE requirements.txt pyproject.toml
""".split()
# Left out: what makes and grades handouts, the teacher's figures, and the stored values' source.
TEACHERS = "marks.py handout.py grade.py preview.py teacher course_oracle.py test_course.py".split()
POINTS_OF_THE_STUDY = Path("results/study/points_inverse.csv")  # assignment 6 fits them


def page_of(exercise: str) -> str:
    """The page of the assignment that sets an exercise: the one with its heading."""
    for page in sorted((ROOT / "course").glob("*.md")):
        if re.search(rf"^## {exercise}\b", page.read_text(), re.MULTILINE):
            return f"course/{page.name}"
    raise ValueError(f"{exercise}: no page in course/ has the heading ## {exercise}")


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def reaching(removed: set[str], files: Iterable[Path]) -> set[str]:
    """The removed modules, and those of these files that import one of them, at any distance."""
    uses = {module_of(path): imported(ROOT / path) for path in files}
    found = set(removed)
    while more := {name for name in uses.keys() - found if uses[name] & found}:
        found |= more
    return found


def tests_to_drop(removed: Iterable[Path]) -> list[Path]:
    """Tests of the product that reach a removed body: they would fail, or transcribe it."""
    study = [path.relative_to(ROOT) for path in (ROOT / "study").glob("*.py")]
    files = [*product_files(ROOT), *study]
    modules = reaching({module_of(path) for path in removed}, files)
    found = []
    for path in (ROOT / "tests").glob("test_*.py"):
        text = path.read_text()
        runs = [name for name in modules if re.search(rf"\b{name}(\.py)?\b[\"' ]", text)]
        # The fixture `ours` of conftest.py loads a model.
        loads = "model" in modules and re.search(r"\bours\b", text)
        if runs or loads or imported(path) & modules:
            found.append(path.relative_to(ROOT))
    return found


def write(out: Path, ids: Iterable[str] = ()) -> None:
    """Write the handout. FileExistsError if `out` holds something; ValueError for an unknown id."""
    removed = chosen(ids)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; give a new directory")
    out.mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns(*TEACHERS, "__pycache__", "*.pyc", ".*")
    for name in [*COPIED, *(path.name for path in ROOT.glob("*.py"))]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, out / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, out / name)
    (out / POINTS_OF_THE_STUDY).parent.mkdir(parents=True)
    shutil.copy(ROOT / POINTS_OF_THE_STUDY, out / POINTS_OF_THE_STUDY)

    for exercise, files in removed.items():
        message = f"{exercise}: see {page_of(exercise)}"
        for path, found in files.items():
            blanks = [f'{" " * mark.indent}raise NotImplementedError("{message}")' for mark in found]
            text = exchange((out / path).read_text(), exercise, blanks)
            (out / path).write_text(text)
    for path in {path for files in removed.values() for path in files}:
        assert len(list(marks((out / path).read_text()))) == len(list(marks((ROOT / path).read_text())))
    for exercise in chosen(()):
        shown = [case for case in cases(exercise) if not case["hidden"]]
        lines = ",\n".join(map(json.dumps, shown))
        (out / "course" / "tests" / f"{exercise}.json").write_text(f"[\n{lines}\n]\n")
    for path in tests_to_drop({path for files in removed.values() for path in files}):
        (out / path).unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="directory to write, which must not exist or be empty")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="exercises to take out")
    flags = parser.parse_args()
    write(flags.out, flags.only)
    print(f"{flags.out}: {len(chosen(flags.only))} exercises; start with {flags.out}/course/README.md")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"handout: {error}")
