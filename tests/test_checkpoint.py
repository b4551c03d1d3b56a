"""checkpoint.py: what is written is what was there, on any number of ranks, or is not taken for a
checkpoint at all."""

import json
import os
import pickle
import resource
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from model import Config, Model
from runtime import checkpoint
from runtime.checkpoint import Checkpoints, export, open_run, restore, whole_checkpoints
from runtime.ledger import Progress
from runtime.parallel import full, load, make_mesh, shard

DATA = {"a": "1", "b.jsonl": "2"}
FLAGS = {"out": "", "resume": "", "lr": 0.1, "slots": 8, "steps": 5}


class FakeLedger:
    """As much of a Ledger as a checkpoint needs."""

    def __init__(self, source, step=0):
        self.progress, self.error, self.stop = Progress(step), "", ""
        self.source = str(source)
        self.clock = self  # of which a checkpoint needs phase, error and stop

    def phase(self, name):
        return torch.no_grad()  # any context that does nothing here

    def state(self):
        return {
            "progress": asdict(self.progress),
            "bytes": dict.fromkeys(checkpoint.LINES, 0),
            "flags": {"model": self.source},
            "dtype": "float32",
        }


def trained(source, replicas=1, offload=False, steps=2):
    """A sharded model after some updates with made-up gradients that are the same for any number of
    ranks."""
    with torch.device("meta"):
        model = Model(Config.read(source))
    model = load(
        shard(model, make_mesh("cpu", replicas), torch.float32, offload).to_empty(device="cpu"),
        source,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min(1.0, (update + 1) / 5)
    )
    for _ in range(steps):
        update(model, optimizer, scheduler)
    return model, optimizer, scheduler


def update(model, optimizer, scheduler):
    for p in model.parameters():
        p.grad = p.detach().clone() * 0.1
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad(set_to_none=True)


def tensors(model, optimizer):
    """name: (weight, first moment, second moment), whole."""
    found = {}
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        found[name] = torch.stack(
            [full(p), full(state["exp_avg"]), full(state["exp_avg_sq"])]
        ).clone()
    return found


def write(run, source, replicas, offload):
    """Saves, changes everything at once, and returns what was there before."""
    model, optimizer, scheduler = trained(source, replicas, offload)
    for name in checkpoint.LINES:
        (run / name).touch()
    before = tensors(model, optimizer)
    ledger = FakeLedger(source)
    checkpoints = Checkpoints(run, 1, ledger, DATA)
    ledger.progress.step = 2
    checkpoints.save(model, optimizer, scheduler)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
            optimizer.state[p]["exp_avg"].add_(1.0)
    checkpoints.close(model, optimizer, scheduler)
    assert not ledger.error
    update(model, optimizer, scheduler)
    return before


def read(run, source, replicas, offload):
    model, optimizer, scheduler = trained(source, replicas, offload, steps=0)
    ledger = FakeLedger(source)
    restore(whole_checkpoints(run)[-1], model, optimizer, scheduler, ledger.progress)
    first = tensors(model, optimizer)
    update(model, optimizer, scheduler)
    steps = {optimizer.state[p]["step"].item() for p in model.parameters()}
    return first, tensors(model, optimizer), ledger.progress.step, scheduler.get_last_lr(), steps


@pytest.mark.parametrize(
    "tied,writers,readers",
    [(True, (4, 2, False), [(1, 1, False), (2, 1, True)]), (False, (1, 1, False), [(2, 2, False)])],
)
def test_what_is_read_is_what_was_there_on_any_number_of_ranks(
    checkpoint, tmp_path, tied, writers, readers
):
    # Caught: a save in the thread without async_save's copy (weights of the next step), optimiser
    # state left out, one that is not resharded, a learning rate that starts its warm-up again.
    source = checkpoint("qwen2", tied)[0]
    n, *how = writers
    before = ranks.run(n, write, tmp_path, source, *how)[0]
    updated = []
    for n, *how in readers:
        for first, second, step, lr, steps in ranks.run(n, read, tmp_path, source, *how):
            assert set(first) == set(before) and all(
                torch.equal(first[name], before[name]) for name in before
            )
            assert (step, lr, steps) == (2, [pytest.approx(0.01 * 4 / 5)], {3.0})
            updated.append(second)
    assert all(torch.equal(updated[0][name], other[name]) for other in updated for name in before)


