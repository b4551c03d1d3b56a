"""Bookkeeping of a run: the time of its phases, the lines it writes, and how it ends early.

    MFU of a phase = its FLOPs / (its seconds x ranks x peak FLOP/s of a GPU)
    C = 6 N x tokens of prompts and completions

C is the study's compute. C leaves out generation, the log-probs under pi_old and the reference, and
evaluation; the field `flops` has them by phase. A phase lasts as long as its slowest rank, since
all ranks end a phase together.

A run ends early if a rank is signalled, or cannot write its part of a checkpoint. A rank that left
alone would block the others in their next collective. So a rank only notes what happened to it
(Signals.requested, Clock.error), and all ranks follow Clock.stop, on which they agree at the end of
every phase, and before every micro-batch as long as the step has not changed the weights:

    ""        Nothing happened.
    "signal"  A rank was signalled. A step that has not changed the weights is given up, and so is
              an evaluation: all ranks raise Interrupted. A step that has changed the weights is
              finished, and is the last one. A resumed run does again what was given up.
    "disk"    A rank could not write its part of a checkpoint. The step is finished, and is the
              last one.
"""

import faulthandler
import json
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from model import Config
from rollout import Completion, Interrupted
from runtime.display import printable
from runtime.flags import ROOT
from runtime.plan import peak_flops, rollout_flops, sequence_flops

# A run appends to these files, and a resumed run truncates them to its checkpoint.
LINES = ("metrics.jsonl", "samples.jsonl")
# Seconds between a signal to torchrun and its kill of the workers; --shutdown-timeout changes them.
KILLED_AFTER = 30


class Stopped(Exception):
    """The run cannot go on, for a reason that the message explains."""


@dataclass
class Progress:
    """What a run has done so far: the counters that every checkpoint holds."""

    step: int = 0  # the last whole step
    evaluated_step: int = -1  # the last step whose weights were evaluated
    pass1: float | None = None  # pass@1 of that evaluation, on the first evaluation set
    first_pass1: float | None = None  # pass@1 before the first step
    D: int = 0  # prompts drawn, and so the place in the curriculum where the next step goes on
    tokens: int = 0  # of prompts and completions
    failed_steps: int = 0  # steps in a row without a finite gradient
    idle_steps: int = 0  # steps in a row with nothing to learn from: equal rewards, or all masked
    gpu_hours: float = 0.0  # wall time x ranks


class Signals:
    """While it is open, SIGTERM or SIGINT sets `requested`; a second one ends the process at once.

    A thread of its own listens, since Python runs signal handlers in the main thread only, which
    may be waiting in a collective. Signals within one second count once: Ctrl-C may come from the
    terminal and from torchrun as well.
    """

    KINDS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.requested = False
        # What happens to the work in progress after a signal; Clock keeps this true.
        self.work = "the work in progress is given up"

    def is_requested(self) -> bool:
        return self.requested

    def __enter__(self):
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.before = [signal.signal(kind, lambda *_: None) for kind in self.KINDS]
        signal.set_wakeup_fd(self.writer)
        threading.Thread(target=self._listen, daemon=True).start()
        # Threads and processes started from here on leave signals to the listener. torchrun signals
        # every process of a worker, and a grader that dies in the middle of an answer would change
        # a reward.
        signal.pthread_sigmask(signal.SIG_BLOCK, self.KINDS)
        return self

    def __exit__(self, *_):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.KINDS)
        signal.set_wakeup_fd(-1)
        for kind, handler in zip(self.KINDS, self.before, strict=True):
            signal.signal(kind, handler)
        os.close(self.writer)

    def _listen(self) -> None:
        while number := os.read(self.reader, 1):
            now = time.monotonic()
            if self.requested:
                if now - self.first > 1:
                    os._exit(128 + number[0])  # whatever the main thread is waiting for
                continue
            self.first = now
            self.requested = True
            if int(os.environ.get("LOCAL_RANK", 0)) == 0:
                self._say(signal.Signals(number[0]).name)
        os.close(self.reader)

    def _say(self, name: str) -> None:
        message = f"{name}: {self.work}.\nA second signal ends the run at once."
        if "TORCHELASTIC_RUN_ID" in os.environ:
            message += f"\ntorchrun kills its workers after {KILLED_AFTER} s (--shutdown-timeout)."
        print(message, file=sys.stderr, flush=True)


