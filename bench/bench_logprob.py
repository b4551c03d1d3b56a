"""kernels/logprob.py against what a user could take instead: time forward, time forward + backward, peak extra memory.

    python -m bench.bench_logprob                                     # sizes of Qwen2.5-7B on a GPU, small ones on a CPU
    python -m bench.bench_logprob --tokens 4096 --width 896 --vocab 151936

Peers: the definition, torch.compile of it, torch's chunked linear_cross_entropy (2.13), and, where installed,
liger-kernel and cut-cross-entropy (which drops small gradients; "exact" does not). Ours and the definition also give
the entropy and its gradient. The others do less: log-probs alone, and liger and torch only their plain sum, whose
gradient they take in forward already. One line is appended to results/logprob.jsonl.
"""

import argparse
import gc
import resource
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.common import race, record
from kernels.logprob import logprob


def definition(hidden_TD, weight_VD, target_T):
    logp_TV = (hidden_TD @ weight_VD.T).float().log_softmax(1)
    return logp_TV.gather(1, target_T[:, None])[:, 0], -(logp_TV.exp() * logp_TV).sum(1)


def peers():
    """Name -> function (hidden_TD, weight_VD, target_T) -> outputs to be summed; or the reason why it is not here."""
    found = {"ours": logprob, "naive": definition, "torch.compile of naive": torch.compile(definition)}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["torch linear_cross_entropy"] = lambda h, w, y: (
            F.linear_cross_entropy(h, w, y, reduction="sum", options=options),
        )
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
        found["liger-kernel"] = lambda h, w, y: (liger(w, h, y),)
    except Exception as reason:
        found["liger-kernel"] = reason
    try:
        from cut_cross_entropy import linear_cross_entropy

        for name, filtered in (("cut-cross-entropy", "high"), ("cut-cross-entropy, exact", None)):
            found[name] = lambda h, w, y, eps=filtered: (
                linear_cross_entropy(h, w, y, reduction="none", filter_eps=eps),
            )
    except Exception as reason:
        found["cut-cross-entropy"] = reason
    return found


def inputs(arguments):
    generator = torch.Generator().manual_seed(0)
    dtype, device = getattr(torch, arguments.dtype), arguments.device
    hidden_TD = torch.randn(arguments.tokens, arguments.width, generator=generator).to(device, dtype)
    weight_VD = torch.randn(arguments.vocab, arguments.width, generator=generator) * arguments.width**-0.5
    target_T = torch.randint(arguments.vocab, (arguments.tokens,), generator=generator)
    return hidden_TD.requires_grad_(), weight_VD.to(device, dtype).requires_grad_(), target_T.to(device)


def step(function, hidden_TD, weight_VD, target_T):
    """Forward and backward of the sum of everything that the function returns."""
    hidden_TD.grad = weight_VD.grad = None
    sum(x.sum() for x in function(hidden_TD, weight_VD, target_T)).backward()


def extra_memory(function, arguments):
    """Bytes of peak memory of one step above the inputs, the gradients included."""
    tensors = inputs(arguments)
    if arguments.device == "cuda":
        step(function, *tensors)
        tensors[0].grad = tensors[1].grad = None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(function, *tensors)
        return torch.cuda.max_memory_allocated() - before
    step(function, *inputs(argparse.Namespace(**{**vars(arguments), "tokens": 8, "vocab": 64})))  # libraries, threads
    tensors[0].sum(), tensors[1].sum()  # a system may have put untouched pages aside: they would come back as extra
    before = peak_memory(reset=True)
    step(function, *tensors)
    return peak_memory() - before


def peak_memory(reset=False):
    """Peak resident bytes of this process, since the last reset where there is one (Linux)."""
    if not Path("/proc/self/clear_refs").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    # Not ru_maxrss, which a child process inherits from its parent on Linux.
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32", help="of hidden and weight")
    parser.add_argument("--tokens", type=int, default=16384 if gpu else 512)
    parser.add_argument("--width", type=int, default=3584 if gpu else 256)
    parser.add_argument("--vocab", type=int, default=152064 if gpu else 32000)
    parser.add_argument("--repeat", type=int, default=5, help="the median of so many calls is reported")
    parser.add_argument("--memory-of", help="print the extra memory of one contender in bytes, and nothing else")
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(extra_memory(peers()[arguments.memory_of], arguments))
        return

    tensors = inputs(arguments)
    hidden_TD, weight_VD = (x.detach() for x in tensors[:2])
    # The ceiling: the same product in pieces that fit, the results thrown away.
    pieces = weight_VD.split(8192)
    forward = {"product": lambda: [hidden_TD @ piece_CD.T for piece_CD in pieces]}
    both, rows = {}, {}
    for name, function in peers().items():
        try:
            if isinstance(function, Exception):
                raise function
            for _ in range(2):  # compiles, tunes, warms up
                step(function, *tensors)
        except Exception as reason:
            first_line = (str(reason).strip().splitlines() or [""])[0]
            rows[name] = dict(name=name, not_run=f"{type(reason).__name__}: {first_line}")
            continue
        forward[name] = torch.no_grad()(lambda f=function: f(*tensors))
        both[name] = lambda f=function: step(f, *tensors)
        if arguments.device == "cuda":
            memory = extra_memory(function, arguments)
        else:  # what the contenders before it have left in this process would count
            command = [sys.executable, "-m", "bench.bench_logprob", *sys.argv[1:], "--memory-of", name]
            memory = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        rows[name] = dict(name=name, extra_mb=memory / 1e6)
    for function in forward.values():
        function()
    forward_ms = race(forward, arguments.device, arguments.repeat)
    both_ms = race(both, arguments.device, arguments.repeat)

    product = forward_ms["product"]
    rate = 2 * arguments.tokens * weight_VD.numel() / product / 1e9
    print(f"T = {arguments.tokens}, D = {arguments.width}, V = {arguments.vocab}, {arguments.dtype}")
    print(f"the product hidden @ weight.T alone: {product:.1f} ms, {rate:.3g} TFLOP/s\n")
    columns = ("forward ms", "of product", "fwd+bwd ms", "extra MB")
    print(f"{'':28}" + "".join(f"{column:>12}" for column in columns) + "    times ours: fwd, fwd+bwd, MB")
    for name, row in rows.items():
        if "not_run" in row:
            print(f"{name:28}not run: {row['not_run'][:110]}")
            continue
        row |= dict(
            forward_ms=forward_ms[name], of_product=product / forward_ms[name], forward_backward_ms=both_ms[name]
        )
        ratios = [row[key] / rows["ours"][key] for key in ("forward_ms", "forward_backward_ms", "extra_mb")]
        print(
            f"{name:28}{row['forward_ms']:12.2f}{row['of_product']:12.0%}{row['forward_backward_ms']:12.2f}"
            f"{row['extra_mb']:12.0f}{ratios[0]:16.2f}{ratios[1]:9.2f}{ratios[2]:8.2f}"
        )
    record("logprob", arguments, list(rows.values()), dict(product_ms=product, product_tflops=rate),
           ("kernels/logprob.py", "bench/bench_logprob.py", "bench/common.py"))


if __name__ == "__main__":
    main()
