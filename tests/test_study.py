"""study/grid.py: the grid skips, resumes, survives failures and refuses runs of other flags.
study/report.py: verdicts follow the data. study/sweeps.py: intervals by hand."""
import dataclasses
import io
import json
import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm

from fit_scaling import curves_from, read_csv
from grpo import parse_flags
from study import grid as study
from study import report, sweeps

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
    print("the reason\\nin two lines")
    print("E1123 12:00:00.1 77 torch/distributed/elastic/multiprocessing/api.py:1000] failed")
    sys.exit(1)
(out / "final").mkdir()
(out / "final" / "config.json").touch()
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """A Grid whose runs are FAKE, and three runs for it; `how` says what a run does."""
    (tmp_path / "fake.py").write_text(FAKE)
    runs = [study.Run(f"r{i}", "sizes", "constant", "models/tiny", f"--seed {i} --steps 3")
            for i in range(3)]
    grid = study.Grid(tmp_path / "out", 2, "--standalone")
    parse_flags([])  # so that threads need not read its source
    grid.out.mkdir()
    grid.how = {}

    def command(run):
        flags = dataclasses.asdict(parse_flags(run.argv(grid.out))) | {"world": 1}
        how = grid.how.get(run.name, "")
        script = str(tmp_path / "fake.py")
        return [sys.executable, script, str(grid.out / run.name), json.dumps(flags), how]

    monkeypatch.setattr(grid, "command", command)
    return grid, runs


def starts(grid, run):
    return len((grid.out / run.name / "starts").read_text())


def test_a_failed_run_is_named_and_the_others_go_on(grid):
    # Caught: an exit code that nobody looks at; a finished run that is run again.
    grid, runs = grid
    grid.how = {"r1": "fail"}
    with tqdm(total=3, disable=False, file=io.StringIO()) as bar:
        grid.all(runs, bar)
        assert bar.n == 3
    assert [bool(run.error) for run in runs] == [False, True, False]
    assert "exit code 1" in runs[1].error
    assert runs[1].error.endswith("in two lines")
    again = [dataclasses.replace(run, error="") for run in runs]
    grid.how = {}
    grid.all(again, tqdm(disable=True))
    assert not any(run.error for run in again)
    assert [starts(grid, run) for run in runs] == [1, 2, 1]


def test_a_stop_loses_nothing_and_is_no_failure(grid):
    # Caught: a stop that leaves children behind, or counts as a failed run; runs started after it.
    grid, runs = grid
    grid.how = {"r0": "hang", "r1": "hang"}
    worker = threading.Thread(target=grid.all, args=(runs, tqdm(disable=True)))
    worker.start()
    until = time.monotonic() + 600  # only ends a hang
    while not all((grid.out / name / "checkpoint").exists() for name in ("r0", "r1")):
        assert worker.is_alive() and time.monotonic() < until
        time.sleep(0.05)
    grid.stop()
    worker.join(20)
    assert not worker.is_alive() and not grid.children
    assert not any(run.error for run in runs)
    assert not (grid.out / "r2").exists() and not study.finished(runs[0], grid.out)
    grid.stopping = False
    grid.all(runs, tqdm(disable=True))
    assert all(study.finished(run, grid.out) for run in runs)


def test_runs_with_other_flags_are_refused_by_name(grid):
    grid, runs = grid
    grid.all(runs[:1], tqdm(disable=True))
    other = dataclasses.replace(runs[0], flags="--seed 0 --steps 3 --lr 1e-3")
    with pytest.raises(ValueError, match=r"r0 .* other flags: --lr 0\.001 \(there 0\.0005\)"):
        study.finished(other, grid.out)


def test_the_largest_size_waits_for_its_forecast(grid, monkeypatch):
    # Caught: a forecast that is frozen after runs of the largest size, or from their losses.
    grid, runs = grid
    order = []
    sizes = {"small": 10, "large": 30}
    runs = [dataclasses.replace(run, model=model, part=part) for run, model, part in
            zip(runs, ("large", "small", "small"), ("sizes", "sizes", "reuse"), strict=True)]
    monkeypatch.setattr(study, "size", sizes.get)
    monkeypatch.setattr(study, "finished", lambda run, out: False)
    monkeypatch.setattr(grid, "execute", lambda run: order.append(run.name))

    def freeze(out, small, N):
        order.append([[run.name for run in small], N])

    monkeypatch.setattr(report, "freeze", freeze)
    study.execute_all(grid, runs)
    assert order[:2] == ["r1", [["r1"], 30]] and set(order[2:]) == {"r0", "r2"}


