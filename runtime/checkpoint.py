"""A run on disk: its directory, the checkpoints in it, and the way back from them into a run or into Hugging Face files.

    RUN/flags.json, metrics.jsonl, samples.jsonl, lock
    RUN/checkpoints/step-000010/    torch.distributed.checkpoint files of every rank, and state.json: step, ledger, flags,
                                    the lengths of the two .jsonl files
    RUN/final/                      the trained model in Hugging Face layout, written when the run ends

A checkpoint is written by torch's `async_save`: the shards are copied to CPU memory while the run waits, and go to disk while
it runs on. It grows in a directory called step-000010.partial and gets its name in one rename, after the last byte of the
last rank: a directory with the right name is whole, whatever happened before. Everything random in a run is keyed by the step
(rollout.py), so weights, optimiser, counters and two file lengths are the whole state of it, for any number of ranks.

    python -m runtime.checkpoint RUN_OR_CHECKPOINT OUT_DIR      # any checkpoint as Hugging Face safetensors
"""

import argparse
import fcntl
import json
import os
import shutil
import socket
import threading
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from model import Config, Model
from runtime.ledger import Ledger
from runtime.parallel import locate, make_mesh, save, shard

LINES = ("metrics.jsonl", "samples.jsonl")  # what a run appends to, and a resumed one cuts back to its checkpoint


def read_state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "state.json").read_text())


def read_flags(run: str | Path) -> dict:
    path = Path(run) / "flags.json"
    if not path.is_file():
        raise FileNotFoundError(f"--resume {run}: no run there, for want of {path}; give a run's directory, or auto")
    return json.loads(path.read_text())


def whole(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.suffix != ".partial")


class Checkpoints:
    """Writes the checkpoints of a run: one at a time, the last `keep` of them kept, and that of the best pass@1."""

    def __init__(self, run: Path, keep: int, ledger: Ledger):
        self.run, self.keep, self.ledger, self.thread = run, keep, ledger, None
        # A group of its own: the writing thread must not mix its collectives with those of the loop.
        self.group = dist.new_group(backend="gloo")

    def save(self, model: Model, optimizer: torch.optim.Optimizer, scheduler) -> None:
        """Begins a checkpoint of the ledger's step, unless there is one (a collective).

        Returns when everything may change again; a failure is found in ledger.error.
        """
        if self.ledger.saved == self.ledger.step:
            return
        with self.ledger.phase("checkpoint"):
            self._wait()
            self.ledger.saved = self.ledger.step
            target = self.run / "checkpoints" / f"step-{self.ledger.step:06d}"
            partial = target.with_suffix(".partial")
            weights, moments = get_state_dict(model, optimizer)
            tensors = {"model": weights, "optimizer": moments}
            written = dcp.async_save(tensors, checkpoint_id=partial, process_group=self.group)
            state = self.ledger.state() | {"scheduler": scheduler.state_dict()}
            self.thread = threading.Thread(target=self._finish, args=(written, state, partial, target))
            self.thread.start()

    def close(self, model: Model, optimizer: torch.optim.Optimizer, scheduler) -> None:
        """Saves what is not saved yet, if that can be done, and waits for it (a collective)."""
        if self.ledger.step and self.ledger.stop != "checkpoint":
            self.save(model, optimizer, scheduler)
        with self.ledger.phase("checkpoint"):
            self._wait()

    def _finish(self, written, state: dict, partial: Path, target: Path) -> None:
        try:
            written.result()
            if dist.get_rank() == 0:
                (partial / "state.json").write_text(json.dumps(state))
                for path in (partial / "state.json", *(self.run / name for name in LINES), partial):
                    sync(path)
                partial.rename(target)
                sync(target.parent)
                self._prune()
        except (CheckpointException, Exception) as error:  # the former is none of the latter
            causes = [e for e, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
            # Of a full disk torch's writer says only that it stands at an unexpected position.
            short = "a write was cut short, as by a full disk or a quota: " if "unexpected pos" in str(causes[0]) else ""
            free = shutil.disk_usage(self.run).free / 1e9
            self.ledger.error = f"{target} could not be written ({free:.1f} GB are free there): {short}{causes[0]}"

    def _prune(self) -> None:
        kept = whole(self.run)
        states = {p: read_state(p) for p in kept}
        scores = {p: s["pass1"] for p, s in states.items() if s["measured"] == s["step"]}
        best = max(scores, key=lambda p: (scores[p], p), default=None)
        for p in kept[: -self.keep]:
            if p != best:
                # A directory half deleted must not look whole.
                shutil.rmtree(p.rename(p.with_suffix(".partial")))

    def _wait(self) -> None:
        if self.thread is not None:
            self.thread.join()


def sync(path: Path) -> None:
    """Makes a file or directory survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def restore(checkpoint: Path, model: Model, optimizer: torch.optim.Optimizer, scheduler, ledger: Ledger) -> None:
    """Fills all of them from a checkpoint; its number of ranks and this one's may differ (a collective)."""
    weights, moments = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=checkpoint)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    state = read_state(checkpoint)
    scheduler.load_state_dict(state["scheduler"])
    ledger.restore(state)


