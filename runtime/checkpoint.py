"""A run on disk: its directory, its checkpoints, resuming a run, and exporting a model.

    RUN/flags.json, metrics.jsonl, samples.jsonl, lock
    RUN/checkpoints/step-000010/    torch.distributed.checkpoint files of every rank; state.json:
                                    progress, flags, digests of the data, lengths of the .jsonl
    RUN/final/                      the trained model in Hugging Face layout, when the run has ended

torch's async_save writes a checkpoint: the run waits while the shards are copied to CPU memory, and
goes on while they go to disk. The files grow in a directory called step-000010.partial, which is
renamed after the last byte of the last rank. So a directory named step-000010 is whole, whatever
happened. Everything random in a run is keyed by the step (rollout.py), so weights, optimiser,
counters and two file lengths are the whole state, for any number of ranks.

A checkpoint may come from somebody else, so nothing in it is executed: its metadata is read with a
list of allowed classes, and links in the directory of a run are refused.

    python -m runtime.checkpoint RUN OUT      # writes Hugging Face safetensors
"""

import fcntl
import json
import os
import pickle
import shutil
import socket
import sys
import threading
import warnings
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tyro
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from model import Config, Model, read_json
from runtime.flags import flag_name, parse
from runtime.ledger import LINES, Ledger, Progress
from runtime.parallel import locate, make_mesh, save, shard, sync

# ---- Reading what may come from somebody else ----------------------------------------------------

# Everything that torch writes into the .metadata of a checkpoint of tensors and numbers, by module.
ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "bfloat16", "float16", "int64"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}


class MetadataUnpickler(pickle.Unpickler):
    """Unpickles only the classes of ALLOWED, which hold data and run no code that a file names."""

    def find_class(self, module: str, name: str):
        if name not in ALLOWED.get(module, ()):
            raise ValueError(
                f"the checkpoint's .metadata asks for {module}.{name}, "
                "which no checkpoint of a run needs: the file may have been made to run code; "
                "take a checkpoint from a source that you trust"
            )
        return super().find_class(module, name)


class SafeReader(dcp.FileSystemReader):
    """Reads a checkpoint without executing anything in it."""

    def read_metadata(self, *_, **__):
        path = Path(self.path) / ".metadata"
        with open(path, "rb") as file:
            try:
                metadata = MetadataUnpickler(file).load()
            except (pickle.UnpicklingError, EOFError, AttributeError, IndexError) as error:
                raise ValueError(f"{path}: not the metadata of a checkpoint: {error}") from error
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        for info in metadata.storage_data.values():
            if Path(info.relative_path).name != info.relative_path:
                raise ValueError(
                    f"{path}: names {info.relative_path}, which lies outside the checkpoint"
                )
        return metadata


class SafePlanner(dcp.DefaultLoadPlanner):
    """Reads entries that are no tensors, such as a learning rate, as tensors and numbers only."""

    def load_bytes(self, read_item, value) -> None:
        torch.load(value, weights_only=True)  # raises for anything else
        value.seek(0)
        super().load_bytes(read_item, value)


def load_tensors(tensors: dict, checkpoint: Path, alone: bool = False) -> None:
    """Fill the tensors from a checkpoint, in place (a collective, unless `alone`)."""
    refuse_links(checkpoint, *checkpoint.iterdir())
    SafeReader(checkpoint).read_metadata()  # before torch does, which would wrap its errors
    reader = SafeReader(checkpoint)
    with warnings.catch_warnings():
        # One process without a group is meant.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            dcp.load(tensors, storage_reader=reader, planner=SafePlanner(), no_dist=alone)
        except CheckpointException as error:
            raise ValueError(f"{checkpoint} could not be read: {first_cause(error)}") from error


def first_cause(error: CheckpointException) -> BaseException:
    """The error of the first rank that failed."""
    cause, _ = next(iter(error.failures.values()))
    return cause


def refuse_links(*paths: Path) -> None:
    """ValueError for a link, a pipe or a device among the files of a run.

    A run that writes through a link would change files elsewhere; a pipe or device would block.
    """
    for path in paths:
        if path.is_symlink():
            raise ValueError(
                f"{path} is a symbolic link, and a run writes only to files of its own; "
                "remove the link"
            )
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is neither a file nor a directory; remove it")


def read_state(checkpoint: Path) -> dict:
    """state.json of a checkpoint: progress, bytes, flags, world, dtype, scheduler, data."""
    return read_json(checkpoint / "state.json")


def read_flags(run: str | Path) -> dict:
    """flags.json of a run."""
    path = Path(run) / "flags.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--resume {run}: there is no run, since {path} does not exist; "
            "give the directory of a run, or auto"
        )
    return read_json(path)


# ---- Writing checkpoints -------------------------------------------------------------------------