def test_the_grid_is_what_it_says():
    # Caught: a sweep without its level 1, seeds that do not reach the flags, a run that grpo.py
    # would refuse.
    for quick in (True, False):
        runs = study.ladder_grid(quick)
        assert len({run.name for run in runs}) == len(runs)
        for run in runs:
            flags = parse_flags(run.argv(Path("x")))
            study.check(flags, 1)
            assert flags.prompts * flags.steps // flags.reuse >= flags.prompts  # no repeats a step
            assert Path(flags.model, "config.json").is_file()
            assert re.search(rf"-{flags.seed}(-|$)", Path(flags.model).name)
    taus = {parse_flags(run.argv(Path("x"))).reuse for run in runs if run.part == "reuse"}
    groups = {parse_flags(run.argv(Path("x"))).group for run in runs if run.part == "group"}
    assert taus == {1, 2, 5, 10, 25, 50, 100} and groups == {4, 8, 16, 32}
    assert {run.arm for run in runs if run.part == "sizes"} == {"constant", "inverse"}


def test_real_models_get_the_same_questions_once(tmp_path, monkeypatch, capsys):
    # Caught: the recipe's own reuse and group run twice, a sweep of another model than the middle
    # one, a page without a title.
    recipe = tmp_path / "r.args"
    recipe.write_text("--steps 3 --group 16")
    runs = study.real_grid(("a/S", "a/M", "a/L"), str(recipe), seeds=2)
    sweep = 2 * (len(study.TAUS) - 1) + 2 * (len(study.GROUPS) - 1)
    assert len({run.name for run in runs}) == len(runs) == 6 + sweep
    assert {run.model for run in runs if run.part != "sizes"} == {"a/M"}
    assert {run.arm for run in runs} == {"recipe"}
    groups = {True: set(), False: set()}
    for run in runs:
        groups[run.part == "group"].add(parse_flags(run.argv(Path("x"))).group)
    assert groups[False] == {16} and 16 not in groups[True]

    monkeypatch.setattr(report, "REDRAWS", 20)
    monkeypatch.setattr(report, "draw", lambda *args, **names: "")
    lines = [line | {"arm": "recipe"} for line in made_up(lambda N: 0.1)
             if line["arm"] == "inverse"]
    text, _ = page(tmp_path, lines)
    assert text.startswith("# ")
    assert "1 / step" not in text and "models/ladder" not in text and "<!--" not in text
    argv = ["--models", "models/tiny", "models/ladder/7k-0", "--recipe", str(recipe)]
    with pytest.raises(ValueError, match=r"--models: 2 sizes of base models, .*at least three"):
        study.main(argv)
    with pytest.raises(ValueError, match="--models and --recipe go together"):
        study.main(["--models", "models/tiny"])
    monkeypatch.setattr(study, "size", None)  # --list looks up no model
    study.main(["--list", "--models", "a/S", "a/M", "a/L", "--recipe", str(recipe), "--seeds", "2"])
    assert capsys.readouterr().out.count("torchrun ") == 6 + sweep


SPACED = sorted({round(2 ** (i / 2)) for i in range(13)})


def made_up(slope, bend=0.0, reuse=lambda tau: 0.0, grouped=lambda G: 0.0, surprise=0.0):
    """A study as runs.jsonl holds it: log10 L = -0.1 - slope(N) (x + 0.8) - bend x^2 with
    x = log10 step, and noise; reuse, group and the largest size add to L."""
    rng = np.random.default_rng(0)
    lines = []

    def run(name, part, arm, N, seed, kind="base", steps=SPACED, tau=1, G=8):
        evals = [{"step": 0, "D": 0, "C": 0, "L": 0.9}]
        for t in steps:
            x = np.log10(t)
            noise = 0.002 * rng.standard_normal()
            L = 10 ** (-0.1 - slope(N) * (x + 0.8) - bend * x**2 + noise)
            L += reuse(tau) + grouped(G) + surprise * (N == 214000)
            C = 6.0 * N * 32 * t * G * 50
            evals.append({"step": t, "D": 32 * t, "C": C, "L": float(L)})
        lines.append({
            "name": name, "part": part, "arm": arm, "model": "m", "command": "torchrun grpo.py",
            "error": "", "model_type": kind, "N": N, "seed": seed, "reuse": tau, "group": G,
            "evals": evals})

    for N in (7000, 15000, 27000, 84000, 214000):
        for seed in range(3):
            for arm in ("constant", "inverse"):
                for kind in ("base", "instruct"):
                    run(f"{N}-{seed}-{arm}-{kind}", "sizes", arm, N, seed, kind)
    for seed in range(3):
        for tau in (1, 25, 100):
            steps = range(10, 101, 10)
            run(f"tau{tau}-{seed}", "reuse", "constant", 27000, seed, steps=steps, tau=tau)
        for G in (4, 8, 32):
            steps = range(2, 65, 2)
            run(f"group{G}-{seed}", "group", "constant", 27000, seed, steps=steps, G=G)
    return lines


