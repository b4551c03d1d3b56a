"""How accurate, fast and safe is reward.py, beside math-verify on the same cases in the same run?

    SCALING_DATA=... python -m bench.bench_reward     (pip install math-verify, for its column)

Reads checker/cases_dev.jsonl and checker/reports_dev.jsonl (labelled) and
checker/adversarial_dev.jsonl (hostile) below SCALING_DATA, each case once, in one process; the
first call of each checker is left out (imports). Times are CPU times. Appends to
results/reward.jsonl.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import reward

ROOT = Path(reward.__file__).resolve().parent
Check = Callable[[str, str], float]


def peer() -> Check | None:
    """math-verify as its documentation says to call it, or None with a message."""
    try:
        from math_verify import parse, verify
    except ImportError:
        print("math-verify is not installed: its column is left out (pip install math-verify)")
        return None

    def check(text: str, truth: str) -> float:
        return float(verify(parse(f"\\boxed{{{truth}}}"), parse(text)))

    return check


def measure(check: Check, cases: list[dict]) -> dict:
    """Accuracy, mistakes, checks per CPU second and CPU time per check of one checker."""
    check("so $\\boxed{\\sqrt{9}}$", "3")
    took = []
    wrong = {"false positives": 0, "false negatives": 0}
    for case in cases:
        began = time.process_time()
        found = check(case["completion"], case["gold"])
        took.append(time.process_time() - began)
        if found != case["expected"]:
            wrong["false positives" if found else "false negatives"] += 1
    took.sort()
    return {
        "accuracy": round(1 - sum(wrong.values()) / len(cases), 4),
        **wrong,
        "checks per CPU second": round(len(cases) / sum(took)),
        "p50 ms": round(took[len(took) // 2] * 1e3, 3),
        "p99 ms": round(took[int(0.99 * len(took))] * 1e3, 3),
    }


def survive(cases: list[dict]) -> dict:
    """How many hostile inputs get the expected value in under 2 s, and the worst time."""
    good, worst = 0, 0.0
    for case in cases:
        began = time.process_time()
        found = reward.score(case["completion"], case["gold"])
        took = time.process_time() - began
        good += took < 2 and case["expected"] in (None, found)
        worst = max(worst, took)
    return {"hostile": len(cases), "survived": good, "slowest ms": round(worst * 1e3, 1)}


def read_cases(folder: Path, name: str) -> list[dict]:
    """The labelled cases of a file, without those that depend on a policy (kinds x:)."""
    lines = (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [case for case in map(json.loads, lines) if not case["kind"].startswith("x:")]


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def show(name: str, figures: dict):
    """One table, a column for each checker."""
    print(f"\n{name}".ljust(25) + "".join(checker.rjust(14) for checker in figures))
    for row in figures["reward.py"]:
        cells = [str(column.get(row, "")).rjust(14) for column in figures.values()]
        print(row.ljust(24) + "".join(cells))


def main():
    if not (data := os.environ.get("SCALING_DATA")):
        sys.exit("SCALING_DATA is not set: point it at the folder that holds checker/")
    folder = Path(data) / "checker"
    sets = {name: read_cases(folder, name) for name in ("cases_dev", "reports_dev")}
    figures = {name: {"reward.py": measure(reward.score, cases)} for name, cases in sets.items()}
    ours = figures["cases_dev"]["reward.py"]
    ours |= survive(read_cases(folder, "adversarial_dev"))
    ours["peak memory MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if check := peer():
        for name, cases in sets.items():
            figures[name]["math-verify"] = measure(check, cases)
    for name, columns in figures.items():
        show(f"{len(sets[name])} {name}", columns)
    installed = ("sympy", "mpmath", "math-verify") if check else ("sympy", "mpmath")
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in installed}
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short", "HEAD")
        + ("+" if git("status", "--porcelain", "reward.py") else ""),
        "versions": versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "figures": figures,
    }
    with open(ROOT / "results" / "reward.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