def whole_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step-[0-9]*[0-9]")
    return sorted(path for path in found if (path / "state.json").is_file())


class Checkpoints:
    """Writes the checkpoints of a run, one at a time.

    The `keep` most recent ones stay, and the one of the best pass@1. data: name -> digest, of the
    problems that a resumed run must have too.
    """

    def __init__(self, run: Path, keep: int, ledger: Ledger, data: dict[str, str]):
        self.run = run
        self.keep = keep
        self.ledger = ledger
        self.clock = ledger.clock
        self.data = data
        self.saved_step = ledger.progress.step  # of the newest checkpoint, whole or being written
        self.thread = None
        # The writing thread needs a group of its own, so that its collectives do not mix with those
        # of the loop.
        self.group = dist.new_group(backend="gloo")

    def save(self, model: Model, optimizer: torch.optim.Optimizer, scheduler) -> None:
        """Begin a checkpoint of the last whole step, unless there is one already (a collective).

        Returns as soon as weights may change again. A failure to write is found in clock.error.
        """
        step = self.ledger.progress.step
        if self.saved_step == step:
            return
        with self.clock.phase("checkpoint"):
            self.wait()
            self.saved_step = step
            target = self.run / "checkpoints" / f"step-{step:06d}"
            partial = target.with_suffix(".partial")
            weights, moments = get_state_dict(model, optimizer)
            tensors = {"model": weights, "optimizer": moments}
            written = dcp.async_save(tensors, checkpoint_id=partial, process_group=self.group)
            state = self.ledger.state() | {"scheduler": scheduler.state_dict(), "data": self.data}
            arguments = (written, state, partial, target)
            self.thread = threading.Thread(target=self._finish, args=arguments)
            self.thread.start()

    def close(self, model: Model, optimizer: torch.optim.Optimizer, scheduler) -> None:
        """Save the last whole step, unless the disk is full, and wait for it (a collective)."""
        if self.clock.stop != "disk":
            self.save(model, optimizer, scheduler)
        with self.clock.phase("checkpoint"):
            self.wait()

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()

    def _finish(self, written, state: dict, partial: Path, target: Path) -> None:
        try:
            written.result()
            if dist.get_rank() == 0:
                self._make_whole(state, partial, target)
        except CheckpointException as error:  # not a subclass of Exception
            self._note_failure(target, first_cause(error))
        except Exception as error:
            self._note_failure(target, error)

    def _make_whole(self, state: dict, partial: Path, target: Path) -> None:
        (partial / "state.json").write_text(json.dumps(state))
        sync(partial / "state.json")
        for name in LINES:
            sync(self.run / name)
        sync(partial)
        if target.exists():  # damaged, so that the resumed run passed it over
            shutil.rmtree(target)
        partial.rename(target)
        sync(target.parent)
        self._prune()

    def _note_failure(self, target: Path, cause: BaseException) -> None:
        full = "unexpected pos" in str(cause)  # all that torch's writer says of a full disk
        reason = "the disk or a quota is full: " if full else ""
        free = shutil.disk_usage(self.run).free / 1e9
        self.clock.error = (
            f"{target} could not be written ({free:.1f} GB are free there): {reason}{cause}"
        )

    def _prune(self) -> None:
        kept = whole_checkpoints(self.run)
        scores = {}
        for path in kept:
            progress = read_state(path)["progress"]
            if progress["evaluated_step"] == progress["step"]:
                scores[path] = progress["pass1"]
        best = max(scores, key=lambda path: (scores[path], path), default=None)
        for path in kept[: -self.keep]:
            if path != best:
                half_deleted = path.rename(path.with_suffix(".partial"))  # must not look whole
                shutil.rmtree(half_deleted)


def restore(
    checkpoint: Path, model: Model, optimizer: torch.optim.Optimizer, scheduler, progress: Progress
) -> None:
    """Fill all of them from a checkpoint, which any number of ranks may have written (a
    collective)."""
    weights, moments = get_state_dict(model, optimizer)
    load_tensors({"model": weights, "optimizer": moments}, checkpoint)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    state = read_state(checkpoint)
    scheduler.load_state_dict(state["scheduler"])
    vars(progress).update(state["progress"])


# ---- Opening a run -------------------------------------------------------------------------------


@dataclass
class Opened:
    """A run's directory, ready to be written to."""

    run: Path
    checkpoint: Path | None  # to go on from
    notes: list[str]  # for people: what was dropped, passed over or begun again
    fresh: bool  # whether the directory was made just now
    lock: object = None  # holds the run's lock as long as it lives (rank 0)


@contextmanager
def discarded_on_error(opened: Opened):
    """Remove a directory that was made just now if the run cannot start.

    So the corrected command finds its place free.
    """
    try:
        yield
    except Exception:
        if opened.fresh and dist.get_rank() == 0:
            shutil.rmtree(opened.run, ignore_errors=True)
        raise