def keep_some(run, source):
    model, optimizer, scheduler = trained(source)
    for name in checkpoint.LINES:
        (run / name).touch()
    ledger = FakeLedger(source)
    checkpoints = Checkpoints(run, 2, ledger, DATA)
    for step, pass1 in [(1, 0.5), (2, 0.9), (3, None), (4, 0.8), (5, 0.7), (6, None), (7, 0.8)]:
        ledger.progress.step = step
        if pass1 is not None:
            ledger.progress.evaluated_step, ledger.progress.pass1 = step, pass1
        checkpoints.save(model, optimizer, scheduler)
        checkpoints.wait()
        assert not ledger.error
    kept = [p.name for p in whole_checkpoints(run)]
    # The disk is full: no file may grow beyond 1000 bytes.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    ledger.progress.step = 8
    checkpoints.save(model, optimizer, scheduler)
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    restore(whole_checkpoints(run)[-1], model, optimizer, scheduler, ledger.progress)
    return kept, ledger.error, [p.name for p in whole_checkpoints(run)], ledger.progress.step


def test_the_last_and_the_best_are_kept_and_a_full_disk_costs_none_of_them(checkpoint, tmp_path):
    # Caught: the best of a step that was not evaluated (3 has its 0.9 from step 2), pruning before
    # the rename, an error that nobody hears of, a partial checkpoint taken for a whole one.
    (kept, error, after, step), other = ranks.run(2, keep_some, tmp_path, checkpoint()[0])
    assert kept == ["step-000002", "step-000006", "step-000007"] == after and step == 7
    assert (
        "step-000008 could not be written (" in error
        and "the disk or a quota is full" in error
        and other[1] == error
    )


