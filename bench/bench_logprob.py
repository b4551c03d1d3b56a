"""kernels/logprob.py against the usual ways: time forward, time forward + backward, extra memory.

    python -m bench.bench_logprob      # GPU: sizes of Qwen2.5-7B; CPU: small ones
    python -m bench.bench_logprob --tokens 4096 --width 896 --vocab 151936

Peers: the definition, torch.compile of it, torch's chunked linear_cross_entropy (2.13) and, where
installed, liger-kernel and cut-cross-entropy (which drops small gradients; "exact" does not). Ours
and the definition also give the entropy and its gradient. The others do less: log-probs alone, and
liger and torch only their plain sum, whose gradient they compute in forward already.
"""

import gc
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

from bench.common import DEVICE, DTYPE, GPU, one_line, race, record
from kernels.logprob import logprob


@dataclass
class Flags:
    tokens: int = 16384 if GPU else 512
    width: int = 3584 if GPU else 256
    vocab: int = 152064 if GPU else 32000
    repeat: int = 5  # the median of so many calls is reported
    memory_of: str = ""  # print the extra bytes of this contender, and nothing else


# ---- The contenders: (hidden_TD, weight_VD, target_T) -> outputs to be summed -------------------


def definition(hidden_TD, weight_VD, target_T):
    logp_TV = (hidden_TD @ weight_VD.T).float().log_softmax(1)
    logp_T = logp_TV.gather(1, target_T[:, None])[:, 0]
    entropy_T = -(logp_TV.exp() * logp_TV).sum(1)
    return logp_T, entropy_T


def torch_chunked(hidden_TD, weight_VD, target_T):
    options = torch.nn.LinearCrossEntropyOptions()
    loss = F.linear_cross_entropy(hidden_TD, weight_VD, target_T, reduction="sum", options=options)
    return (loss,)


def liger(hidden_TD, weight_VD, target_T):
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
    return (loss(weight_VD, hidden_TD, target_T),)


def cut(hidden_TD, weight_VD, target_T, filter_eps):
    from cut_cross_entropy import linear_cross_entropy

    loss_T = linear_cross_entropy(
        hidden_TD, weight_VD, target_T, reduction="none", filter_eps=filter_eps
    )
    return (loss_T,)


CONTENDERS = {
    "ours": logprob,
    "naive": definition,
    "torch.compile of naive": torch.compile(definition),
    "torch linear_cross_entropy": torch_chunked,
    "liger-kernel": liger,
    "cut-cross-entropy": partial(cut, filter_eps="high"),
    "cut-cross-entropy, exact": partial(cut, filter_eps=None),
}


# ---- Measuring ----------------------------------------------------------------------------------


def make_inputs(flags: Flags):
    """hidden_TD and weight_VD, which want gradients, and target_T."""
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(flags.tokens, flags.width, generator=generator)
    weight_VD = torch.randn(flags.vocab, flags.width, generator=generator) / flags.width**0.5
    target_T = torch.randint(flags.vocab, (flags.tokens,), generator=generator)
    hidden_TD = hidden_TD.to(DEVICE, DTYPE).requires_grad_()
    weight_VD = weight_VD.to(DEVICE, DTYPE).requires_grad_()
    return hidden_TD, weight_VD, target_T.to(DEVICE)


def both(function: Callable, hidden_TD, weight_VD, target_T) -> None:
    """Forward and backward of the sum of everything that the function returns."""
    hidden_TD.grad = None
    weight_VD.grad = None
    outputs = function(hidden_TD, weight_VD, target_T)
    sum(x.sum() for x in outputs).backward()