class Clock:
    """Times the phases of a run; at the end of each one all ranks agree whether the run is to end.

    stop: why the run is to end, the same on all ranks after every phase (see above).
    error: why this rank could not write its part of a checkpoint. minutes: that a phase may last.
    progress: of the run, for messages.
    """

    def __init__(
        self, device: torch.device, signals: Signals, minutes: float, progress: Progress
    ):
        self.device = device
        self.signals = signals
        self.minutes = minutes
        self.rank = dist.get_rank()
        self.progress = progress
        self.stop = ""
        self.error = ""
        self.committed = False  # the step has changed the weights, so it will be finished
        self.seconds = defaultdict(float)  # by phase, since the last line

    @contextmanager
    def phase(self, name: str):
        """Time a phase that all ranks go through. At its end they agree whether the run is to end.

        A phase that lasts longer than `minutes` ends the process with the stacks of its threads.
        """
        alarm = threading.Timer(60 * self.minutes, self._late, (name,))
        alarm.daemon = True
        alarm.start()
        start = time.perf_counter()
        try:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self._agree()
        except Interrupted:
            self.stop = "signal"
            raise
        except Exception as error:
            if name != "loading":  # its errors are the user's to mend, and say all that is needed
                error.add_note(
                    f"rank {self.rank}, in the phase {name}, after {self.progress.step} whole steps"
                )
            raise
        finally:
            alarm.cancel()
            self.seconds[name] += time.perf_counter() - start

    def take_seconds(self) -> dict[str, float]:
        """The seconds of the phases since the last call."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken

    def _agree(self) -> None:
        """Set `stop` to the gravest of what happened to the ranks (a collective)."""
        here = torch.tensor(2 if self.error else int(self.signals.requested))
        dist.all_reduce(here, dist.ReduceOp.MAX)
        self.stop = ("", "signal", "disk")[here]

    def begin(self, work: str) -> None:
        """Begin work that a signal gives up. work: what a message calls it."""
        self.committed = False
        saved = ", then a checkpoint is written" if self.progress.step else ""
        self.signals.work = f"{work} is given up{saved}"

    def give_up_if_asked(self) -> None:
        """Raise Interrupted on all ranks if any was signalled, unless the step has changed the
        weights (a collective)."""
        if self.committed:
            return
        self._agree()
        if self.stop == "signal":
            raise Interrupted

    def commit(self) -> None:
        """From here on the step changes the weights, so a signal does not give it up any more."""
        self.committed = True
        self.signals.work = (
            "the step changes the weights now, so it will be finished, "
            "then a checkpoint is written"
        )

    def _late(self, name: str) -> None:
        message = (
            f"grpo.py: rank {self.rank} is in the phase {name}, "
            f"after {self.progress.step} whole steps, since {self.minutes:g} minutes. "
            "If the phase only needs longer, raise --timeout. "
            "A rank in another place than the others blocks them; this rank is here:\n"
        )
        # One write says all, so that the stacks of several ranks do not mix.
        with tempfile.TemporaryFile() as dump:
            faulthandler.dump_traceback(dump, all_threads=True)
            dump.seek(0)
            os.write(2, message.encode() + dump.read())
        os._exit(1)


class Ledger:
    """Counts the steps of a run, and writes a line for each step and each evaluation.

    clock: of the run, whose seconds the lines hold. flags: the run's, as a dict, for the
    checkpoints and the loggers.
    """

    def __init__(self, out: Path, config: Config, clock: Clock, flags: dict):
        self.out = out
        self.config = config
        self.clock = clock
        self.progress = clock.progress
        self.flags = flags
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.peak = peak_flops(clock.device)  # FLOP/s of one device, 0 if unknown
        self.preempted = 0  # the sampler's count at the last line
        self.tick = time.perf_counter()
        self.log = open_log(flags["log"], out, flags) if self.rank == 0 else None

    def trained(
        self, completions: list[Completion], drawn: list[Completion], stats: dict, preempted: int
    ) -> dict:
        """Count a step as whole; write and return its line.

        drawn: all completions of the step, trained on or not; D, C and tokens count them all.
        stats: what train_step returned. preempted: the sampler's count.
        """
        tokens = count_tokens(drawn)
        p = self.progress
        p.step += 1
        p.D += len(drawn) // self.flags["group"]
        p.tokens += tokens
        p.failed_steps = p.failed_steps + 1 if stats["grad_norm"] is None else 0
        self.count_idle(stats)

        line = {"kind": "train", **self._counters(), **stats, "tokens": tokens}
        line["verdicts"] = dict(Counter(sorted(c.verdict.verdict for c in completions)))
        forward = sequence_flops(self.config, completions)
        flops = {"generation": rollout_flops(self.config, drawn)}
        processed = {"generation": sum(len(c.ids) for c in drawn)}
        # In units of a forward pass, a backward pass is 2 and recomputing activations is 1.
        passes = {"old": 1, "reference": 1, "train": 4 if self.flags["recompute"] else 3}
        for phase, count in passes.items():
            if phase in self.clock.seconds:
                flops[phase] = count * forward
                processed[phase] = count_tokens(completions)
        line |= self._rates(flops, processed, preempted)
        self._write("metrics.jsonl", [line])
        return line

    def count_idle(self, stats: dict) -> None:
        """Count the steps in a row that had nothing to learn from."""
        idle = stats["equal_groups"] == 1 or stats["in_loss"] == 0
        self.progress.idle_steps = self.progress.idle_steps + 1 if idle else 0

    def evaluated(
        self, result: dict, rows: list[dict], completions: list[Completion], preempted: int
    ) -> None:
        """Write the lines of an evaluation on one set; the first set of a step gives pass1."""
        p = self.progress
        if p.evaluated_step != p.step:
            p.evaluated_step = p.step
            p.pass1 = result["pass1"]
            if p.step == 0:
                p.first_pass1 = p.pass1
        flops = {"evaluation": rollout_flops(self.config, completions)}
        processed = {"evaluation": sum(len(c.ids) for c in completions)}
        rates = self._rates(flops, processed, preempted)
        self._write("metrics.jsonl", [{"kind": "eval", **self._counters(), **result, **rates}])
        shown = rows[: 5 * result["n"]]
        self._write("samples.jsonl", [{"step": p.step, **row} for row in shown])

    def _counters(self) -> dict:
        p = self.progress
        return {
            "step": p.step,
            "D": p.D,
            "C": 6 * self.config.N * p.tokens,
            "N": self.config.N,
            "N_total": self.config.N_total,
        }

    def _rates(self, flops: dict, processed: dict, preempted: int) -> dict:
        """What was done since the last line and how fast, by phase; gpu_hours are the whole run's.

        processed: tokens.
        """
        seconds = self.clock.take_seconds()
        now = time.perf_counter()
        self.progress.gpu_hours += (now - self.tick) / 3600 * self.world
        self.tick = now
        since_last = preempted - self.preempted
        self.preempted = preempted
        mfu = {}
        if self.peak:
            mfu = {name: n / (seconds[name] * self.world * self.peak) for name, n in flops.items()}
        return {
            "preempted": since_last,
            "flops": flops,
            "seconds": seconds,
            "gpu_hours": self.progress.gpu_hours,
            "mfu": mfu,
            "tokens_per_second": {name: n / seconds[name] for name, n in processed.items()},
        }

    def _write(self, file: str, rows: list[dict]) -> None:
        if self.rank != 0:
            return
        try:
            with open(self.out / file, "a") as lines:
                lines.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as error:
            raise Stopped(
                f"{self.out / file} could not be written: {error}; the checkpoints are whole. "
                f"When there is room: --resume {self.out}"
            ) from error
        if self.log and file == "metrics.jsonl":
            for row in rows:
                self.log(row)

    def state(self) -> dict:
        """What a checkpoint holds beside tensors, in JSON's types."""
        return {
            "progress": asdict(self.progress),
            "bytes": {name: (self.out / name).stat().st_size for name in LINES},
            "flags": self.flags,
            "world": self.world,
            "dtype": "bfloat16" if self.clock.device.type == "cuda" else "float32",
        }


