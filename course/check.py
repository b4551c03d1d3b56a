"""Compare what a student's code returned with stored values, and say what may be wrong.

course/tests/ID.json holds the cases of an exercise: the inputs, the expected value (computed in
float64), and the values that usual mistakes lead to, each with a hint. A handout has only the
cases that are not hidden.
"""

import json
import math
from pathlib import Path

TESTS = Path(__file__).resolve().parent / "tests"


def cases(exercise: str) -> list[dict]:
    return json.loads((TESTS / f"{exercise}.json").read_text())


def complaint(case: dict, came) -> str:
    """What is wrong with an answer; "" if it is right."""
    if close(case["expected"], came):
        return ""
    hints = [mistake["hint"] for mistake in case["mistakes"] if close(mistake["came"], came)]
    lines = [f"expected {short(case['expected'])}", f"came {short(came)}"]
    lines += [f"hint: {hint}" for hint in hints]
    return "\n".join(lines)


def close(expected, came) -> bool:
    """Whether two plain values agree: numbers to 1e-4, all else exactly."""
    if isinstance(expected, dict):
        same_keys = isinstance(came, dict) and expected.keys() == came.keys()
        return same_keys and all(close(expected[name], came[name]) for name in expected)
    if isinstance(expected, list):
        same_length = isinstance(came, list) and len(expected) == len(came)
        return same_length and all(map(close, expected, came))
    if isinstance(expected, float):
        return type(came) in (int, float) and math.isclose(expected, came, rel_tol=1e-4, abs_tol=1e-6)
    return type(expected) is type(came) and expected == came


def short(value) -> str:
    """A plain value as text, numbers with five digits, at most 400 characters."""
    text = repr(rounded(value))
    return text if len(text) <= 400 else text[:400] + " .."


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