@pytest.fixture(autouse=True)
def few_redraws(monkeypatch):
    monkeypatch.setattr(report, "REDRAWS", 100)


def page(path, lines):
    path.mkdir(exist_ok=True)
    head = {"commit": "abc", "torch": "2", "cores": 2, "device": "CPU"}
    (path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [head, *lines]))
    report.write(path)
    text = (path / "report.md").read_text()
    verdicts = re.findall(r"^## (\d)\. .*: (.) ", text, re.M)
    return text, dict(verdicts)


def saturating(N):
    return 0.2 / (1 + 3e4 / N)


def test_no_finished_run_gives_no_forecast_and_no_error(tmp_path):
    # Caught: a grid that dies before its sweeps because the runs of the smaller sizes failed.
    report.freeze(tmp_path, [], 214000)
    assert not (tmp_path / "forecast.json").exists()


def test_verdicts_follow_the_data(tmp_path, monkeypatch):
    # Caught: a verdict written by hand, a rule with its sign turned round, a cell left out.
    law = made_up(saturating, reuse=lambda tau: 0.05 * (tau == 100),
                  grouped=lambda G: 0.001 * (8 - G))
    small = [line for line in law if line["part"] == "sizes" and line["N"] < 214000]
    runs = [study.Run(line["name"], line["part"], line["arm"], line["model"], "")
            for line in small]
    by_name = {line["name"]: line for line in small}
    monkeypatch.setattr(report, "read_run", lambda at: by_name[at.name])
    monkeypatch.setattr(report, "draw", lambda *args, **names: "")  # takes most of the time
    path = tmp_path / "a"
    path.mkdir()
    report.freeze(path, runs, 214000)
    frozen = (path / "forecast.json").read_text()
    report.freeze(path, runs[:4], 214000)
    assert (path / "forecast.json").read_text() == frozen  # never twice
    with pytest.raises(ValueError, match="forecasts 214,000 parameters, not 84,000"):
        report.freeze(path, runs, 84000)
    text, verdicts = page(path, law)
    assert verdicts == {"1": "✔", "2": "✔", "3": "✔", "4": "✔", "5": "✔", "6": "✔"}, text
    assert "beats both rivals" in text
    assert re.search(r"G = 32 minus that of G = 4 is -0\.02\d ± 0\.\d* at equal prompts", text)

    monkeypatch.setattr(report, "is_pinned", lambda ends, searched: False)
    assert report.saturates(report.Study(path)).verdict == "not"
    text, verdicts = page(path, made_up(saturating, surprise=0.1))  # the forecast is missed
    assert verdicts["5"] == "✘" and verdicts["6"] == "◐" and "in 4 of 8 cells" in text

    flat = made_up(lambda N: 0.0, bend=0.25, reuse=lambda tau: 0.05 * (tau > 1))
    text, verdicts = page(tmp_path / "b", flat)
    assert verdicts == {"1": "✘", "2": "✘", "3": "✘", "4": "◐", "5": "✘", "6": "?"}, text


def test_larger_sizes_learn_more_only_if_the_interval_says_so(monkeypatch):
    # Caught: estimates judged without their intervals; a sign turned round.
    monkeypatch.setattr(report, "draw", lambda *args, **names: "")
    N = np.array([1.0, 1, 10, 10, 100, 100])
    noisy = np.array([0.1, 0.5, 0.2, 0.6, 0.3, 0.6])
    steady = np.array([0.10, 0.11, 0.20, 0.21, 0.30, 0.31])
    for k, L, counts in ((noisy, -noisy, (0, 0)), (steady, -steady, (1, 1)),
                         (-steady, steady, (0, 0))):
        cell = report.Cell("constant", "base", [{"N": size * 1e9} for size in N])
        cell.single = report.Single(N, k, L, -L)
        found = report.larger_learn_more(SimpleNamespace(cells=[cell], out=Path("x")))
        assert (found.names["rises"], found.names["falls_D"]) == counts
        assert found.names["falls_C"] == (k[0] == -steady[0])