def test_export_is_read_by_transformers(checkpoint, tmp_path):
    # The exported logits against those of the weights in the checkpoint. Caught: the starting
    # model's weights exported.
    from transformers import AutoModelForCausalLM

    source = checkpoint("qwen2", False)[0]
    before = ranks.run(1, write, tmp_path, source, 1, False)[0]
    assert export(tmp_path, tmp_path / "hf") == tmp_path / "checkpoints" / "step-000002"
    ranks.run(
        2, export, tmp_path / "checkpoints" / "step-000002", tmp_path / "sharded", torch.float32
    )
    for name in ("hf", "sharded"):
        theirs = dict(AutoModelForCausalLM.from_pretrained(tmp_path / name).named_parameters())
        assert all(torch.equal(theirs[n].detach(), t[0]) for n, t in before.items()) and set(
            theirs
        ) == set(before)
    with pytest.raises(FileExistsError, match="hf exists already"):
        export(tmp_path, tmp_path / "hf")
    with pytest.raises(ValueError, match="hf is in Hugging Face layout already"):
        export(tmp_path / "hf", tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor a run"):
        export(tmp_path / "nothing", tmp_path / "x")


def write_metadata(checkpoint: Path):
    metadata = dcp.metadata.Metadata(state_dict_metadata={}, storage_data={})
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def make_run(run: Path, **changes):
    """A run's directory with a checkpoint after 10 bytes of metrics, one that was not finished, and
    newer lines."""
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    (run / "checkpoints" / "step-000004.partial").mkdir()
    state = {
        "progress": {"step": 2},
        "bytes": {"metrics.jsonl": 10, "samples.jsonl": 0},
        "data": DATA,
    }
    (run / "checkpoints" / "step-000002" / "state.json").write_text(json.dumps(state))
    write_metadata(run / "checkpoints" / "step-000002")
    (run / "flags.json").write_text(json.dumps(FLAGS | changes | {"world": 4}))
    (run / "metrics.jsonl").write_text("123456789\nabc")
    return run


def opened(flags, fresh="fresh", times=1):
    """open_run's answers or errors, each asked for while the locks of those before are held."""
    answers, locks = [], []
    for _ in range(times):
        try:
            found = open_run(FLAGS | flags, {"out", "resume", "slots"}, Path(fresh), DATA)
            answers.append((found.run, found.checkpoint, found.notes))
            locks.append(found.lock)
        except (OSError, ValueError) as error:
            answers.append(f"{type(error).__name__}: {error}")
    return answers


def test_a_run_is_cut_back_to_its_checkpoint_and_locked(tmp_path):
    # Caught: lines of lost steps left in, the unfinished checkpoint taken, a lock that a second
    # process gets too.
    run = make_run(tmp_path / "runs" / "a")
    ((first, second),) = ranks.run(
        1, opened, {"out": str(run), "resume": "auto", "slots": 9}, "", 2
    )
    assert first == (run, run / "checkpoints" / "step-000002", [])
    assert second.startswith(f"BlockingIOError: {run} is in use by process ")
    assert (run / "metrics.jsonl").read_text() == "123456789\n" and not list(
        run.glob("checkpoints/*.partial")
    )
    assert json.loads((run / "flags.json").read_text())["slots"] == 9
    (run / "metrics.jsonl").write_text("1234")
    assert (
        "holds 4 bytes, but held 10"
        in ranks.run(1, opened, {"out": str(run), "resume": "auto"})[0][0]
    )


def test_runs_are_found_refused_or_begun(tmp_path):
    # Caught: overwriting, a resume with another learning rate, a finished run resumed by its flags.
    fresh = str(tmp_path / "runs" / "new")
    run = make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "b", lr=0.5)
    done = make_run(tmp_path / "runs" / "c")
    (done / "final").mkdir()
    (tmp_path / "notes").mkdir()

    def answer(**flags):
        return ranks.run(2, opened, flags, fresh)[1][0]  # rank 1 is told by rank 0

    assert answer(resume="auto")[0] == run
    assert "FileExistsError" in answer(out=str(run)) and f"--resume {run}" in answer(out=str(run))
    assert "notes exists already and is not overwritten; give another" in answer(
        out=str(tmp_path / "notes"), resume="auto"
    )
    assert "made with other flags: --lr 0.2 (there 0.1)" in answer(
        out=str(run), resume="auto", lr=0.2
    )
    begun = "no unfinished run with these flags: a new one begins"
    assert answer(resume="auto", lr=0.3) == (Path(fresh), None, [begun])
    assert answer(out=str(tmp_path / "later"), resume="auto") == (tmp_path / "later", None, [])


def test_a_worker_started_again_by_torchrun_resumes(tmp_path, monkeypatch):
    # Without this, --max-restarts would meet its own directory and refuse it.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda found: None)
    run = make_run(tmp_path / "a")
    assert (
        open_run(FLAGS | {"out": str(run)}, {"out"}, Path("new"), DATA).checkpoint
        == run / "checkpoints" / "step-000002"
    )


# ---- What a resumed run says, and what it refuses ------------------------------------------------


def resumed(run, **flags):
    return ranks.run(1, opened, {"out": str(run), "resume": "auto"} | flags)[0][0]


