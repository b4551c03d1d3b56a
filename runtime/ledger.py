"""The books of a run: time and FLOPs by phase, what was written where, and who wants it to end.

    MFU of a phase = its FLOPs / (its seconds x ranks x peak FLOP/s of a GPU),    C = 6 N x tokens of prompts and responses

C is the study's compute, which leaves out generation, the old and reference log-probs, and evaluation; `flops` has them. Both
count the same work on any hardware. Time is wall time of the slowest rank, since a phase ends for all of them together.

A step is cut into phases, and at the end of each the ranks agree whether to go on. So a signal to any one rank ends all of
them at the same place, and no rank is left alone in a collective.
"""

import dataclasses
import faulthandler
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from data import Problem
from model import Config
from rollout import Completion, row
from runtime.plan import peak_flops

HARMLESS = ("generation", "old", "reference")  # phases that leave the weights as they were: a step can be given up after them


KEPT = ("step", "measured", "pass1", "D", "tokens", "failed", "hours")  # of a Ledger, in every checkpoint


class Stopped(Exception):
    """The run cannot go on, for a reason that its message explains."""


class Interrupted(Exception):
    """The run was asked to end, at a place where its last whole step is its state."""


class Signals:
    """While it is open, SIGTERM and SIGINT set `count`; the second one ends the process at once.

    A thread of its own listens, since Python runs handlers in the main thread only, and that may be waiting in a collective.
    Within a second two signals are one: Ctrl-C may come from the terminal and from torchrun as well.
    """

    KINDS = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self):
        self.count, self.last = 0, -1.0
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.before = [signal.signal(kind, lambda *_: None) for kind in self.KINDS]
        signal.set_wakeup_fd(self.writer)
        threading.Thread(target=self._listen, daemon=True).start()
        # Threads and processes started from here on leave signals to the listener: torchrun sends them to every process of
        # a worker, and a grader that dies in the middle of an answer would change a reward.
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
            name, now = signal.Signals(number[0]).name, time.monotonic()
            if self.count and now - self.last > 1:
                os._exit(128 + number[0])  # whatever the main thread is waiting for
            if not self.count and int(os.environ.get("LOCAL_RANK", 0)) == 0:
                print(f"{name}: the run ends with this phase and a checkpoint; once more ends it at once", file=sys.stderr,
                      flush=True)
            self.count, self.last = 1, self.last if self.count else now
        os.close(self.reader)


