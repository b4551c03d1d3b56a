"""How much of an evaluation's time is spent outside the model: reading, templates, grading, host.

    python -m bench.bench_evaluate --model Qwen/Qwen2.5-0.5B-Instruct --eval openai/gsm8k:test

Every token is made an end token, so that the model stops at once. The model's part is then as small
as it can be, one prefill of each prompt, and the share outside as large. The bar is 10%. The start
(imports, reading weights) is not counted.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import tyro

import data
from bench.common import record, seconds
from evaluate import EvaluationSet, evaluate
from reward import Grader
from rollout import Rollout, Sampler
from runtime.parallel import connect, read_model, read_tokenizer

BAR = 0.10
MAX_PROMPT = 2048
MAX_NEW = 512


@dataclass
class Flags:
    model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    eval: str = "openai/gsm8k:test"  # NAME[:n[:temperature]]
    problems: int = 1319  # only the first so many


@contextmanager
def timed(model):
    """Yields a list of the seconds of every forward of the model."""
    forward = model.forward
    durations = []

    def measured(*arguments, **options):
        result = []
        durations.append(seconds(lambda: result.append(forward(*arguments, **options))))
        return result[0]

    model.forward = measured
    yield durations
    model.forward = forward


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    device, directory, config = connect(flags.model)
    tokenizer = read_tokenizer(directory)
    renderer = data.Renderer(tokenizer)
    model = read_model(directory, config, device, 1)
    sampler = Sampler(model, range(config.V), 128, MAX_PROMPT + MAX_NEW)
    test = EvaluationSet.parse(flags.eval)
    found = []

    def run() -> None:
        problems, _ = data.load(test.name, split="test")
        problems = problems[: flags.problems]
        test.problems, _ = data.drop_long(problems, renderer, MAX_PROMPT)
        with Grader() as grader:
            rollout = Rollout(sampler, renderer, grader, MAX_NEW, 0)
            _, _, completions = evaluate(rollout, test)
        found.extend(completions)

    with timed(model) as forwards:
        total = seconds(run)
    if any(len(c.ids) > 1 for c in found):
        raise SystemExit("the model did not stop at once")
    inside = sum(forwards)
    share = 1 - inside / total
    prompt_tokens = sum(len(c.prompt) for c in found)
    bar = "under" if share < BAR else "NOT under"
    print(
        f"{len(test.problems)} problems, {prompt_tokens:,} tokens: {total:.1f} s, {inside:.1f} s "
        f"in the model, {share:.1%} outside it ({bar} {BAR:.0%})"
    )
    row = {
        "parameters": config.N_total,
        "problems": len(test.problems),
        "prompt_tokens": prompt_tokens,
        "seconds": total,
        "outside_seconds": total - inside,
        "share": share,
        "bar": BAR,
    }
    names = {"model": Path(flags.model).name, "eval": Path(flags.eval).name}
    files = ("*.py", "runtime", "kernels", "bench/bench_evaluate.py", "bench/common.py")
    record("evaluate", vars(flags) | names, [row], {}, files)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