def test_a_resumed_run_says_what_it_does(tmp_path):
    # Caught: a start from step 0, a damaged checkpoint or lost steps without a word.
    run = make_run(tmp_path / "a")
    with open(run / "metrics.jsonl", "w") as lines:
        lines.write("123456789\n" + 3 * '{"kind": "train"}\n')
    (run / "checkpoints" / "step-000002.old").mkdir()
    (run / "checkpoints" / "notes").write_text("mine")
    _, checkpoint, notes = resumed(run)
    assert checkpoint.name == "step-000002"
    assert "3 logged steps after step-000002 are dropped and done again" in notes
    assert sum("is not a checkpoint and is ignored" in note for note in notes) == 2
    (run / "checkpoints" / "step-000004").mkdir()
    (run / "checkpoints" / "step-000004" / "state.json").write_text("{")
    _, checkpoint, notes = resumed(run)
    assert checkpoint.name == "step-000002"
    assert any("step-000004 is damaged and passed over" in note for note in notes)
    for name in ("step-000002", "step-000004"):
        (run / "checkpoints" / name / "state.json").unlink()
    with open(run / "metrics.jsonl", "w") as lines:
        lines.write(2 * '{"kind": "train"}\n')
    _, checkpoint, notes = resumed(run)
    assert checkpoint is None
    assert notes[-1].endswith("begins again at step 0; 2 logged steps are dropped")


@pytest.mark.parametrize("state", [
    {"progress": {"stap": 2}, "bytes": {"metrics.jsonl": 0, "samples.jsonl": 0}},
    {"progress": {"step": 2}}, {"progress": {"step": 2}, "bytes": {"metrics.jsonl": "0"}}, [],
])  # fmt: skip
def test_a_state_that_is_none_is_passed_over(tmp_path, state):
    # Caught: a traceback for a state.json that was edited, or is of another edition.
    run = make_run(tmp_path / "a")
    (run / "checkpoints" / "step-000002" / "state.json").write_text(json.dumps(state))
    answer = resumed(run)
    assert "none of the checkpoints of" in answer and "step-000002 is damaged" in answer
    # Caught: a run that begins again at step 0 and drops the lines of all its steps.
    assert (run / "metrics.jsonl").read_text() == "123456789\nabc"


def save_over_a_damaged_one(run, source):
    model, optimizer, scheduler = trained(source)
    for name in checkpoint.LINES:
        (run / name).touch()
    damaged = run / "checkpoints" / "step-000002"
    damaged.mkdir(parents=True)
    (damaged / "state.json").write_text("{")
    ledger = FakeLedger(source)
    checkpoints = Checkpoints(run, 1, ledger, DATA)
    ledger.progress.step = 2
    checkpoints.save(model, optimizer, scheduler)
    checkpoints.close(model, optimizer, scheduler)
    return ledger.error, checkpoint.newest_readable(run)[0]


def test_a_damaged_checkpoint_makes_room_for_the_whole_one(checkpoint, tmp_path):
    # Caught: a rename that fails, so that the resumed run ends where the damaged one stands.
    ((error, newest),) = ranks.run(1, save_over_a_damaged_one, tmp_path, checkpoint()[0])
    assert error == "" and newest == tmp_path / "checkpoints" / "step-000002"


def discard(opened):
    from runtime.checkpoint import discarded_on_error

    with pytest.raises(ValueError, match="refused"), discarded_on_error(opened):
        raise ValueError("refused")


def test_a_refused_start_leaves_no_directory_of_its_own(tmp_path):
    # Caught: a directory that blocks the corrected command; a run of the user's that is removed.
    for name, fresh in (("new", True), ("old", False)):
        run = make_run(tmp_path / name)
        ranks.run(1, discard, checkpoint.Opened(run, None, [], fresh))
        assert run.exists() != fresh


def test_data_that_changed_is_refused(tmp_path):
    run = make_run(tmp_path / "a")
    state = json.loads((run / "checkpoints" / "step-000002" / "state.json").read_text())
    (run / "checkpoints" / "step-000002" / "state.json").write_text(
        json.dumps(state | {"data": {"a": "1"}})
    )
    assert resumed(run).startswith("ValueError: b.jsonl: the problems are others than when")


