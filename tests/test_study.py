"""study.py and report.py: the grid skips, goes on, survives failures and refuses strangers; verdicts follow the data."""

import dataclasses
import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

import points
from grpo import parse_flags
from study import grid as study
from study import report

FAKE = """
import json, sys, time
from pathlib import Path
out, flags, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
out.mkdir(parents=True, exist_ok=True)
(out / "flags.json").write_text(flags)
with open(out / "starts", "a") as f:
    f.write("x")
if how == "hang" and not (out / "checkpoint").exists():
    (out / "checkpoint").touch()
    time.sleep(60)
if how == "fail":
    print("the reason\\nin two lines\\nE1123 12:00:00.1 77 torch/distributed/elastic/multiprocessing/api.py:1000] failed")
    sys.exit(1)
(out / "final").mkdir()
(out / "final" / "config.json").touch()
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """A Grid whose runs are FAKE, and three runs for it; `how` says what the second does."""
    (tmp_path / "fake.py").write_text(FAKE)
    runs = [study.Run(f"r{i}", "sizes", "constant", "models/tiny", f"--seed {i} --steps 3") for i in range(3)]
    grid = study.Grid(tmp_path / "out", 2, "--standalone")
    parse_flags([])  # so that threads need not read its source
    grid.out.mkdir()
    grid.how = {}

    def command(run):
        flags = json.dumps(dataclasses.asdict(parse_flags(run.argv(grid.out))) | {"world": 1})
        return [sys.executable, str(tmp_path / "fake.py"), str(grid.out / run.name), flags, grid.how.get(run.name, "")]

    monkeypatch.setattr(grid, "command", command)
    return grid, runs


def starts(grid, run):
    return len((grid.out / run.name / "starts").read_text())


def test_a_failed_run_is_named_and_the_others_go_on(grid):
    # Caught: an exit code that nobody looks at; a finished run that is run again.
    grid, runs = grid
    grid.how = {"r1": "fail"}
    grid.all(runs, tqdm(disable=True))
    assert [bool(run.error) for run in runs] == [False, True, False]
    assert "exit code 1" in runs[1].error and runs[1].error.endswith("in two lines")
    again = [dataclasses.replace(run, error="") for run in runs]
    grid.how = {}
    grid.all(again, tqdm(disable=True))
    assert not any(run.error for run in again) and [starts(grid, run) for run in runs] == [1, 2, 1]


def test_a_stop_loses_nothing_and_is_no_failure(grid):
    # Caught: a stop that leaves children behind, or counts as a failed run; runs that start after it.
    grid, runs = grid
    grid.how = {"r0": "hang", "r1": "hang"}
    worker = threading.Thread(target=grid.all, args=(runs, tqdm(disable=True)))
    worker.start()
    until = time.monotonic() + 60
    while not all((grid.out / name / "checkpoint").exists() for name in ("r0", "r1")):
        assert worker.is_alive() and time.monotonic() < until
        time.sleep(0.05)
    grid.stop()
    worker.join(20)
    assert not worker.is_alive() and not grid.children and not any(run.error for run in runs)
    assert not (grid.out / "r2").exists() and not study.finished(runs[0], grid.out)
    grid.stopping = False
    grid.all(runs, tqdm(disable=True))
    assert all(study.finished(run, grid.out) for run in runs)


def test_runs_with_other_flags_are_refused_by_name(grid):
    grid, runs = grid
    grid.all(runs[:1], tqdm(disable=True))
    other = dataclasses.replace(runs[0], flags="--seed 0 --steps 3 --lr 1e-3")
    with pytest.raises(ValueError, match=r"r0 was made with other flags: --lr 0\.001 \(there 0\.0005\)"):
        study.finished(other, grid.out)


def test_the_grid_is_what_it_says():
    # Caught: a sweep without its level 1, seeds that do not reach the flags, a run that grpo.py would refuse.
    for quick in (True, False):
        runs = study.ladder_grid(quick)
        assert len({run.name for run in runs}) == len(runs)
        for run in runs:
            flags = parse_flags(run.argv(Path("x")))
            study.check(flags, 1)
            assert flags.prompts * flags.steps // flags.reuse >= flags.prompts  # a step never holds a problem twice
            assert Path(flags.model, "config.json").is_file() and re.search(rf"-{flags.seed}(-|$)", Path(flags.model).name)
    taus = {parse_flags(run.argv(Path("x"))).reuse for run in runs if run.part == "reuse"}
    groups = {parse_flags(run.argv(Path("x"))).group for run in runs if run.part == "group"}
    assert taus == {1, 2, 5, 10, 25, 50, 100} and groups == {4, 8, 16, 32}
    assert {run.arm for run in runs if run.part == "sizes"} == {"constant", "inverse"}


def test_real_models_get_the_same_questions_once(tmp_path, monkeypatch):
    # Caught: the recipe's own reuse and group run twice, a sweep of another model than the middle one, a page without a title.
    recipe = tmp_path / "r.args"
    recipe.write_text("--steps 3 --group 16")
    runs = study.real_grid(["a/S", "a/M", "a/L"], str(recipe), seeds=2)
    assert len({run.name for run in runs}) == len(runs) == 6 + 2 * (len(study.TAUS) - 1) + 2 * (len(study.GROUPS) - 1)
    assert {run.model for run in runs if run.part != "sizes"} == {"a/M"} and {run.arm for run in runs} == {"recipe"}
    flags = [parse_flags(run.argv(Path("x"))) for run in runs]
    assert all(f.group == 16 for run, f in zip(runs, flags, strict=True) if run.part != "group")
    assert 16 not in {f.group for run, f in zip(runs, flags, strict=True) if run.part == "group"}
    monkeypatch.setattr(report, "REDRAWS", 20)
    lines = [line | {"arm": "recipe"} for line in made_up(lambda N: 0.1) if line["arm"] == "inverse"]
    text, _ = page(tmp_path, lines)
    assert text.startswith("# ") and "1 / step" not in text and "models/ladder" not in text
    monkeypatch.setattr(sys, "argv", ["study.py", "--models", "models/tiny", "models/ladder/7k-0", "--recipe", str(recipe)])
    with pytest.raises(ValueError, match=r"--models: 2 sizes of base models, .*at least three"):
        study.main()


def made_up(slope, bend=0.0, reuse=lambda tau: 0.0, grouped=lambda G: 0.0, surprise=0.0):
    """A study as runs.jsonl holds it, with log10 L = E(N) - slope(N) x - bend x^2, x = log10 step, and noise; what reuse,
    a group and the largest size add to L."""
    rng, lines, spaced = np.random.default_rng(0), [], sorted({round(2 ** (i / 2)) for i in range(13)})

    def run(name, part, arm, N, seed, kind="base", steps=spaced, **other):
        evals = [{"step": 0, "D": 0, "C": 0, "L": 0.9, "levels": {"level 1": 0.2, "level 2": 0.1}}]
        for t in steps:
            x, G = np.log10(t), other.get("group", 8)
            L = 10 ** (-0.1 - slope(N) * (x + 0.8) - bend * x**2 + 0.002 * rng.standard_normal())
            L += reuse(other.get("reuse", 1)) + grouped(G) + surprise * (N == 214000)
            evals.append({"step": t, "D": 32 * t, "C": 6.0 * N * 32 * t * G * 50, "L": float(L),
                          "levels": {"level 1": 0.9, "level 2": 0.5}})
        samples = [{"step": s, "problem": i, "prompt": "a1b+1?", "text": "`|", "truth": "12", "score": 1.0}
                   for s in (0, steps[-1]) for i in range(5)]
        lines.append({"name": name, "part": part, "arm": arm, "model": "m", "command": "torchrun grpo.py", "error": "",
                      "model_type": kind, "N": N, "seed": seed, "reuse": 1, "group": 8, "hours": 0.1, "flops": 1e9,
                      "evals": evals, "samples": samples} | other)

    for N in (7000, 15000, 27000, 84000, 214000):
        for seed in range(3):
            for arm in ("constant", "inverse"):
                for kind in ("base", "instruct"):
                    run(f"{N}-{seed}-{arm}-{kind}", "sizes", arm, N, seed, kind)
    for seed in range(3):
        for tau in (1, 25, 100):
            run(f"tau{tau}-{seed}", "reuse", "constant", 27000, seed, steps=range(10, 101, 10), reuse=tau)
        for group in (4, 8, 32):
            run(f"group{group}-{seed}", "group", "constant", 27000, seed, steps=range(2, 65, 2), group=group)
    return lines


@pytest.fixture(autouse=True)
def few_redraws(monkeypatch):
    monkeypatch.setattr(report, "REDRAWS", 100)


def page(path, lines):
    head = {"commit": "abc", "torch": "2", "python": "3", "cores": 2, "device": "CPU"}
    (path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [head, *lines]))
    report.write(path)
    text = (path / "report.md").read_text()
    verdicts = re.findall(r"^## (\d)\. .*: (.) ", text, re.M)
    return text, dict(verdicts)


def test_verdicts_follow_the_data(tmp_path, monkeypatch):
    # Caught: a verdict written by hand, a rule with its sign turned round, a cell left out.
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    def slope(N):
        return 0.2 / (1 + 3e4 / N)

    law = made_up(slope, reuse=lambda tau: 0.05 * (tau == 100), grouped=lambda G: 0.001 * (8 - G))
    path, small = tmp_path / "a", [line for line in law if line["part"] == "sizes" and line["N"] < 214000]
    runs = [study.Run(line["name"], line["part"], line["arm"], line["model"], "") for line in small]
    monkeypatch.setattr(report, "read_run", lambda at: next(line for line in small if line["name"] == at.name))
    report.freeze(path, runs, 214000, [])
    frozen = (path / "forecast.json").read_text()
    report.freeze(path, runs[:4], 214000, [])
    assert (path / "forecast.json").read_text() == frozen  # never twice
    text, verdicts = page(path, law)
    assert verdicts == {"1": "✔", "2": "✔", "3": "✔", "4": "✔", "5": "✔", "6": "✔"}, text
    assert "beats both rivals" in text and "before a run of the largest was begun" in text

    text, verdicts = page(path, made_up(slope, surprise=0.1))  # a largest size that does not heed its forecast
    assert verdicts["5"] == "✘" and verdicts["6"] == "◐" and "in 4 of 8 cells" in text

    text, verdicts = page(tmp_path / "b", made_up(lambda N: 0.0, bend=0.25, reuse=lambda tau: 0.05 * (tau > 1)))
    assert {k: verdicts[k] for k in "1234"} == {"1": "✘", "2": "✘", "3": "✘", "4": "◐"} and verdicts["6"] == "?"


def test_too_few_runs_are_said_and_the_page_is_written(tmp_path):
    # Caught: a division by n - p - 1 = 0, figures without a line, a page that dies with its last run.
    lines = made_up(lambda N: 0.1)
    few = [line for line in lines if line["arm"] == "inverse" and line["model_type"] == "base" and line["seed"] == 0]
    _, verdicts = page(tmp_path, [line for line in few if line["part"] == "sizes"][:4])
    assert verdicts["3"] == verdicts["4"] == verdicts["5"] == verdicts["6"] == "?" != verdicts["1"]
    text, verdicts = page(tmp_path, [line | {"error": "exit code 1"} for line in few])
    assert set(verdicts.values()) == {"?"} and "What is missing" in text and "no run of the sizes" in text


def test_the_page_stands_alone_and_names_what_is_missing(tmp_path):
    lines = made_up(lambda N: 0.1)
    lines[5] |= {"error": "exit code 1:\nout of luck"}
    text, _ = page(tmp_path, lines)
    assert "What is missing" in text and lines[5]["name"] in text and "out of luck" in text
    html = (tmp_path / "report.html").read_text()
    sources = re.findall(r'<img[^>]* src="([^"]{0,30})', html)
    assert len(sources) == len(re.findall(r"!\[", text)) > 15 and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "http://" not in html and "<script" not in html
    for name in re.findall(r"\]\((\w+\.png)\)", text):
        assert (tmp_path / name).stat().st_size > 5000
    mine = [line for line in lines if not line["error"] and line["part"] == "sizes" and line["arm"] == "inverse"]
    written = points.curves_from(points.read_csv(tmp_path / "points_inverse.csv"))
    assert len(written["base", "D"]) == 5 and written["base", "D"][0].L_ST.shape[0] == 3
    assert len((tmp_path / "points_inverse.csv").read_text().splitlines()) == 1 + sum(len(line["evals"]) for line in mine)