def extra_memory(name: str, flags: Flags) -> int:
    """Bytes of peak memory of one forward + backward above the inputs, the gradients included."""
    function = CONTENDERS[name]
    inputs = make_inputs(flags)
    hidden_TD, weight_VD, _ = inputs
    if GPU:
        both(function, *inputs)
        hidden_TD.grad = None
        weight_VD.grad = None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both(function, *inputs)
        return torch.cuda.max_memory_allocated() - before
    # Libraries and threads, which would count, begin with small inputs.
    both(function, *make_inputs(replace(flags, tokens=8, vocab=64)))
    # The system may have put untouched pages aside. Reading them brings them back.
    hidden_TD.sum()
    weight_VD.sum()
    before = peak_memory(reset=True)
    both(function, *inputs)
    return peak_memory() - before


def peak_memory(reset: bool = False) -> int:
    """Peak resident bytes of this process, since the last reset where there is one (Linux)."""
    if not Path("/proc/self/clear_refs").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    # Not ru_maxrss, which on Linux a process inherits from its parent.
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return 1024 * int(status.split()[0])


def memory_in_own_process(name: str) -> int:
    """extra_memory without what other contenders have left in this process."""
    command = [sys.executable, "-m", "bench.bench_logprob", *sys.argv[1:], "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def product(hidden_TD, weight_VD) -> None:
    """The ceiling: the product of the head in pieces that fit, the results thrown away."""
    for piece_CD in weight_VD.split(8192):
        hidden_TD @ piece_CD.T


def measure(flags: Flags) -> tuple[float, list[dict]]:
    """-> (milliseconds of the product alone, a row for each contender)."""
    inputs = make_inputs(flags)
    hidden_TD, weight_VD, _ = inputs
    forwards = {"product": partial(product, hidden_TD.detach(), weight_VD.detach())}
    steps = {}
    memory = {}
    not_run = []
    for name, function in CONTENDERS.items():
        try:
            for _ in range(2):  # compiles, tunes, warms up
                both(function, *inputs)
        except Exception as error:
            if name == "ours":
                raise
            not_run.append({"name": name, "not_run": one_line(error)})
            continue
        memory[name] = extra_memory(name, flags) if GPU else memory_in_own_process(name)
        forwards[name] = torch.no_grad()(partial(function, *inputs))
        steps[name] = partial(both, function, *inputs)
    race(forwards, 1)  # the warm-up
    forward_ms = race(forwards, flags.repeat)
    both_ms = race(steps, flags.repeat)
    rows = []
    for name in steps:
        row = {
            "name": name,
            "forward_ms": forward_ms[name],
            "of_product": forward_ms["product"] / forward_ms[name],
            "forward_backward_ms": both_ms[name],
            "extra_mb": memory[name] / 1e6,
        }
        rows.append(row)
    return forward_ms["product"], rows + not_run


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.memory_of:
        print(extra_memory(flags.memory_of, flags))
        return
    product_ms, rows = measure(flags)
    tflops = 2 * flags.tokens * flags.vocab * flags.width / product_ms / 1e9
    print(f"T = {flags.tokens}, D = {flags.width}, V = {flags.vocab}, {DTYPE}")
    print(f"the product hidden @ weight.T alone: {product_ms:.1f} ms, {tflops:.3g} TFLOP/s\n")
    print(f"{'':28}{'forward ms':>12}{'of product':>12}{'fwd+bwd ms':>12}{'extra MB':>12}"
          "    times ours: fwd, fwd+bwd, MB")  # fmt: skip
    for row in rows:
        if "not_run" in row:
            print(f"{row['name']:28}not run: {row['not_run'][:110]}")
            continue
        keys = ("forward_ms", "forward_backward_ms", "extra_mb")
        forward, step, extra = (row[key] / rows[0][key] for key in keys)
        print(
            f"{row['name']:28}{row['forward_ms']:12.2f}{row['of_product']:12.0%}"
            f"{row['forward_backward_ms']:12.2f}{row['extra_mb']:12.0f}{forward:16.2f}{step:9.2f}"
            f"{extra:8.2f}"
        )
    ceilings = {"product_ms": product_ms, "product_tflops": tflops}
    files = ("kernels/logprob.py", "bench/bench_logprob.py", "bench/common.py")
    record("logprob", vars(flags), rows, ceilings, files)


if __name__ == "__main__":
    main()
