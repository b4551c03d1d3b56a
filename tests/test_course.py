"""The course: handouts lack what they should, and points are given for right bodies alone."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import course_oracle
import pytest

from benchmarks import sandbox
from course import grade as grader
from course.handout import write
from course.marks import exchange, exercises, heading
from course.tests.compare import cases, complaint

ROOT = Path(__file__).resolve().parent.parent
IDS = list(exercises())


def refused() -> str:
    try:
        return "" if sandbox.holding(grader.LIMITS) else "-"
    except sandbox.Refused as error:
        return str(error)


needs_sandbox = pytest.mark.skipif(bool(refused()), reason=refused() or "-")


def reference(exercise: str) -> dict[Path, list[str]]:
    """{file: the bodies of the solution}"""
    return {p: [mark["body"] for mark in marks] for p, marks in exercises()[exercise].items()}


def submit(directory: Path, exercise: str, bodies: dict) -> None:
    for path, new in bodies.items():
        exchange(directory / path, exercise, new)


def same(exercise: str, body: str) -> dict[Path, list[str]]:
    """This body, indented by four spaces more than written, in all places of an exercise."""
    found = {}
    for path, marks in exercises()[exercise].items():
        found[path] = []
        for mark in marks:
            lines = [mark["indent"] + line for line in body.strip("\n").split("\n")]
            found[path].append("\n".join(lines) + "\n")
    return found


@pytest.fixture(scope="module")
def handout(tmp_path_factory):
    out = tmp_path_factory.mktemp("course") / "handout"
    write(out)
    return out


# ---- The stored values ---------------------------------------------------------------------------


def test_every_exercise_has_a_page_a_test_and_its_points():
    assert len(IDS) <= 12
    total = 0
    for exercise, files in exercises().items():
        points = sum(int(mark["points"]) for marks in files.values() for mark in marks)
        total += points
        page, _ = heading(exercise)
        # Caught: a page that promises other points than the grader gives.
        assert f"## {exercise} ({points} points)" in (ROOT / "course" / f"{page}.md").read_text()
        assert (ROOT / f"course/tests/test_{exercise}.py").is_file()
    assert total == 100


@pytest.mark.parametrize("exercise", course_oracle.EXERCISES)
def test_stored_values_are_those_of_the_float64_transcription(exercise):
    assert sorted(course_oracle.EXERCISES) == sorted(IDS)
    fresh = json.loads(course_oracle.text(exercise))
    stored = cases(exercise)
    assert [case["inputs"] for case in fresh] == [case["inputs"] for case in stored]
    for new, old in zip(fresh, stored, strict=True):
        assert complaint(old, new["expected"]) == ""
    assert any(case["hidden"] for case in stored) and not all(case["hidden"] for case in stored)


def test_a_mistake_gets_its_hint_and_a_near_number_passes():
    case = {"expected": [1.0, 2], "mistakes": [{"came": [-1.0, 2], "hint": "the sign"}]}
    assert complaint(case, [1.00001, 2]) == ""
    assert complaint(case, [-1.0, 2]) == "answer[0]: expected 1, came -1\nhint: the sign"
    for wrong in (None, [1.0], [1.0, 2.0], [1.0, True], [float("nan"), 2], ["1", 2]):
        assert complaint(case, wrong).startswith("answer")


@pytest.mark.parametrize("exercise", IDS)
def test_usual_mistakes_are_wrong_and_get_their_hints(exercise):
    # Caught: a case in which a mistake comes so near to the truth that it passes.
    stored = cases(exercise)
    mistakes = [(case, mistake) for case in stored for mistake in case["mistakes"]]
    assert mistakes
    for case, mistake in mistakes:
        assert f"hint: {mistake['hint']}" in complaint(case, mistake["came"])


# ---- The handout ---------------------------------------------------------------------------------


def test_a_handout_has_nothing_that_gives_it_away(handout):
    names = {path.name for path in handout.rglob("*")}
    absent = {".git", "LOG.md", "__pycache__", "teacher", "grade.py", "course_oracle.py"}
    assert not names & absent
    assert {"test_grpo.py", "test_algorithms.py", "test_logprob.py"}.isdisjoint(names)
    assert [p.name for p in (handout / "results").rglob("*.*")] == ["points_inverse.csv"]
    for exercise in IDS:
        stored = json.loads((handout / f"course/tests/{exercise}.json").read_text())
        assert stored and not any(case["hidden"] for case in stored)
        for path, bodies in reference(exercise).items():
            text = (handout / path).read_text()
            assert all(body not in text for body in bodies)
            page = f"course/{heading(exercise)[0]}.md"
            assert f'raise NotImplementedError("{exercise}: see {page}")' in text


@pytest.mark.parametrize("only", [(), ("kl", "law")], ids=["all", "two"])
def test_exactly_the_tests_of_the_removed_parts_fail(tmp_path, only):
    write(tmp_path, only)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-rA", "course/tests"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    results = {"PASSED": set(), "FAILED": set()}
    for line in done.stdout.splitlines():
        outcome, _, place = line.partition(" course/tests/test_")
        if outcome in results:
            results[outcome].add(place.split(".py")[0])
    assert results["FAILED"] == set(only or IDS), done.stdout
    assert results["PASSED"] == set(IDS) - set(only or IDS)


def test_bad_requests_are_named(tmp_path):
    with pytest.raises(ValueError, match="pass_at_9: no such exercise; there are advantages"):
        write(tmp_path / "out", ["pass_at_9"])
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        write(tmp_path)
    with pytest.raises(NotADirectoryError, match="no such directory"):
        grader.grade(tmp_path / "nothing")


# ---- The grader ----------------------------------------------------------------------------------

IMPORT_THE_REFERENCE = f"""
import importlib.util
import sys
sys.path.insert(0, {str(ROOT)!r})
spec = importlib.util.spec_from_file_location("theirs", {str(ROOT / "grpo.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
return module.token_weights(new_B, in_loss_B, aggregate, max_new)
"""
PRINT_A_SUMMARY = """
import sys
print("10 passed in 0.01s", flush=True)
sys.exit(0)
"""
FORGE_THE_ANSWERS = """
import json, os
line = json.dumps(["list", "returned", True]).encode() + b"\\n"
for descriptor in range(3, 64):
    try:
        os.write(descriptor, 100 * line)
    except OSError:
        pass
os._exit(0)
"""
READ_THE_ANSWERS = f"""
import json, os
for top in ("/", {str(ROOT)!r}):
    for directory, _, names in os.walk(top):
        if "packing.json" in names:
            for case in json.load(open(os.path.join(directory, "packing.json"))):
                if case["inputs"].get("deal") == [length_B, ranks, budget]:
                    return case["expected"]
raise LookupError("no answers on this disk")
"""
EQUAL_TO_EVERYTHING = """
class Same(list):
    __eq__ = lambda self, other: True
    __len__ = lambda self: 6
class Result:
    tolist = lambda self: Same()
return Result()
"""
TAKE_ALL_MEMORY = """
return bytearray(1 << 40)
"""
LOOK_UP_THE_PUBLIC_CASES = """
known = {known}
return known[n, c, k] if "n" in locals() else known[tuple(x_P)]
"""


def public(exercise):
    return [case for case in cases(exercise) if not case["hidden"]]


def known_answers() -> str:
    known = {}
    for case in public("pass_at_k"):
        if "x_P" in case["inputs"]:
            known[tuple(case["inputs"]["x_P"])] = case["expected"]
        else:
            draws = map(tuple, case["inputs"]["draws"])
            known |= dict(zip(draws, case["expected"], strict=True))
    return LOOK_UP_THE_PUBLIC_CASES.replace("{known}", repr(known))


@needs_sandbox
def test_no_trick_earns_a_point(handout, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(handout, work)
    # The tests and their values are the student's own: every test passes there.
    for exercise in IDS:
        (work / f"course/tests/test_{exercise}.py").write_text("def answer(**_): return 1\n")
        (work / f"course/tests/{exercise}.json").write_text("[]")
    (work / "course/tests/compare.py").write_text("def complaint(*_): return ''\n")
    submit(work, "advantages", reference("advantages"))  # an honest one among them
    submit(work, "weights", same("weights", IMPORT_THE_REFERENCE))
    submit(work, "surrogate", same("surrogate", PRINT_A_SUMMARY))
    submit(work, "scheduler", same("scheduler", FORGE_THE_ANSWERS))
    submit(work, "packing", same("packing", READ_THE_ANSWERS))
    submit(work, "kl", same("kl", EQUAL_TO_EVERYTHING))
    submit(work, "gumbel", same("gumbel", TAKE_ALL_MEMORY))
    submit(work, "pass_at_k", same("pass_at_k", known_answers()))
    (work / "fit_scaling.py").unlink()
    (work / "fit_scaling.py").symlink_to(ROOT / "fit_scaling.py")
    # `kernel` is left as it is: only its tests were edited. `decode` breaks out of its function.
    outside = "    return None\n\n\ndef rotate(x_THK, cos_TK, sin_TK):\n    return x_THK\n"
    submit(work, "decode", reference("decode") | {Path("model.py"): [outside]})
    grades = {g.exercise: g for g in grader.grade(work)}
    assert {g.exercise: g.earned for g in grades.values() if g.earned} == {"advantages": 10}
    expected = {
        "weights": "FileNotFoundError",
        "surrogate": "SystemExit: 0",
        "scheduler": "came True",  # the forged line was read, and is wrong
        "packing": "LookupError: no answers on this disk",
        "kl": "answer: expected",
        "gumbel": "MemoryError",
        "pass_at_k": "pass@k, other: KeyError",
        "law": "a link that leads out of the submission",
        "kernel": "NotImplementedError",
        "decode": "model.py: the body leaves its function",
    }
    for exercise, note in expected.items():
        assert note in grades[exercise].note, grades[exercise]


@needs_sandbox
def test_a_body_that_never_ends_is_stopped(handout, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(handout, work)
    submit(work, "kernel", same("kernel", "while True:\n    pass"))
    limits = replace(grader.LIMITS, seconds=15)
    (only,) = grader.grade(work, ["kernel"], limits=limits)
    assert only.earned == 0 and only.note == "not done in 15 s"


@pytest.mark.parametrize(
    "body, message",
    [
        ('    x = """\n', "not Python"),
        ("", "not Python"),
        ("    x = (\n", "not Python"),
        ("    return 1\nimport os\n", "leaves its function"),
        ("        return 1\n", "leaves its function"),
        ("    return 1 \0\n", "not Python"),
        ("    return " + "(" * 5000 + "\n", "not Python"),
    ],
)
def test_a_body_stays_in_its_function(body, message):
    with pytest.raises(ValueError, match=message):
        grader.marks.check_body(Path("model.py"), body, "    ")
    # In a method a body that is indented too little would end the method.
    with pytest.raises(ValueError, match="leaves its function"):
        grader.marks.check_body(Path("model.py"), "    return 1\n", "        ")


@needs_sandbox
def test_bad_input_is_named_and_costs_that_exercise_alone(handout, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(handout, work)
    submit(work, "advantages", reference("advantages"))
    submit(work, "kl", reference("kl"))
    submit(work, "weights", same("weights", "return ]"))
    text = (work / "grpo.py").read_text()
    head, tail = text.split('id="kl"')
    tail = tail.replace("    # </solution>\n", "", 1)
    (work / "grpo.py").write_text(f'{head}id="kl"{tail}\nthis is not Python')
    (work / "evaluate.py").unlink()
    ids = ["advantages", "kl", "weights", "pass_at_k"]
    grades = {g.exercise: g for g in grader.grade(work, ids)}
    assert grades["advantages"].earned == 10
    assert grades["kl"].note == "grpo.py: the marker of kl does not close before the next marker"
    assert grades["weights"].note.startswith("grpo.py: the body is not Python")
    assert grades["pass_at_k"].note.startswith("evaluate.py: no such file")
    assert sum(g.earned for g in grades.values()) == 10


@needs_sandbox
@pytest.mark.parametrize("only", [(), ("surrogate", "packing")], ids=["all", "two"])
def test_preview(only):
    command = [sys.executable, "-m", "course.preview", *(["--only", *only] if only else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    total = 100 if not only else 18
    assert f"{total:>6} {0:>6}\n" in done.stdout and f"{total:>6} {total:>6}\n" in done.stdout


@needs_sandbox
def test_the_command_prints_json(tmp_path):
    command = [sys.executable, "-m", "course.grade", str(tmp_path), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    grades = json.loads(done.stdout)
    assert {g["earned"] for g in grades} == {0} and sum(g["points"] for g in grades) == 100
    assert all("no such file" in g["note"] for g in grades)
