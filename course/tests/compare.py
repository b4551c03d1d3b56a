"""Compare what a student's code returned with stored values, and say what may be wrong.

ID.json holds the cases of an exercise: the inputs, the expected value (computed in float64), and
the values that usual mistakes lead to, each with a hint. A handout has only the cases that are not
hidden.
"""

import json
import math
from pathlib import Path

HERE = Path(__file__).resolve().parent


def cases(exercise: str) -> list[dict]:
    return json.loads((HERE / f"{exercise}.json").read_text())


def complaint(case: dict, came) -> str:
    """What is wrong with an answer; "" if it is right. came: a plain value."""
    found = difference(case["expected"], came)
    if found is None:
        return ""
    place, expected, here = found
    lines = [f"answer{place}: expected {short(expected)}, came {short(here)}"]
    for mistake in case["mistakes"]:
        if difference(mistake["came"], came) is None:
            lines.append(f"hint: {mistake['hint']}")
    return "\n".join(lines)


def difference(expected, came, place: str = "") -> tuple | None:
    """The first difference of two plain values, (place, expected, came); None if they agree.

    Numbers agree to 1e-4, all else must be the same.
    """
    if isinstance(expected, dict) and isinstance(came, dict) and expected.keys() == came.keys():
        parts = [(f"{place}[{name!r}]", value, came[name]) for name, value in expected.items()]
    elif isinstance(expected, list) and isinstance(came, list) and len(expected) == len(came):
        parts = [(f"{place}[{i}]", value, came[i]) for i, value in enumerate(expected)]
    elif isinstance(expected, float) and type(came) in (int, float):
        near = math.isclose(expected, came, rel_tol=1e-4, abs_tol=1e-6)
        return None if near else (place, expected, came)
    else:
        same = type(expected) is type(came) and expected == came
        return None if same else (place, expected, came)
    for at, value, other in parts:
        if found := difference(value, other, at):
            return found
    return None


def short(value) -> str:
    """A plain value as text of at most 200 characters."""
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 200 else text[:200] + " .."
