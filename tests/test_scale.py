"""Several ranks, and runs that are hurt: the gradient, the memory of loading, kills, signals,
faults, restarts, two nodes."""

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch

from model import Config, Model
from reward import Verdict
from rollout import Completion
from runtime.parallel import full, load, make_mesh, shard

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--prompts",
    "8",
    "--group",
    "4",
    "--eval-problems",
    "10",
    "--max-prompt",
    "32",
    "--max-new",
    "24",
    "--eval-every",
    "4",
    "--save-every",
    "3",
    "--micro-tokens",
    "300",
]
# what may differ between two runs of the same flags
TIMES = ("seconds", "tokens_per_second", "mfu", "gpu_hours")


def lines(run, timed=False):
    """The rows of a run's metrics, without what depends on the clock."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return rows if timed else [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def arguments(run, *more):
    return [*TINY, "--out", str(run), *map(str, more)]


def until(condition, seconds=600):
    """Waits until condition() holds. The limit only ends a hang; no test is about it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)


def has_lines(run, n):
    return lambda: (
        (Path(run) / "metrics.jsonl").exists()
        and (Path(run) / "metrics.jsonl").read_text().count("\n") >= n
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of 8 steps on two ranks that nothing happens to."""
    run = tmp_path_factory.mktemp("reference") / "run"
    output = run.parent / "output"
    assert ranks.wait(ranks.start(2, ranks.train, arguments(run, "--steps", 8), output=output)) == [
        0,
        0,
    ], output.read_text()
    return run


def torchrun(*options, **environment):
    """torchrun started with pipes; its processes have one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, options)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# ---- Sharding ------------------------------------------------------------------------------------


class Keep:
    """Stands for the optimizer and the scheduler: keeps the gradients that an update would use."""

    def __init__(self, model):
        self.model, self.gradients = model, {}

    def step(self):
        self.gradients = {
            n: full(p.grad).cpu() for n, p in self.model.named_parameters() if p.grad is not None
        }

    def zero_grad(self, **_):
        self.model.zero_grad()

    param_groups = ({"lr": 0.0},)


class StandIn:
    """As much of a Clock as a step needs."""

    device = torch.device("cpu")

    def phase(self, name):
        return contextlib.nullcontext()

    def give_up_if_asked(self):
        pass

    def commit(self):
        pass


