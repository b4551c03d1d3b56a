"""Write the repository as a handout: chosen bodies are taken out, and what gives them away.

    python -m course.handout OUT                  # all exercises
    python -m course.handout OUT --only kl law    # these alone; the others stay solved
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from tyro.conf import Positional

from course.marks import ROOT, exchange, exercises, heading, product_files, run
from course.tests.compare import cases

FOLDERS = "kernels runtime benchmarks study bench recipes models tests course".split()
FILES = "README.md LICENSE requirements.txt pyproject.toml results/study/points_inverse.csv".split()
TEACHERS = "marks.py handout.py grade.py preview.py teacher course_oracle.py test_course.py".split()


def uses(path: Path, lines: str = r"^\s*(?:from|import) .*") -> set[str]:
    """The words on the import lines of a file, or on other lines."""
    found = re.findall(lines, (ROOT / path).read_text(), re.MULTILINE)
    return set(re.findall(r"\w+", "\n".join(found)))


def tests_to_drop(removed: Iterable[Path]) -> list[Path]:
    """Tests of the product that reach a removed body: they would fail, or transcribe it."""
    reaching = {path.stem for path in removed} | {"results"}  # a folder that is not copied
    files = {path.stem: uses(path) for path in product_files()}
    while more := {name for name in files.keys() - reaching if files[name] & reaching}:
        reaching |= more
    if "model" in reaching:
        reaching |= {"ours", "ranks"}  # a fixture that loads a model, and what runs on two ranks
    # A test also names its fixtures, its commands and folders.
    lines = r"""^\s*(?:from|import|def test).*|\w+\.py\b|study\.\w+|"results"|results/"""
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").glob("test_*.py")]
    return [path for path in tests if uses(path, lines) & reaching]


def write(out: Path, ids: Iterable[str] = ()) -> None:
    """Write the handout. FileExistsError if `out` holds something; ValueError for an unknown id."""
    removed = exercises(ids)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; give a new directory")
    left_out = shutil.ignore_patterns(*TEACHERS, "__pycache__", "*.pyc", ".*")
    for name in [*FOLDERS, *FILES, *(path.name for path in ROOT.glob("*.py"))]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, out / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, out / name)
    for exercise, files in removed.items():
        assignment, _ = heading(exercise)
        blank = f'raise NotImplementedError("{exercise}: see course/{assignment}.md")\n'
        for path, marks in files.items():
            blanks = [mark["indent"] + blank for mark in marks]
            exchange(out / path, exercise, blanks)
    for exercise in exercises():
        shown = [case for case in cases(exercise) if not case["hidden"]]
        (out / f"course/tests/{exercise}.json").write_text(json.dumps(shown))
    for path in tests_to_drop({path for files in removed.values() for path in files}):
        (out / path).unlink(missing_ok=True)


def main(out: Positional[Path], only: tuple[str, ...] = ()) -> None:
    write(out, only)
    print(f"{out}: without {', '.join(exercises(only))}. Start with {out}/course/README.md")


if __name__ == "__main__":
    run(main)