def open_run(flags: dict, free: set[str], fresh: Path, data: dict[str, str]) -> Opened:
    """The directory of a run: a new one, or one as it was at its newest checkpoint (a collective).

    flags: the run's, among them `out` and `resume`. free: names of flags that may differ from those
    of the resumed run. fresh: the directory of a new run. data: name -> digest, of the problems.
    All ranks raise what rank 0 raises: FileExistsError, FileNotFoundError, BlockingIOError
    (locked), ValueError.
    """
    answer = [None]  # of rank 0
    lock = None
    if dist.get_rank() == 0:
        try:
            answer[0], lock = open_alone(flags, free, fresh, data)
        except (OSError, ValueError) as error:
            answer[0] = error
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    answer[0].lock = lock
    return answer[0]


def open_alone(flags: dict, free: set[str], fresh: Path, data: dict[str, str]):
    """What open_run does on rank 0 -> (Opened, the lock, which cannot be sent to other ranks)."""
    # A worker that torchrun has started again resumes, whatever the flag says.
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    resume = flags["resume"] or ("auto" if restarted else "")
    run = find_run(flags, free, fresh, resume)
    others = any(fresh.parent.glob("*/flags.json"))
    is_run = (run / "flags.json").exists()
    if run.exists() and not (resume and is_run):
        way = f"to go on with it: --resume {run}; else " if is_run else ""
        raise FileExistsError(
            f"{run} exists already and is not overwritten; {way}give another --out, or remove it"
        )
    refuse_links(run, *run.glob("*"), *run.glob("checkpoints/*"))
    run.mkdir(parents=True, exist_ok=True)
    lock = take_lock(run)
    checkpoint, notes = prepare(run, flags, free, data)
    if resume == "auto" and run == fresh and others:
        notes.append("no unfinished run with these flags: a new one begins")
    return Opened(run, checkpoint, notes, fresh=not is_run), lock


def differing(flags: dict, run: Path, free: set[str]) -> dict:
    """name: (here, there) of the flags that are not those of the run in the directory."""
    there = read_flags(run)
    changed = {}
    for name, here in flags.items():
        if name not in free and here != there.get(name):
            changed[name] = (here, there.get(name))
    return changed


def say_differing(changed: dict) -> str:
    return ", ".join(
        f"{flag_name(name)} {here} (there {there})" for name, (here, there) in changed.items()
    )


def find_run(flags: dict, free: set[str], fresh: Path, resume: str) -> Path:
    """The directory that --resume and --out mean.

    auto without --out finds the newest unfinished run with the same flags.
    """
    if resume not in ("", "auto"):
        return Path(resume)
    if flags["out"]:
        return Path(flags["out"])
    if not resume:
        return fresh
    stored = list(fresh.parent.glob("*/flags.json"))
    stored.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in stored:
        run = path.parent
        unfinished = not (run / "final").exists()
        if unfinished and not differing(flags, run, free - {"steps"}):
            return run
    return fresh


