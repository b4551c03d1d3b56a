"""How accurate, fast and safe is reward.py, beside math-verify on the same cases in the same run?

    SCALING_DATA=... python -m bench.bench_reward        (needs: pip install math-verify; without it, only reward.py is measured)

Reads checker/cases_dev.jsonl (labelled) and checker/adversarial_dev.jsonl (hostile) below SCALING_DATA, each case once, in
one process, the first call of each checker left out (imports). Speed is checks per second of CPU time. Appends to
results/reward.jsonl.
"""
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

import reward


def peer():
    """math-verify as its documentation says to call it, or None with a message."""
    try:
        from math_verify import parse, verify
    except ImportError:
        print("math-verify is not installed: its column is left out (pip install math-verify)")
        return None
    return lambda text, truth: float(verify(parse(f"\\boxed{{{truth}}}"), parse(text)))


def measure(check, cases: list[dict]) -> dict:
    """Accuracy, mistakes, checks per CPU second and time per check of one checker on labelled cases."""
    check("so $\\boxed{\\sqrt{9}}$", "3")
    took, wrong, cpu = [], {"false positives": 0, "false negatives": 0}, 0.0
    for case in cases:
        began, began_cpu = time.perf_counter(), time.process_time()
        found = check(case["completion"], case["gold"])
        cpu += time.process_time() - began_cpu
        took.append(time.perf_counter() - began)
        if found != case["expected"]:
            wrong["false positives" if found else "false negatives"] += 1
    took.sort()
    return {"accuracy": round(1 - sum(wrong.values()) / len(cases), 4), **wrong,
            "checks per CPU second": round(len(cases) / cpu),
            "p50 ms": round(took[len(took) // 2] * 1e3, 3), "p99 ms": round(took[int(0.99 * len(took))] * 1e3, 3)}


def survive(cases: list[dict]) -> dict:
    """How many hostile inputs get the expected value in under 2 s, and the worst time and memory."""
    good, worst = 0, 0.0
    for case in cases:
        began = time.perf_counter()
        found = reward.score(case["completion"], case["gold"])
        took = time.perf_counter() - began
        good += took < 2 and case["expected"] in (None, found)
        worst = max(worst, took)
    return {"hostile": len(cases), "survived": good, "slowest ms": round(worst * 1e3, 1)}


def main():
    if not (data := os.environ.get("SCALING_DATA")):
        sys.exit("SCALING_DATA is not set: point it at the folder that holds checker/cases_dev.jsonl")
    lines = {name: [json.loads(line) for line in (Path(data) / "checker" / f"{name}.jsonl").read_text("utf-8").splitlines()]
             for name in ("cases_dev", "adversarial_dev")}
    cases = [case for case in lines["cases_dev"] if not case["kind"].startswith("x:")]
    figures = {"cases": len(cases), "reward.py": measure(reward.score, cases) | survive(lines["adversarial_dev"])}
    figures["reward.py"]["peak memory MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024    # before the peer's
    if check := peer():
        figures["math-verify"] = measure(check, cases)
        ours, theirs = (figures[name]["checks per CPU second"] for name in ("reward.py", "math-verify"))
        figures["times faster"] = round(ours / theirs, 1)
    columns = [name for name in ("reward.py", "math-verify") if name in figures]
    print(f"{len(cases)} cases".ljust(24) + "".join(name.rjust(14) for name in columns))
    for row in figures["reward.py"]:
        print(row.ljust(24) + "".join(str(figures[name].get(row, "")).rjust(14) for name in columns))
    print("times faster".ljust(24) + str(figures.get("times faster", "not measured")).rjust(14))
    versions = {"python": platform.python_version()}
    for name in ("sympy", "mpmath", "math-verify"):
        versions[name] = metadata.version(name) if name != "math-verify" or check else None

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "reward.py") else "")
    entry = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit, "versions": versions,
             "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}", "figures": figures}
    with open(ROOT / "results" / "reward.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