def count_tokens(completions: list[Completion]) -> int:
    """Tokens of the completions and their prompts."""
    return sum(len(c.prompt) + len(c.ids) for c in completions)


def open_log(kind: str, out: Path, flags: dict):
    """A function that sends a row of metrics.jsonl to Weights & Biases or TensorBoard, or None.

    kind: wandb, tensorboard, or "" for none.
    """
    if kind == "wandb":
        import wandb

        run = wandb.init(
            project="grpo-ladder", name=out.name, id=out.name, resume="allow", config=flags
        )
        return lambda row: run.log(numbers(row), step=row["step"])
    if kind == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(out / "tensorboard")

        def write(row: dict) -> None:
            for name, value in numbers(row).items():
                writer.add_scalar(name, value, row["step"])
            writer.flush()

        return write
    return None


def numbers(row: dict) -> dict[str, float]:
    """The numbers of a row as kind/name, those of a nested field as kind/name/key."""
    found = {}
    for name, value in row.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for key, number in parts:
            if isinstance(number, int | float):
                found["/".join(filter(None, (row["kind"], name, key)))] = number
    return found


def tell_torchrun(message: str) -> None:
    """Leave the message where torchrun looks, so that its own report ends with the message."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        found = {"message": message, "extraInfo": {"timestamp": int(time.time())}}
        Path(path).write_text(json.dumps({"message": found}))


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Python's warnings.showwarning, except that this repository's own warnings are one line."""
    if Path(filename).is_relative_to(ROOT):
        print(f"warning: {message}", file=file or sys.stderr, flush=True)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr, flush=True)


@record
def explain(run) -> None:
    """Call run(). An error that a user can mend ends in one line and exit code 2.

    Of any other error torchrun shows the traceback.
    """
    warnings.showwarning = show_warning
    try:
        run()
    except SystemExit as ended:  # tyro has printed what is wrong with the flags
        if ended.code:
            tell_torchrun("wrong flags: the message above the traceback says which")
        raise
    except (ValueError, OSError, ImportError, Stopped) as error:
        if hasattr(error, "__notes__"):  # raised in the middle of a phase: a bug
            raise
        # All ranks of a node tend to fail alike, so the first one speaks. A rank still alive after
        # two seconds is alone.
        if int(os.environ.get("LOCAL_RANK", 0)):
            time.sleep(2)
        message = printable(f"{Path(sys.argv[0]).name}: {error}")
        print(message, file=sys.stderr, flush=True)
        tell_torchrun(message)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
