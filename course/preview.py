"""Try the course before it is handed out: full marks for the reference, zero for the handout.

    python -m course.preview [--only ID ..]
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks import sandbox
from course import handout
from course.grade import LIMITS, Grade, grade, table
from course.marks import ROOT, bodies, chosen, exchange


def fill_in(directory: Path, ids: Iterable[str]) -> None:
    """Put the reference solutions into a handout."""
    for exercise, files in chosen(ids).items():
        for path in files:
            new = bodies((ROOT / path).read_text(), exercise)
            text = exchange((directory / path).read_text(), exercise, new)
            (directory / path).write_text(text)


def preview(ids: Iterable[str] = ()) -> tuple[list[Grade], list[Grade]]:
    """The grades of an untouched handout, and of the handout with the reference solutions."""
    try:
        contained = bool(sandbox.holding(LIMITS))
    except sandbox.Refused as error:
        print(f"note: our own code runs without a sandbox. {error}", file=sys.stderr)
        contained = False
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "handout")
        handout.write(out, ids)
        untouched = grade(out, ids, contained)
        fill_in(out, ids)
        return untouched, grade(out, ids, contained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="exercises to try")
    untouched, solved = preview(parser.parse_args().only)
    print(f"The untouched handout:\n{table(untouched)}\n\nThe reference:\n{table(solved)}")
    if any(g.earned for g in untouched) or any(g.earned < g.points for g in solved):
        sys.exit("preview: the handout must earn nothing, and the reference everything")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"preview: {error}")
