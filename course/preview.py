"""Try the course before it is handed out: the handout earns nothing, the reference everything.

    python -m course.preview [--only ID ..]
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from course.grade import grade, table
from course.handout import write
from course.marks import exchange, exercises, run


def main(only: tuple[str, ...] = ()) -> None:
    with TemporaryDirectory() as directory:
        out = Path(directory)
        write(out, only)
        untouched = grade(out, only)
        for exercise, files in exercises(only).items():
            for path, marks in files.items():
                bodies = [mark["body"] for mark in marks]
                exchange(out / path, exercise, bodies)
        solved = grade(out, only)
    print(f"The untouched handout:\n{table(untouched)}\n\nThe reference:\n{table(solved)}")
    if any(g.earned for g in untouched) or any(g.earned < g.points for g in solved):
        raise ValueError("the handout must earn nothing, and the reference everything")


if __name__ == "__main__":
    run(main)