def test_links_among_the_files_of_a_run_are_refused(tmp_path):
    # Caught: a run from somebody else whose metrics.jsonl points at a file of the user's, which
    # resuming truncates.
    mine = tmp_path / "mine"
    mine.write_text("precious")
    mine_too = tmp_path / "directory"
    mine_too.mkdir()
    names = (
        "metrics.jsonl",
        "samples.jsonl",
        "lock",
        "flags.new",
        "final.partial",
        "tensorboard",
        "curve.png",
        "checkpoints/step-000009",
        "checkpoints/step-000009.partial",
        "checkpoints",
    )
    for name in names:  # fmt: skip
        run = make_run(tmp_path / f"run-{name.replace('/', '-')}")
        if "/" in name or name in ("final.partial", "tensorboard"):
            (run / name).symlink_to(mine_too)
        elif name == "checkpoints":
            (run / name).rename(tmp_path / "elsewhere")
            (run / name).symlink_to(tmp_path / "elsewhere")
        else:
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(mine)
        assert "is a symbolic link" in resumed(run), name
    os.mkfifo(tmp_path / "pipe")
    run = make_run(tmp_path / "run-pipe")
    (tmp_path / "pipe").rename(run / "lock")
    assert "lock is neither a file nor a directory" in resumed(run)
    assert (
        mine.read_text() == "precious" and (tmp_path / "elsewhere" / "step-000004.partial").is_dir()
    )


class Evil:
    def __reduce__(self):
        return eval, ("open('executed', 'w')",)


def test_a_checkpoint_from_somebody_else_runs_no_code(checkpoint, tmp_path):
    # Caught: .metadata or an entry of the optimiser unpickled, which is as good as running a
    # program.
    source = checkpoint("qwen2", True)[0]
    ranks.run(1, write, tmp_path, source, 1, False)
    step = tmp_path / "checkpoints" / "step-000002"
    good = (step / ".metadata").read_bytes()
    (step / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"asks for builtins\.eval"):
        export(tmp_path, tmp_path / "hf")
    (step / ".metadata").write_bytes(good)
    metadata = pickle.loads(good)
    entry = next(
        index
        for index, kind in metadata.state_dict_metadata.items()
        if isinstance(kind, dcp.metadata.BytesStorageMetadata)
    )
    info = next(info for index, info in metadata.storage_data.items() if index.fqn == entry)
    data = bytearray((step / info.relative_path).read_bytes())
    poison = pickle.dumps(Evil())
    assert len(poison) <= info.length
    data[info.offset : info.offset + info.length] = poison.ljust(info.length, b"\0")
    (step / info.relative_path).write_bytes(data)
    with pytest.raises(AssertionError, match=r"could not be read: .*[Ww]eights"):
        ranks.run(1, read, tmp_path, source, 1, False)
    assert (
        not Path("executed").exists() and not (Path(__file__).parent.parent / "executed").exists()
    )


def test_a_path_in_the_metadata_stays_inside_the_checkpoint(checkpoint, tmp_path):
    source = checkpoint("qwen2", True)[0]
    ranks.run(1, write, tmp_path, source, 1, False)
    path = tmp_path / "checkpoints" / "step-000002" / ".metadata"
    path.write_bytes(path.read_bytes().replace(b"__0_0.distcp", b"../../secret"))
    with pytest.raises(ValueError, match="lies outside the checkpoint"):
        export(tmp_path, tmp_path / "hf")


def state_readers(run, source):
    """The threads that ask the ledger for what a checkpoint holds beside tensors."""
    for name in checkpoint.LINES:
        (run / name).touch()
    ledger = FakeLedger(source)
    state, asked = ledger.state(), []
    ledger.state = lambda: asked.append(threading.current_thread().name) or state
    saver = checkpoint.Checkpoints(run, 1, ledger, DATA)
    ledger.progress.step = 2
    saver.save(*trained(source))
    saver.wait()
    return asked, ledger.error


def test_a_checkpoint_holds_the_counters_of_its_own_step(checkpoint, tmp_path):
    # Caught: a state read while the checkpoint is written, so that lines of later steps stay in
    # a resumed run.
    found = ranks.run(1, state_readers, tmp_path, checkpoint()[0])
    assert found == [(["MainThread"], "")]