class Ledger:
    """Counters of a run, which its checkpoints hold, the clock of its phases, and the lines it writes.

    f: grpo.py's Flags. After a phase `stop` says on all ranks alike why the run is to end: "", "signal" or "checkpoint", of
    which `error` has the message.
    """

    def __init__(self, out: Path, config: Config, device: torch.device, f, signals: Signals):
        self.out, self.config, self.device, self.f, self.signals = out, config, device, f, signals
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.peak = f.peak_tflops * 1e12 or peak_flops(device)  # FLOP/s of one device, 0 if unknown
        self.seconds, self.flops = defaultdict(float), defaultdict(int)  # by phase, since the last line
        self.stop, self.error, self.set_back, self.spoken, self.tick = "", "", 0, False, time.perf_counter()
        self.saved = 0  # the step of the newest checkpoint, whole or being written
        # `step` is the last whole one, `measured` the last evaluated one and pass1 what that gave; `failed` counts steps. D is
        # the prompts drawn, and so the place in the curriculum where the next step goes on.
        self.step, self.measured, self.pass1, self.D, self.tokens, self.failed, self.hours = 0, -1, None, 0, 0, 0, 0.0
        if f.wandb and self.rank == 0:
            import wandb

            self.wandb = wandb.init(project=f.wandb, name=out.name, id=out.name, resume="allow", config=dataclasses.asdict(f))

    def state(self) -> dict:
        """What a checkpoint holds beside tensors, in JSON's types."""
        size = {name: (self.out / name).stat().st_size for name in ("metrics.jsonl", "samples.jsonl")}
        dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        return {name: getattr(self, name) for name in KEPT} | {"bytes": size, "flags": dataclasses.asdict(self.f),
                                                               "world": self.world, "dtype": dtype}

    def restore(self, state: dict) -> None:
        for name in KEPT:
            setattr(self, name, state[name])
        self.saved = self.step

    @contextmanager
    def phase(self, name: str):
        """Times a phase that all ranks go through, ends it with an agreement, and the process if it lasts too long."""
        limit = threading.Timer(60 * self.f.timeout, self._late, (name,))
        limit.daemon = True
        limit.start()
        start = time.perf_counter()
        try:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self._agree()
        except Exception as error:
            if name != "loading":  # whose errors are the user's to mend, and say all that is needed
                error.add_note(f"rank {self.rank}, in the phase {name}, after {self.step} whole steps")
            raise
        finally:
            limit.cancel()
        self.seconds[name] += time.perf_counter() - start
        if self.stop and name in HARMLESS:
            raise Interrupted

    def _agree(self) -> None:
        """Sets `stop` on all ranks if any of them was signalled or could not write its part of a checkpoint."""
        wish = torch.tensor(2 if self.error else 1 if self.signals.count else 0)
        dist.all_reduce(wish, dist.ReduceOp.MAX)
        self.stop = ("", "signal", "checkpoint")[wish]

    def _late(self, name: str) -> None:
        said = (f"grpo.py: rank {self.rank} is in the phase {name}, after {self.step} whole steps, since {self.f.timeout:g} "
                "minutes. If it only needs longer, raise --timeout. A rank that stands elsewhere than the others holds them "
                "up; this one stands here:\n")
        with tempfile.TemporaryFile() as dump:  # so that one write says all, and the ranks' stacks do not run into each other
            faulthandler.dump_traceback(dump, all_threads=True)
            dump.seek(0)
            os.write(2, said.encode() + dump.read())
        os._exit(1)

    def evaluated(self, result: dict, done: list[Completion], test: list[Problem], set_back: int) -> None:
        """Writes the lines of an evaluation, one source of a step's; pass1 keeps the first one's. set_back: the sampler's."""
        if self.measured != self.step:
            self.measured, self.pass1 = self.step, result["pass1"]
        self.flops["evaluation"] = sampling_flops(self.config, done)
        self._log("metrics.jsonl", {"kind": "eval", **self._progress(), **result, **self._rates(done, done, set_back)})
        self._log("samples.jsonl", *({"step": self.step, **row(c, test[c.problem], result["source"])}
                                     for c in done[: 5 * result["n"]]))

    def trained(self, step: int, done: list[Completion], drawn: list[Completion], stats: dict, set_back: int) -> dict:
        """Counts a step as whole, and writes and returns its line. D and C count all that was drawn for it, done or not."""
        forward, tokens = sequence_flops(self.config, done), sum(len(c.prompt) + len(c.ids) for c in drawn)
        self.flops["generation"] = sampling_flops(self.config, drawn)
        for name, times in {"old": 1, "reference": 1, "train": 4 if self.f.recompute else 3}.items():
            self.flops[name] = times * forward if name in self.seconds else 0
        self.step, self.D, self.tokens = step, self.D + len(drawn) // self.f.group, self.tokens + tokens
        self.failed = self.failed + 1 if stats["skipped_updates"] == self.f.updates else 0
        verdicts = Counter(sorted(c.verdict.verdict for c in done))
        line = {"kind": "train", **self._progress(), **stats, "tokens": tokens, "verdicts": verdicts,
                **self._rates(done, drawn, set_back)}
        self._log("metrics.jsonl", line)
        return line

    def _progress(self) -> dict:
        N = self.config.N
        return {"step": self.step, "D": self.D, "C": 6 * N * self.tokens, "N": N, "N_total": self.config.N_total}

    def _rates(self, done: list[Completion], drawn: list[Completion], set_back: int) -> dict:
        """What was done since the last line, and how fast, by phase; gpu_hours are the whole run's, up to its last step."""
        seconds, flops = dict(self.seconds), dict(self.flops)
        self.seconds.clear()
        self.flops.clear()
        new = sum(len(c.ids) for c in drawn)
        tokens = dict.fromkeys(flops, sum(len(c.prompt) + len(c.ids) for c in done)) | {"generation": new, "evaluation": new}
        now = time.perf_counter()
        self.hours, self.tick = self.hours + (now - self.tick) / 3600 * self.world, now
        set_back, self.set_back = set_back - self.set_back, set_back
        return {"set_back": set_back, "flops": flops, "seconds": seconds, "gpu_hours": self.hours,
                "mfu": {p: n / (seconds[p] * self.world * self.peak) for p, n in flops.items() if n and self.peak},
                "tokens_per_second": {p: tokens[p] / seconds[p] for p, n in flops.items() if n}}

    def _log(self, file: str, *rows: dict) -> None:
        if self.rank == 0:
            try:
                with open(self.out / file, "a") as lines:
                    lines.writelines(json.dumps(row) + "\n" for row in rows)
            except OSError as error:
                raise Stopped(f"{self.out / file} could not be written: {error}; the checkpoints are whole. When there is "
                              f"room: --resume {self.out}") from error
            if self.f.wandb and file == "metrics.jsonl":
                for row in rows:
                    self.wandb.log({f"{row['kind']}/{k}": v for k, v in row.items() if k != "kind"}, step=row["step"])

    def columns(self, line: dict) -> dict[str, str]:
        """What people want to see of a training line."""
        seconds = sum(line["seconds"].values())
        return {"reward": f"{line['reward']:.3f}", "pass@1": f"{self.pass1:.3f}", "length": f"{line['length']:.1f}",
                "loss": f"{line['loss']:.1e}", "gap": f"{line['sampler_gap']:.1e}", "skipped": str(line["skipped_updates"]),
                "tokens/s": f"{line['tokens'] / seconds:,.0f}", "MFU": f"{line['mfu']['train']:.0%}" if line["mfu"] else "-",
                "seconds": f"{seconds:.1f}"}

    def row(self, line: dict) -> str:
        """The same as a row of a table, with the table's head before the first."""
        cells = {"step": f"{line['step']}/{self.f.steps}", **self.columns(line)}
        rows = [cells.values()] if self.spoken else [cells, cells.values()]
        self.spoken = True
        return "\n".join("".join(f"{cell:>10}" for cell in row) for row in rows)