def test_reuse_is_judged_by_intervals(monkeypatch):
    # Caught: a cost that is judged by its estimate alone, a largest tau that is not 100.
    monkeypatch.setattr(report, "draw", lambda *args, **names: "")
    monkeypatch.setattr(report, "sweep_of", lambda runs, by: runs)
    study = SimpleNamespace(runs=[{"N": 1e9, "evals": [{"step": 100}]}], out=Path("x"))
    for low, top, high, expected in (
        ((0.0, 0.01), 100, (0.05, 0.01), "holds"),
        ((0.0, 0.05), 100, (0.05, 0.01), "partly"),  # tau = 100 hurts
        ((0.0, 0.05), 100, (0.05, 0.10), "partly"),  # tau = 25 costs nothing by its estimate
        ((0.03, 0.005), 100, (0.05, 0.10), "not"),
        ((0.03, 0.005), 50, (0.05, 0.01), "not"),
    ):
        effects = {1: (0.0, 0.0), 25: low, top: high}
        levels = {tau: sweeps.Effect(*effect) for tau, effect in effects.items()}
        monkeypatch.setattr(report, "paired", lambda *args, levels=levels: levels)
        assert report.reuse_is_free(study).verdict == expected


def test_too_few_runs_are_said_and_the_page_is_written(tmp_path):
    # Caught: a division by n - p - 1 = 0, figures without a line, a page that dies with its last
    # run.
    few = [line for line in made_up(lambda N: 0.1)
           if line["arm"] == "inverse" and line["model_type"] == "base" and line["seed"] == 0]
    _, verdicts = page(tmp_path, [line for line in few if line["part"] == "sizes"][:4])
    assert verdicts["3"] == verdicts["4"] == verdicts["5"] == verdicts["6"] == "?" != verdicts["1"]
    text, verdicts = page(tmp_path, [line | {"error": "exit code 1"} for line in few])
    assert set(verdicts.values()) == {"?"}
    assert "What is missing" in text and "no run of the sizes" in text


def test_the_page_stands_alone_and_names_what_is_missing(tmp_path):
    lines = made_up(lambda N: 0.1)
    lines[5] |= {"error": "exit code 1:\n$here is out of luck"}
    text, _ = page(tmp_path, lines)
    assert "What is missing" in text and lines[5]["name"] in text
    assert "$here is out of luck" in text  # the words of a run are no template
    assert not re.search(r"\$(?!here is out)\w", text)
    html = (tmp_path / "report.html").read_text()
    sources = re.findall(r'<img[^>]* src="([^"]{0,30})', html)
    assert len(sources) == len(re.findall(r"!\[", text)) == 11
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in html and "<script" not in html
    for name in re.findall(r"\]\((\w+\.png)\)", text):
        assert (tmp_path / name).stat().st_size > 5000


def test_gathered_runs_hold_what_the_report_reads(tmp_path):
    # Caught: losses of another evaluation set, N in billions, a failed run that is read or lost.
    out = tmp_path / "r0"
    out.mkdir()
    flags = {"seed": 3, "model": "models/x-Instruct", "reuse": 5, "group": 8}
    (out / "flags.json").write_text(json.dumps(flags))
    eval_ = {"kind": "eval", "source": "a"}
    train = {"kind": "train", "N": 6832}
    records = [eval_ | {"step": 0, "D": 0, "C": 0, "test_loss": 0.9},
               eval_ | {"step": 0, "D": 0, "C": 0, "test_loss": 0.1, "source": "b"},
               train,
               eval_ | {"step": 1, "D": 32, "C": 7.0, "test_loss": 0.8}]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (out / "metrics.jsonl").write_text(text)
    expected = {
        "model_type": "instruct", "reuse": 5, "group": 8, "N": 6832, "seed": 3,
        "evals": [{"step": 0, "D": 0, "C": 0, "L": 0.9}, {"step": 1, "D": 32, "C": 7.0, "L": 0.8}]}
    run = study.Run("r0", "sizes", "constant", "models/x-Instruct", "--seed 3")
    failed = dataclasses.replace(run, name="r1", error="exit code 1")
    report.gather(tmp_path, [run, failed])
    found = report.Study(tmp_path)
    assert found.runs == [dataclasses.asdict(run) | expected]
    assert found.failed == [dataclasses.asdict(failed)]
    assert found.head.keys() == {"commit", "torch", "device"}