def open_run(flags: dict, free: set[str], fresh: Path) -> tuple[Path, Path | None, object]:
    """-> (the run's directory, the checkpoint to go on from or None, a handle that holds its lock) (a collective).

    flags: the run's, among them `out` and `resume`. free: names of those that may differ from the run's that is resumed.
    fresh: the directory of a new run. A worker that torchrun has started again resumes, whatever the flag says.
    All ranks raise what rank 0 raises: FileExistsError, FileNotFoundError, BlockingIOError (locked), ValueError.
    """
    found, lock = [None], None
    if dist.get_rank() == 0:
        try:
            resume = flags["resume"] or ("auto" if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) else "")
            run = find_run(flags, free, fresh, resume)
            if run.exists() and not (resume and (run / "flags.json").exists()):
                way = f"to go on with it: --resume {run}; else " if (run / "flags.json").exists() else ""
                raise FileExistsError(f"{run} exists already and is not overwritten; {way}give another --out, or remove it")
            run.mkdir(parents=True, exist_ok=True)
            lock = take_lock(run)
            found = [(run, prepare(run, flags, free))]
        except (OSError, ValueError) as error:
            found = [error]
    dist.broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return *found[0], lock


def differing(flags: dict, run: Path, free: set[str]) -> dict:
    """name: (here, there) of the flags that are not those of the run in the directory."""
    there = read_flags(run)
    return {k: (v, there.get(k)) for k, v in flags.items() if k not in free and v != there.get(k)}


def find_run(flags: dict, free: set[str], fresh: Path, resume: str) -> Path:
    if resume not in ("", "auto"):
        return Path(resume)
    if flags["out"]:
        return Path(flags["out"])
    # A run is determined by its flags, so an unfinished one with the same flags is this one.
    same = [p.parent for p in sorted(fresh.parent.glob("*/flags.json"), key=lambda p: p.stat().st_mtime)
            if not differing(flags, p.parent, free - {"steps"}) and not (p.parent / "final").exists()]
    return same[-1] if resume and same else fresh


def take_lock(run: Path):
    """Holds RUN/lock until this process ends, however it ends: the kernel takes it back."""
    lock = open(run / "lock", "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        raise BlockingIOError(f"{run} is in use by {lock.read().strip()}; wait for it, or give another --out") from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def prepare(run: Path, flags: dict, free: set[str]) -> Path | None:
    """Makes a directory new, or as it was at its newest checkpoint, which is returned."""
    if (run / "flags.json").exists() and (changed := differing(flags, run, free)):
        said = ", ".join(f"--{k.replace('_', '-')} {here} (there {there})" for k, (here, there) in changed.items())
        raise ValueError(f"{run} was made with other flags: {said}; a resumed run keeps them. Repeat them, or begin a new run")
    for partial in (run / "checkpoints").glob("*.partial"):
        shutil.rmtree(partial)
    newest = (whole(run) or [None])[-1]
    position = read_state(newest)["bytes"] if newest else dict.fromkeys(LINES, 0)
    for name in LINES:
        with open(run / name, "a") as lines:
            if lines.tell() < position[name]:
                raise ValueError(f"{run / name} holds {lines.tell()} bytes, but held {position[name]} when {newest} was "
                                 "written; put the whole file back")
            lines.truncate(position[name])
    (run / "flags.new").write_text(json.dumps(flags | {"world": dist.get_world_size()}, indent=2) + "\n")
    (run / "flags.new").replace(run / "flags.json")
    return newest


def export(path: Path, target: Path, dtype: torch.dtype | None = None) -> Path:
    """Writes a checkpoint, or the newest of a run, in Hugging Face layout; returns the checkpoint.

    dtype None: that in which the run computed. Under torchrun each process holds its share of the model only.
    FileNotFoundError if there is no whole checkpoint, FileExistsError if there is a target.
    """
    if not (path / "state.json").exists():
        if not whole(path):
            raise FileNotFoundError(f"{path}: neither a checkpoint nor a run with a whole one in it")
        path = whole(path)[-1]
    if target.exists():
        raise FileExistsError(f"{target} exists already and is not overwritten; give another directory")
    state = read_state(path)
    dtype = dtype or getattr(torch, state["dtype"])
    source = locate(state["flags"]["model"])
    with torch.device("meta"):
        model = Model(Config.read(source)).to(dtype)
    if alone := not dist.is_initialized():
        model = model.to_empty(device="cpu")
    else:
        model = shard(model, make_mesh("cpu"), dtype).to_empty(device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process without a group is meant
        dcp.load({"model": {n: p.data for n, p in model.named_parameters()}}, checkpoint_id=path, no_dist=alone)
    save(model, source, target, dtype)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Turn a checkpoint of a run into Hugging Face safetensors.")
    parser.add_argument("source", type=Path, help="a run, of which the newest checkpoint is taken, or one of its checkpoints")
    parser.add_argument("target", type=Path, help="the new directory")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="that of the run's compute if not given")
    flags = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    try:
        path = export(flags.source, flags.target, getattr(torch, flags.dtype) if flags.dtype else None)
    except (OSError, ValueError) as error:
        raise SystemExit(f"runtime.checkpoint: {error}") from error
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"{path} -> {flags.target}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