@record
def explain(run) -> None:
    """Calls run(): errors that a user can mend end in one line and exit code 2; torchrun shows the traceback of any other."""
    try:
        run()
    except (ValueError, OSError, ImportError, Stopped) as error:
        if hasattr(error, "__notes__"):  # in the middle of a phase: not the user's doing
            raise
        # All ranks of a node tend to fail alike, and the first speaks for them. Who is still alive after two seconds is alone.
        if int(os.environ.get("LOCAL_RANK", 0)):
            time.sleep(2)
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def sequence_flops(config: Config, done: list[Completion]) -> int:
    """FLOPs of one forward over whole sequences, the head on completion tokens alone."""
    total = 0
    for c in done:
        L = len(c.prompt) + len(c.ids)
        total += config.flops(L, L * (L + 1) // 2, len(c.ids))
    return total


def sampling_flops(config: Config, done: list[Completion]) -> int:
    """FLOPs of drawing the sequences: every prompt once, then each token but the last of each sequence."""
    total = 0
    for c in done:
        P, L = len(c.prompt), len(c.prompt) + len(c.ids) - 1
        first = c.sample == 0
        total += config.flops(L - P + first * P, (L * (L + 1) - P * (P + 1)) // 2 + first * P * (P + 1) // 2, len(c.ids))
    return total


def show(completions: list[Completion], tokenizer) -> str:
    """A few completions for people: prompt, text, and whether it was right."""
    lines = []
    for c in completions:
        prompt = " ".join(tokenizer.decode(c.prompt, skip_special_tokens=True).split())
        prompt = prompt if len(prompt) <= 300 else f"{prompt[:200]} ... {prompt[-90:]}"
        mark = "✓" if c.verdict.score else "✗"
        lines.append(f"  {mark} {prompt}\n      {c.text.strip()}" + ("" if c.finished else " [cut]"))
    return "\n".join(lines)



def draw_curve(run: str | Path) -> Path:
    """Draws RUN/curve.png from RUN/metrics.jsonl: pass@1 and reward against steps, response length below."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    train, held_out = ([r for r in rows if r["kind"] == kind] for kind in ("train", "eval"))
    # Okabe and Ito's, told apart by the colour-blind
    colors, orange = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"), "#D55E00"
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=[2, 1], layout="constrained")
    top.plot([r["step"] for r in train], [r["reward"] for r in train], color=orange, lw=1, alpha=0.7,
             label="reward, training batch")
    bottom.plot([r["step"] for r in train], [r["length"] for r in train], color=orange, lw=1, alpha=0.7)
    sources = list(dict.fromkeys(r["source"] for r in held_out))
    for i, source in enumerate(sources):
        rows = [r for r in held_out if r["source"] == source]
        step, pass1, color = [r["step"] for r in rows], np.array([r["pass1"] for r in rows]), colors[i % len(colors)]
        spread = 1.96 * np.array([r["pass1_se"] or 0.0 for r in rows])
        top.plot(step, pass1, color=color, lw=2, marker="o", ms=3,
                 label=f"pass@1, {Path(source).stem}, {rows[0]['problems']} problems, 95% interval")
        top.fill_between(step, pass1 - spread, pass1 + spread, color=color, alpha=0.2, lw=0)
        bottom.plot(step, [r["length"] for r in rows], color=color, lw=2)
    top.set(ylabel="share of right answers", ylim=(0, 1.02), title=Path(run).name)
    top.legend(loc="best", frameon=False)
    bottom.set(ylabel="response length, tokens", xlabel="step", ylim=(0, None))
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path := Path(run) / "curve.png", dpi=150)
    plt.close(figure)
    return path