def test_sweeps_read_and_pair_as_by_hand():
    # Caught: the slope for the level, a normal quantile for Student's t, seeds paired with others.
    x = np.array([50, 80, 100, 120, 200])
    L = 0.5 + 0.1 * np.log(x / 100) + np.array([0.01, -0.01, 0.02, -0.01, -0.01])
    reading = sweeps.read_at([(3, 9.0), *zip(x, L, strict=True)], 100)  # 3 is too far away
    u = np.log(x / 100)
    slope = (u - u.mean()) @ L / ((u - u.mean()) @ (u - u.mean()))
    level = L.mean() - slope * u.mean()
    rest = L - level - slope * u
    error = np.sqrt(rest @ rest / 3 * (1 / 5 + u.mean() ** 2 / ((u - u.mean()) @ (u - u.mean()))))
    assert np.isclose(reading.value, level) and np.isclose(reading.half, 3.18245 * error, rtol=1e-5)
    assert sweeps.read_at([(100, 0.5), (110, 0.5), (120, 0.5)], 100) is None
    assert sweeps.read_at([(X, 0.5) for X in (120, 130, 140, 150)], 100) is None

    def run(tau, seed, L):
        evals = [{"step": 0, "L": 1.0}, *({"step": t, "L": L} for t in (90, 95, 100, 105))]
        return {"reuse": tau, "seed": seed, "evals": evals}

    runs = [run(1, 0, 0.30), run(1, 1, 0.20), run(5, 1, 0.23), run(5, 0, 0.31), run(5, 7, 0.9)]
    found = sweeps.paired(runs, "reuse", "step", 100)
    assert np.isclose(found[5].value, 0.02)
    assert np.isclose(found[5].half, 12.7062 * 0.01, rtol=1e-4)
    with pytest.raises(ValueError, match="no run of reuse 1"):
        sweeps.paired([run(1, 0, 0.3) | {"evals": []}, *runs[2:]], "reuse", "step", 100)


RESULTS = Path(__file__).resolve().parent.parent / "results" / "study"


def test_the_points_of_the_course_are_those_of_the_committed_runs():
    # Caught: a study that is made again while results/study/points_inverse.csv stays as it was;
    # sizes or seeds that rows_of mixes up.
    mine = [run for run in report.Study(RESULTS).runs
            if run["part"] == "sizes" and run["arm"] == "inverse"]
    rows = report.rows_of(mine)
    written = read_csv(RESULTS / "points_inverse.csv")
    for name in rows[0]:
        assert [row[name] for row in written] == [row[name] for row in rows]
    curves = curves_from(rows)["base", "D"]
    assert [curve.L_ST.shape[0] for curve in curves] == [3] * 5


def test_the_committed_study_keeps_its_verdicts(monkeypatch):
    # Caught: a rule or a reading that moved; an interval that a verdict no longer asks for.
    monkeypatch.setattr(report, "draw", lambda *args, **names: "")
    monkeypatch.setattr(report, "REDRAWS", 2)  # no redraw is asked for what is asserted
    found = report.Study(RESULTS)
    verdict, names, *_ = report.larger_learn_more(found)
    assert verdict == "partly"
    assert (names["rises"], names["falls_D"], names["falls_C"]) == (4, 4, 1)
    runs = found.cells[0].single
    assert str(report.trend(runs.N, runs.k)) == "+0.362 ± 0.102"
    forms = report.forms(runs.N, runs.k)
    assert f"{forms.power:.1f} {forms.constant:.1f}" == "0.4 20.4"
    verdict, names, *_ = report.reuse_is_free(found)
    assert verdict == "partly"
    assert str(names["most"]) == "+0.028 ± 0.070" and str(names["at_top"]) == "+0.090 ± 0.038"
    verdict, names, *_ = report.groups(found)
    assert (verdict, str(names["equal_D"])) == ("holds", "-0.087 ± 0.039")
    assert str(names["equal_C"]) == "+0.333 ± 0.068"
    verdict, names, *_ = report.forecasts(found)
    assert (verdict, names["good"], names["cells"]) == ("partly", 4, 8)


def test_a_failed_run_cannot_write_into_the_page(tmp_path):
    # Caught: the end of a log that closes its block and goes on in HTML, with a file of this
    # machine as a picture or a script.
    image = 'src="/etc/hostname.png"'
    said = f"last words\x1b[2J\n```\n<script>alert(1)</script>\n<img {image}>\n"
    run = {"name": "a", "error": said, "N": 1e6, "seed": 0}
    text = report.about(SimpleNamespace(failed=[run], runs=[run]))["failures"]
    page = report.to_html(text, tmp_path)
    assert "<script>alert" not in page and "last words" in page and "\x1b" not in page
    assert "<img src" not in page
