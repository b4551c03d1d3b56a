"""What people see of a run: a table, the progress of long steps, completions, a curve."""

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from rollout import Completion

WIDTH = {  # of the columns of a training row, 78 together
    "step": 9, "reward": 8, "pass@1": 8, "length": 8, "loss": 10, "gap": 9, "equal": 7,
    "tokens/s": 10, "seconds": 9,
}  # fmt: skip


def cells(line: dict, steps: int, pass1: float | None) -> dict[str, str]:
    """The table's cells for a training line of metrics.jsonl, by column."""
    seconds = sum(line["seconds"].values())
    return {
        "step": f"{line['step']}/{steps}",
        "reward": f"{line['reward']:.3f}",
        "pass@1": "-" if pass1 is None else f"{pass1:.3f}",
        "length": f"{line['length']:.1f}",
        "loss": f"{line['loss']:.1e}",
        "gap": f"{line['sampler_gap']:.1e}",
        "equal": f"{line['equal_groups']:.0%}",
        "tokens/s": f"{line['tokens'] / seconds:,.0f}",
        "seconds": f"{seconds:.1f}",
    }


class Display:
    """A run on the terminal: a table with a row for each step, and a bar if stderr is a terminal.

    A step that takes longer than ten seconds also says how far it is.
    done: steps of an earlier start. completions: of a step. say: prints a line on rank 0.
    """

    def __init__(self, steps: int, done: int, completions: int, say):
        self.steps = steps
        self.total = completions
        self.say = say
        speaks = int(os.environ.get("RANK", 0)) == 0
        self.bar = tqdm(
            total=steps,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            disable=not (speaks and sys.stderr.isatty()),
        )
        self.head_is_printed = False
        self.begin(done + 1)

    def begin(self, step: int) -> None:
        self.step = step
        self.start = time.monotonic()
        self.last = self.start

    def completions(self, done: int) -> None:
        self._progress(f"{done} of {self.total} completions")

    def micro_batches(self, done: int, total: int) -> None:
        self._progress(f"{done} of {total} micro-batches of an update")

    def _progress(self, text: str) -> None:
        now = time.monotonic()
        pause = 30 if self.bar.disable else 1
        has_spoken = self.last > self.start
        if now - self.start < 10 or (has_spoken and now - self.last < pause):
            return
        self.last = now
        if self.bar.disable:
            self.say(f"  step {self.step} after {now - self.start:.0f} s: {text}")
        else:
            self.bar.set_postfix_str(text)

    def print(self, text: str) -> None:
        """A line above the bar."""
        with tqdm.external_write_mode():
            self.say(text)

    def row(self, line: dict, pass1: float | None) -> None:
        """Show a training line of metrics.jsonl."""
        shown = cells(line, self.steps, pass1)
        self.bar.set_postfix_str("", refresh=False)
        self.bar.update()
        if not self.head_is_printed:
            self.print("".join(f"{name:>{width}}" for name, width in WIDTH.items()))
            self.head_is_printed = True
        self.print("".join(f"{cell:>{WIDTH[name]}}" for name, cell in shown.items()))

    def close(self) -> None:
        self.bar.close()


def show(completions: list[Completion], tokenizer) -> str:
    """A few completions for people: prompt, text, and whether the answer was right."""
    lines = []
    for c in completions:
        prompt = " ".join(tokenizer.decode(c.prompt, skip_special_tokens=True).split())
        if len(prompt) > 300:
            prompt = f"{prompt[:200]} ... {prompt[-90:]}"
        mark = "✓" if c.verdict.score else "✗"
        ending = "" if c.finished else " [truncated]"
        lines.append(f"  {mark} {printable(prompt)}\n      {printable(c.text.strip())}{ending}")
    return "\n".join(lines)


def printable(text: str) -> str:
    """The text without control characters, which could move the cursor or hide what was printed."""
    return "".join(
        ch if ch.isprintable() or ch == "\n" else "\N{REPLACEMENT CHARACTER}" for ch in text
    )


def draw_curve(run: Path) -> Path:
    """Draw RUN/curve.png from RUN/metrics.jsonl: pass@1, accuracy and completion length by step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    by_source = defaultdict(list)
    for row in rows:
        if row["kind"] == "eval":
            by_source[row["source"]].append(row)
    orange = "#D55E00"  # the colours of Okabe and Ito, which the colour-blind can tell apart
    colours = ["#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 6), sharex=True, height_ratios=[2, 1], layout="constrained"
    )
    steps = [row["step"] for row in train]
    accuracy = [row["accuracy"] for row in train]
    length = [row["length"] for row in train]
    thin = {"color": orange, "lw": 1, "alpha": 0.7}
    top.plot(steps, accuracy, label="accuracy, training batch", **thin)
    bottom.plot(steps, length, **thin)
    for i, (source, evaluations) in enumerate(by_source.items()):
        colour = colours[i % len(colours)]
        step = [row["step"] for row in evaluations]
        pass1 = np.array([row["pass1"] for row in evaluations])
        low, high = np.array([row["pass1_ci"] for row in evaluations]).T
        label = f"pass@1, {Path(source).stem}, {evaluations[0]['problems']} problems, 95% interval"
        top.plot(step, pass1, color=colour, lw=2, marker="o", ms=3, label=label)
        top.fill_between(step, low, high, color=colour, alpha=0.2, lw=0)
        bottom.plot(step, [row["length"] for row in evaluations], color=colour, lw=2)
    name = run.name.replace("$", r"\$")  # a bare $ begins a formula
    top.set(ylabel="share of right answers", ylim=(0, 1.02), title=name)
    top.legend(loc="best", frameon=False)
    bottom.set(ylabel="completion length, tokens", xlabel="step", ylim=(0, None))
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    path = run / "curve.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