def take_lock(run: Path):
    """Hold RUN/lock until this process ends, however it ends: the kernel releases it."""
    lock = open(run / "lock", "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip()
        raise BlockingIOError(
            f"{run} is in use by {owner}; wait for it, or give another --out"
        ) from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def prepare(
    run: Path, flags: dict, free: set[str], data: dict[str, str]
) -> tuple[Path | None, list[str]]:
    """Make a directory new, or as it was at its newest readable checkpoint.

    Returns the checkpoint, or None for a run at its beginning, and what was done.
    """
    resumed = (run / "flags.json").exists()
    if resumed and (changed := differing(flags, run, free)):
        raise ValueError(
            f"{run} was made with other flags: {say_differing(changed)}; "
            "a resumed run keeps its flags. Repeat them, or begin a new run"
        )
    for partial in (run / "checkpoints").glob("step-*.partial"):
        shutil.rmtree(partial)
    newest, state, notes = newest_readable(run)
    if newest is None and whole_checkpoints(run):
        raise ValueError(
            f"none of the checkpoints of {run} can be read: {'; '.join(notes)}. "
            "Put their files back, or begin a new run with another --out"
        )
    if newest is not None:
        check_same_data(data, state["data"], newest)
    dropped = truncate_lines(run, newest, state["bytes"])
    if resumed and newest is None:
        lost = f"; {dropped} logged steps are dropped" if dropped else ""
        notes.append(f"{run} holds no whole checkpoint, so it begins again at step 0{lost}")
    elif dropped:
        notes.append(f"{dropped} logged steps after {newest.name} are dropped and done again")
    stored = flags | {"world": dist.get_world_size()}
    (run / "flags.new").write_text(json.dumps(stored, indent=2) + "\n")
    (run / "flags.new").replace(run / "flags.json")
    return newest, notes


def check_same_data(data: dict[str, str], before: dict[str, str], checkpoint: Path) -> None:
    """ValueError unless the problems have the digests that they had before."""
    others = [name for name, digest in data.items() if before.get(name) != digest]
    if others:
        raise ValueError(
            f"{', '.join(others)}: the problems are others than when {checkpoint} was written. "
            "Put the data back as they were, or begin a new run with another --out"
        )


def truncate_lines(run: Path, checkpoint: Path | None, lengths: dict[str, int]) -> int:
    """Truncate each file of LINES to its length; returns how many logged steps that drops."""
    dropped = 0
    for name in LINES:
        with open(run / name, "a+b") as lines:
            size = lines.seek(0, os.SEEK_END)
            if size < lengths[name]:
                raise ValueError(
                    f"{run / name} holds {size} bytes, but held {lengths[name]} "
                    f"when {checkpoint} was written; put the whole file back"
                )
            lines.seek(lengths[name])
            dropped += lines.read().count(b'"kind": "train"')  # only metrics.jsonl has these
            lines.truncate(lengths[name])
    return dropped


def newest_readable(run: Path) -> tuple[Path | None, dict, list[str]]:
    """-> (the newest checkpoint that can be read, its state, notes on what was passed over).

    Without such a checkpoint: None, and the state of an empty run.
    """
    notes = []
    known = whole_checkpoints(run)
    for path in sorted((run / "checkpoints").glob("*")):
        if path not in known:
            notes.append(f"{path} is not a checkpoint and is ignored")
    for checkpoint in reversed(known):
        try:
            return checkpoint, check_readable(checkpoint), notes
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{checkpoint.name} is damaged and passed over: {error}")
    return None, {"bytes": dict.fromkeys(LINES, 0)}, notes


def check_readable(checkpoint: Path) -> dict:
    """The state of a checkpoint; OSError, ValueError, KeyError or TypeError if it is damaged."""
    state = read_state(checkpoint)
    Progress(**state["progress"])
    lengths = [state["bytes"][name] for name in LINES]
    if not isinstance(state["data"], dict) or not all(type(n) is int for n in lengths):
        raise ValueError("state.json is not as a run writes it")
    ends = defaultdict(int)  # by file, the last byte that an entry needs
    for info in SafeReader(checkpoint).read_metadata().storage_data.values():
        ends[info.relative_path] = max(ends[info.relative_path], info.offset + info.length)
    for name, end in ends.items():
        if (checkpoint / name).stat().st_size < end:
            raise ValueError(f"{name} is shorter than it was")
    return state


# ---- Export --------------------------------------------------------------------------------------


def export(path: Path, target: Path, dtype: torch.dtype | None = None) -> Path:
    """Write a checkpoint, or the newest of a run, in Hugging Face layout; returns the checkpoint.

    dtype None: the one in which the run computed. Under torchrun each process holds only its share
    of the model. ValueError for a model in Hugging Face layout, FileNotFoundError if there is no
    whole checkpoint, FileExistsError if the target exists.
    """
    if not (path / "state.json").exists():
        if (path / "config.json").exists():
            raise ValueError(f"{path} is in Hugging Face layout already; use it as it is")
        known = whole_checkpoints(path)
        if not known:
            raise FileNotFoundError(
                f"{path}: neither a checkpoint nor a run with a whole one in it"
            )
        path = known[-1]
    if target.exists():
        raise FileExistsError(
            f"{target} exists already and is not overwritten; give another directory"
        )
    state = read_state(path)
    dtype = dtype or getattr(torch, state["dtype"])
    source = locate(state["flags"]["model"])
    with torch.device("meta"):
        model = Model(Config.read(source)).to(dtype)
    alone = not dist.is_initialized()
    if not alone:
        model = shard(model, make_mesh("cpu"), dtype)
    model = model.to_empty(device="cpu")
    weights = {name: p.data for name, p in model.named_parameters()}
    load_tensors({"model": weights}, path, alone)
    save(model, source, target, dtype)
    return path


@dataclass
class Export:
    # a run, of which the newest checkpoint is taken, or one of its checkpoints
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    # the new directory
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    # number type of the weights; the one in which the run computed if not given
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""


def main() -> None:
    about = "Turn a checkpoint of a run into Hugging Face safetensors."
    flags = parse(Export, sys.argv[1:], about, prog="python -m runtime.checkpoint")
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    dtype = getattr(torch, flags.dtype) if flags.dtype else None
    try:
        path = export(flags.source, flags.target, dtype)
    except (OSError, ValueError) as error:
        raise SystemExit(f"runtime.checkpoint: {error}") from error
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"{path} -> {flags.target}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