def gradients(source, budgets, replicas, offload):
    """The gradient of one update of train_step on made-up completions, for every budget, and the
    statistics."""
    import grpo

    rng = random.Random(0)
    done = []
    for i in range(24):
        prompt, ids = ([rng.randrange(1, 97) for _ in range(rng.randint(1, 30))] for _ in range(2))
        verdict = Verdict(float(i % 3 == 0), "right", "", "")
        done.append(Completion(i // 4, i % 4, prompt, ids, [-1.0] * len(ids), True, "", verdict))
    found = []
    with torch.device("meta"):
        model = Model(Config.read(source), recompute=offload)
    model = load(
        shard(model, make_mesh("cpu", replicas), torch.float32, offload).to_empty(device="cpu"),
        source,
    )
    for budget in budgets:
        f = grpo.Flags(
            prompts=6, group=4, micro_tokens=budget, clip_grad=1e9, max_prompt=32, max_new=32
        )
        keep = Keep(model)
        stats = grpo.train_step(model, None, keep, keep, done, f, StandIn())
        found.append((keep.gradients, stats))
    return found


def test_the_gradient_depends_neither_on_ranks_nor_on_budgets_nor_on_replicas(checkpoint):
    # Caught: an average over ranks for the sum, a mean per micro-batch, gradients of the last
    # micro-batch only, no sum over replicas, offloaded gradients that miss a micro-batch. In
    # float32, relative to the largest entry of the gradient.
    source = checkpoint("qwen2", True)[0]
    budgets = (100, 200, 2000)
    (((expected, first), *_),) = ranks.run(1, gradients, source, budgets[2:], 1, False)
    micro_batches, largest = set(), max(g.abs().max() for g in expected.values())
    for n, replicas, offload in (
        (1, 1, False),
        (2, 1, False),
        (4, 1, False),
        (4, 2, False),
        (2, 1, True),
    ):
        for found, stats in ranks.run(n, gradients, source, budgets, replicas, offload)[0]:
            for name, g in found.items():
                difference = (g - expected[name]).abs().max() / largest
                assert difference < 3e-6, (
                    n,
                    replicas,
                    offload,
                    stats["micro_batches"],
                    name,
                    difference,
                )
            assert set(found) == set(expected) and stats["loss"] == pytest.approx(
                first["loss"], abs=1e-6
            )
            assert 0 <= stats["imbalance"] < 0.25
            micro_batches.add(stats["micro_batches"])
    assert len(micro_batches) > 3


# ---- Resume, signals, faults ---------------------------------------------------------------------


@pytest.mark.parametrize("kills,seed", [(2, 0), pytest.param(5, 1, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(
    reference, tmp_path, kills, seed
):
    # Caught: metrics of lost steps left in, optimiser state or the warm-up begun anew, noise that
    # depends on the start.
    run, rng, killed = tmp_path / "run", random.Random(seed), 0
    same_command = arguments(run, "--steps", 8, "--resume", "auto")
    while killed < kills:
        started = ranks.start(2, ranks.train, same_command, output=tmp_path / "output")
        if killed % 2:
            time.sleep(rng.uniform(0.3, 2))  # loading, or any step, of a run that resumes
        else:
            until((run / "checkpoints" / "step-000003").exists)
            time.sleep(rng.uniform(0, 0.6))  # 8 steps take about 1.5 s
        victim = started[rng.randrange(2)]
        if victim.exitcode is not None:  # it was faster than the kill: begin anew
            ranks.wait(started)
            subprocess.run(["rm", "-r", run], check=True)
            continue
        victim.kill()
        killed += 1
        for process in started:
            process.kill()
            process.join()
    assert ranks.wait(ranks.start(2, ranks.train, same_command, output=tmp_path / "output")) == [
        0,
        0,
    ]
    assert "from step-00000" in (tmp_path / "output").read_text() and lines(run) == lines(reference)
    assert [row["step"] for row in lines(run) if row["kind"] == "train"] == list(range(1, 9))
    assert (run / "samples.jsonl").read_text() == (reference / "samples.jsonl").read_text()
    weights = Path("final", "model.safetensors")
    assert (run / weights).read_bytes() == (reference / weights).read_bytes()


def test_other_numbers_of_ranks_go_on_with_a_run(reference, tmp_path):
    # A run of two ranks, asked to end in its middle, goes on with one and ends near the reference.
    run, output = tmp_path / "run", tmp_path / "output"
    started = ranks.start(2, ranks.train, arguments(run, "--steps", 8), output=output)
    until(has_lines(run, 4))
    os.kill(started[1].pid, signal.SIGINT)  # any rank will do
    assert ranks.wait(started) == [0, 0]
    said = output.read_text()
    assert (
        f"to go on:\ntorchrun --nproc_per_node 2 grpo.py --resume {run}" in said
        and not (run / "final").exists()
    )
    steps = int(re.search(r"ended after step (\d) of 8", said)[1])
    assert (run / "checkpoints" / f"step-00000{steps}").is_dir() and steps < 8
    assert ranks.wait(ranks.start(1, ranks.train, ["--resume", str(run)], output=output)) == [0], (
        output.read_text()
    )
    ours, expected = lines(run), lines(reference)
    assert [(row["kind"], row["step"]) for row in ours] == [
        (row["kind"], row["step"]) for row in expected
    ]
    for name in ("reward", "loss", "grad_norm", "D", "C"):
        theirs = [row[name] for row in expected if row["kind"] == "train"]
        assert [row[name] for row in ours if row["kind"] == "train"] == pytest.approx(
            theirs, abs=1e-5
        )
    hours = [row["gpu_hours"] for row in lines(run, timed=True)]
    assert hours == sorted(hours) and hours[0] > 0


def stuck(argv):
    """A run whose second rank never comes back from the second step's samples."""
    import grpo

    draw = grpo.Rollout.draw

    def late(self, problems, G, temperature, step, **rest):
        if os.environ["RANK"] == "1" and step == 2:
            time.sleep(60)
        return draw(self, problems, G, temperature, step, **rest)

    grpo.Rollout.draw = late
    ranks.train(argv)


def test_a_second_signal_and_a_phase_that_lasts_too_long_end_the_run_at_once(tmp_path):
    # Caught: Python's own handlers, which do not run while the main thread waits in a collective; a
    # hang without a message.
    run, output = tmp_path / "run", tmp_path / "output"
    started = ranks.start(2, stuck, arguments(run), output=output)
    until(has_lines(run, 2))
    for process in started:
        os.kill(process.pid, signal.SIGTERM)
    time.sleep(1.3)
    assert [process.exitcode for process in started] == [None, None]
    for process in started:
        os.kill(process.pid, signal.SIGTERM)
    assert ranks.wait(started, 2) == [128 + 15] * 2
    started = ranks.start(
        2, stuck, arguments(run, "--resume", "auto", "--timeout", 0.04), output=output
    )
    assert set(ranks.wait(started, 20)) == {1}
    said = output.read_text()
    for rank, place in ((0, "any_rank"), (1, "in late")):
        assert (
            said.count(
                f"rank {rank} is in the phase generation, after 1 whole steps, since 0.04 minutes"
            )
            == 1
        )
        assert place in said


LONG = [
    "--group",
    "16",
    "--micro-tokens",
    "60",
    "--updates",
    "2",
    "--kl",
    "0.01",
    "--eval-every",
    "2",
]


def endless(argv, place, begun):
    """A run whose second step, or the evaluation after it, takes minutes at one place."""
    import grpo
    import rollout

    def wait_at(name, seconds):
        if (
            name == place
            and Path(argv[argv.index("--out") + 1], "metrics.jsonl")
            .read_text()
            .count('"kind": "train"')
            == when
        ):
            Path(f"{begun}{os.environ['RANK']}").touch()
            time.sleep(seconds)

    when = 2 if place == "evaluation" else 1  # training lines by then
    synchronise, log_probs, step = (
        rollout.Sampler._synchronise,
        grpo.log_probs,
        torch.optim.AdamW.step,
    )
    updates = []

    def slow_sampler(self, *args):
        wait_at("generation", 5)
        wait_at("evaluation", 5)
        return synchronise(self, *args)

    def slow_log_probs(model, b, temperature):
        if torch.is_grad_enabled():
            wait_at(
                "second update" if len(updates) % 2 else "first update",
                0.2 if len(updates) % 2 else 5,
            )
        else:
            wait_at("old" if model.training_policy else "reference", 5)
        return log_probs(model, b, temperature)

    def counted(self, *args, **options):
        updates.append(1)
        return step(self, *args, **options)

    add = grpo.add_log_probs

    def marked(policy, reference, *rest):
        policy.training_policy, reference.training_policy = True, False
        return add(policy, reference, *rest)

    rollout.Sampler._synchronise, grpo.log_probs, grpo.add_log_probs = (
        slow_sampler,
        slow_log_probs,
        marked,
    )
    torch.optim.AdamW.step = counted
    ranks.train(argv)


PLACES = ("generation", "old", "reference", "first update", "second update", "evaluation")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("n", [1, 2])
def test_a_signal_gives_a_long_step_up_and_loses_nothing(tmp_path, n, place):
    # Caught: a phase that is ended first, which torchrun does not wait for; a rank that leaves
    # alone; an update undone.
    run, output = tmp_path / "run", tmp_path / "output"
    started = ranks.start(
        n, endless, arguments(run, *LONG, "--steps", 9), place, tmp_path / "begun", output=output
    )
    until(lambda: all((tmp_path / f"begun{rank}").exists() for rank in range(n)))
    for process in started:
        os.kill(process.pid, signal.SIGTERM)
    assert ranks.wait(started) == [0] * n, output.read_text()[-3000:]
    whole = 2 if place in ("second update", "evaluation") else 1
    said = output.read_text()
    assert f"ended after step {whole} of 9, as asked" in said, said
    if place == "second update":
        assert "changes the weights now, so it will be finished" in said
    else:
        assert "given up, then a checkpoint is written" in said
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step-00000{whole}"]
    assert sum(row["kind"] == "train" for row in lines(run)) == whole


def test_a_step_that_was_given_up_is_done_again_as_it_would_have_been(tmp_path):
    runs = {}
    for name in ("whole", "ended"):
        run, output = tmp_path / name, tmp_path / f"{name}-output"
        argv = arguments(run, *LONG, "--steps", 3)
        if name == "ended":
            (process,) = started = ranks.start(
                1, endless, argv, "first update", tmp_path / "begun", output=output
            )
            until((tmp_path / "begun0").exists)
            os.kill(process.pid, signal.SIGTERM)
            assert ranks.wait(started) == [0]
            argv = ["--resume", str(run)]
        assert ranks.wait(ranks.start(1, ranks.train, argv, output=output)) == [0], (
            output.read_text()[-3000:]
        )
        runs[name] = lines(run)
    assert runs["whole"] == runs["ended"]


def signalled():
    """-> (whether a child lives on that is signalled as torchrun signals a worker's children, the
    signals counted)."""
    from runtime.ledger import Signals

    with Signals() as signals:
        child = subprocess.Popen(["sleep", "30"])
        for pid in (child.pid, os.getpid()):
            os.kill(pid, signal.SIGTERM)
        until(lambda: signals.requested)
        time.sleep(0.1)
        lives = child.poll() is None
    child.kill()
    return lives, signals.requested, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_spares_the_graders():
    # Caught: children that inherit an open mask: a grader that dies in the middle of an answer
    # turns it into a wrong one.
    assert ranks.run(1, signalled) == [(True, True, True)]


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole(tmp_path):
    # Files of this process may not grow beyond 100 kB any more, once its first checkpoint is there.
    run, output = tmp_path / "run", tmp_path / "output"
    (process,) = started = ranks.start(1, ranks.train, arguments(run, "--steps", 60), output=output)
    until(lambda: (run / "checkpoints" / "step-000003").exists())
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    assert ranks.wait(started) == [2]
    assert (
        "could not be written" in output.read_text()
        and "To go on from there: torchrun" in output.read_text()
    )
    assert "Traceback" not in output.read_text()
    kept = sorted(p.name for p in (run / "checkpoints").iterdir() if p.suffix != ".partial")
    again = ranks.start(1, ranks.train, ["--resume", str(run), "--steps", "7"], output=output)
    assert kept and (ranks.wait(again) == [0]) == (kept[-1] <= "step-000007")


def without_room(argv):
    """A run whose weights cannot be written at its end, as on a disk that is full by then."""
    from runtime import parallel

    def write(*_, **__):
        raise OSError(28, "No space left on device")

    parallel.save_file = write
    ranks.train(argv)


@pytest.mark.parametrize("n", [1, 2])
def test_a_model_that_could_not_be_written_is_written_by_the_resumed_run(tmp_path, n):
    # Caught: a directory that looks whole, a rank that waits for ever, a run that begins again.
    run, output = tmp_path / "run", tmp_path / "output"
    argv = arguments(run, "--steps", 2, "--resume", "auto")
    assert ranks.wait(ranks.start(n, without_room, argv, output=output)) == [2] * n
    said = output.read_text()
    assert (
        "final could not be written: [Errno 28] No space left" in said and "Traceback" not in said
    )
    assert f"grpo.py --resume {run}" in said
    assert not list(run.glob("final*"))
    before = lines(run)
    assert ranks.wait(ranks.start(n, ranks.train, argv, output=output)) == [0] * n
    assert lines(run) == before and (run / "final" / "model.safetensors").is_file()
    assert (run / "final" / "model.safetensors").stat().st_mode & 0o444 == 0o444


def logged(argv, file):
    """A run with a stand-in for wandb that writes down what it is given."""
    import types

    import grpo
    from runtime import ledger

    calls = []
    sys.modules["wandb"] = types.SimpleNamespace(
        __spec__=object(),
        init=lambda **options: (
            calls.append(options)
            or types.SimpleNamespace(log=lambda row, step: calls.append({"step": step} | row))
        ),
    )
    grpo.find_spec = lambda name: None if name != "wandb" else object()
    ledger.peak_flops = lambda device: 1e10
    ranks.train(argv)
    Path(file).write_text(json.dumps(calls, default=str))


def test_wandb_gets_every_line(tmp_path):
    run = tmp_path / "run"
    argv = arguments(run, "--steps", 2, "--log", "wandb")
    assert ranks.wait(
        ranks.start(1, logged, argv, tmp_path / "calls", output=tmp_path / "output")
    ) == [0]
    (options, *rows), metrics = json.loads((tmp_path / "calls").read_text()), lines(run, timed=True)
    assert (options["project"], options["id"], options["resume"]) == ("grpo-ladder", "run", "allow")
    assert [(row["step"], row.get("eval/pass1", row.get("train/reward"))) for row in rows] == [
        (row["step"], row.get("pass1", row.get("reward"))) for row in metrics
    ]
    # MFU by its definition, from the line's own fields.
    train = next(row for row in metrics if row["kind"] == "train")
    assert train["mfu"]["train"] == pytest.approx(
        train["flops"]["train"] / train["seconds"]["train"] / 1e10
    )
    assert train["tokens_per_second"]["train"] == pytest.approx(
        train["tokens"] / train["seconds"]["train"]
    )
    without = ranks.start(
        1, ranks.train, arguments(tmp_path / "other", "--log", "wandb"), output=tmp_path / "output"
    )
    try:
        import wandb  # noqa: F401
    except ImportError:
        assert (
            ranks.wait(without) == [2] and "pip install wandb" in (tmp_path / "output").read_text()
        )
    for process in without:
        process.kill()


def mistaken():
    from runtime.ledger import explain

    if os.environ["RANK"] == "1":
        explain(lambda: int("one"))


def test_an_error_of_another_rank_is_said_when_the_first_does_not_fail(tmp_path):
    # Caught: rank 0 alone reporting what users can mend, so that a full /tmp on one node ends a run
    # without a word.
    started = ranks.start(2, mistaken, output=tmp_path / "output")
    assert ranks.wait(started) == [0, 2]
    said = (tmp_path / "output").read_text()
    assert "invalid literal for int() with base 10: 'one'" in said and "Traceback" not in said


# ---- Under torchrun ------------------------------------------------------------------------------


def test_a_rank_that_dies_shows_its_traceback_and_torchrun_goes_on_by_itself(reference, tmp_path):
    # Rank 1 fails in the middle of step 5 of the first attempt. Caught: errors of other ranks than
    # 0 that nobody sees, a restarted worker that meets its own directory, a lock that outlives its
    # process.
    script = tmp_path / "fails_once.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import grpo
from runtime import ledger
train_step = grpo.train_step
def breaking(*args):
    breaking.calls = getattr(breaking, "calls", 0) + 1
    first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if breaking.calls == 5 and os.environ["RANK"] == "1" and first_start:
        with args[-2].phase("old"):
            raise ZeroDivisionError("broken on purpose")
    return train_step(*args)
grpo.train_step = breaking
ledger.explain(lambda: grpo.main(grpo.parse_flags(sys.argv[1:])))
""")
    run = tmp_path / "run"
    options = (
        "--standalone",
        "--nproc_per_node",
        2,
        "--max-restarts",
        3,
        script,
        *arguments(run, "--steps", 8),
    )
    done = torchrun(*options, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    printed, said = done.communicate(timeout=600)
    assert done.returncode == 0, said[-3000:]
    assert (
        "ZeroDivisionError: broken on purpose" in said
        and "rank 1, in the phase old, after 4 whole steps" in said
    )
    assert "from step-000003" in printed
    assert lines(run) == lines(reference)


def test_sigterm_to_torchrun_ends_every_rank_in_order(tmp_path):
    run = tmp_path / "run"
    job = torchrun(
        "--standalone",
        "--nproc_per_node",
        2,
        "grpo.py",
        *arguments(run, "--steps", 500, "--save-every", 1000),
    )
    until(has_lines(run, 3))
    job.terminate()
    printed, said = job.communicate(timeout=600)
    steps = int(re.search(r"ended after step (\d+) of 500", printed)[1])
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step-{steps:06d}"]
    assert lines(run)[-1]["step"] == steps and said.count("SIGTERM: ") == 1


def test_two_nodes(reference, tmp_path):
    # Two agents of torchrun, as on two machines, a replica on each: the run of the reference but
    # for rounding.
    run = tmp_path / "run"
    with ranks.socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = [
        "--nnodes",
        2,
        "--nproc_per_node",
        1,
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        f"127.0.0.1:{port}",
        "--rdzv_id",
        "test",
        "grpo.py",
        *arguments(run, "--steps", 1, "--replicas", 2),
    ]
    agents = [torchrun(*options) for _ in range(2)]
    outputs = [agent.communicate(timeout=600) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], (
        outputs[0][1][-2000:] + outputs[1][1][-2000:]
    )
    # rank 0 alone speaks
    assert sorted("curve:" in printed for printed, _ in outputs) == [False, True]
    for name in ("reward", "loss", "grad_norm"):
        assert lines(run)[1][name] == pytest.approx(lines(reference)[1][name], abs=1e-5)
