"""kernels/logprob.py against autograd in float64; its memory; the kernels interpreted.

Run as a script with TRITON_INTERPRET=1, this file checks the kernels on a CPU. Triton reads that
variable when it is imported, so the test of that name starts a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import logprob as module
from kernels.logprob import logprob


def inputs(T, D, V, dtype=torch.float32, device="cpu", scale=1.0):
    """Logits of standard deviation `scale`; the first and last token of V are among the targets."""
    generator = torch.Generator().manual_seed(T * V)
    hidden_TD = (torch.randn(T, D, generator=generator) * scale).to(device, dtype).requires_grad_()
    weight_VD = torch.randn(V, D, generator=generator) * D**-0.5
    weight_VD = weight_VD.to(device, dtype).requires_grad_()
    target_T = torch.randint(V, (T,), generator=generator)
    target_T[0], target_T[-1] = 0, V - 1
    return hidden_TD, weight_VD, target_T.to(device)


def naive(hidden_TD, weight_VD, target_T, temperature=1.0):
    """The definition; in float64 it is the oracle."""
    logp_TV = (hidden_TD @ weight_VD.T / temperature).log_softmax(1)
    return logp_TV.gather(1, target_T[:, None])[:, 0], -(logp_TV.exp() * logp_TV).sum(1)


def results(function, hidden_TD, weight_VD, target_T, temperature, entropy=True):
    """Both outputs, and the gradients of a random combination (without entropy: of logp alone)."""
    logp_T, entropy_T = function(hidden_TD, weight_VD, target_T, temperature)
    a_T, b_T = torch.randn(2, len(target_T), generator=torch.Generator().manual_seed(1)).to(logp_T)
    loss = (a_T * logp_T).sum() + ((b_T * entropy_T).sum() if entropy else 0)
    return logp_T, entropy_T, *torch.autograd.grad(loss, (hidden_TD, weight_VD))


def errors(hidden_TD, weight_VD, target_T, temperature, entropy=True):
    """Largest error of logp and of entropy; relative error (in norm) of both gradients."""
    ours = results(logprob, hidden_TD, weight_VD, target_T, temperature, entropy)
    wide = [x.detach().double().requires_grad_() for x in (hidden_TD, weight_VD)]
    exact = results(naive, *wide, target_T, temperature, entropy)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    assert ours[2].dtype == hidden_TD.dtype and ours[3].dtype == weight_VD.dtype
    absolute = [(x - y).abs().max().item() for x, y in zip(ours[:2], exact[:2], strict=True)]
    gradients = zip(ours[2:], exact[2:], strict=True)
    return absolute + [((x - y).norm() / y.norm()).item() for x, y in gradients]


def assert_below(found, bounds, case):
    assert all(x < y for x, y in zip(found, bounds, strict=True)), (case, found)


def check_accuracy(device, sizes=((5, 16, 700), (64, 48, 32), (3, 32, 5000), (2, 8, 9000))):
    for T, D, V in sizes:
        for temperature in (1.0, 0.6):
            for entropy in (True, False):
                case = inputs(T, D, V, torch.float32, device, scale=10.0)
                found = errors(*case, temperature, entropy)
                # Logits up to 60 / temperature: an ulp of 4e-6 to 8e-6.
                assert_below(found, (5e-5, 5e-5, 1e-5, 1e-5), (T, D, V, temperature, entropy))
        # The bars for bf16 inputs: log-probs 2e-3, gradients 1%. Fails with logits or sums rounded
        # to bf16.
        found = errors(*inputs(T, D, V, torch.bfloat16, device, scale=10.0), 1.0)
        assert_below(found, (2e-3, 2e-3, 1e-2, 1e-2), (T, D, V))

    # Logits that rise or fall by 300 along the vocabulary: sums that do not follow the maximum
    # overflow.
    hidden_TD = torch.tensor([[1.0], [-1.0]], device=device, requires_grad=True)
    weight_VD = torch.linspace(-150, 150, 9000, device=device)[:, None].requires_grad_()
    target_T = torch.tensor([8999, 4500], device=device)
    found = errors(hidden_TD, weight_VD, target_T, 1.0)
    assert_below(found, (2e-4, 2e-4, 1e-4, 1e-4), "rising logits")
    # The gradient of a plain sum is an expanded scalar: one element in memory. Fails without
    # contiguous().
    hidden_TD, weight_VD, target_T = inputs(6, 8, 600, torch.float32, device)
    wide_TD = hidden_TD.detach().double().requires_grad_()
    wide_VD = weight_VD.detach().double()
    for output in (0, 1):  # logp, entropy
        total = logprob(hidden_TD, weight_VD, target_T)[output].sum()
        found = torch.autograd.grad(total, hidden_TD)[0]
        total = naive(wide_TD, wide_VD, target_T)[output].sum()
        exact = torch.autograd.grad(total, wide_TD)[0]
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.fixture(params=[2**24, 700], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setitem(module.BLOCK, "cpu", request.param)


def test_gradients_in_float64(blocks, temperature=0.7):
    # Numerical differences of our own forward: fails on any error of either gradient formula, or of
    # the block's offset.
    hidden_TD, weight_VD, target_T = inputs(4, 2, 260, torch.float64)
    def function(hidden_TD, weight_VD):
        return logprob(hidden_TD, weight_VD, target_T, temperature)

    assert torch.autograd.gradcheck(function, (hidden_TD, weight_VD))
    for ours, exact in zip(
        logprob(hidden_TD, weight_VD, target_T, temperature),
        naive(hidden_TD, weight_VD, target_T, temperature),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)


def test_accuracy(blocks):
    check_accuracy("cpu")


def test_weight_gradient_is_rounded_once(monkeypatch):
    # Fails when a bf16 weight gradient is summed in bf16, over blocks of tokens say: 600 terms of
    # 2**-9 each.
    monkeypatch.setitem(module.BLOCK, "cpu", 2**14)
    hidden_TD, weight_VD, target_T = inputs(600, 8, 300, torch.bfloat16)
    assert errors(hidden_TD, weight_VD, target_T, 1.0)[3] < 2.0**-9


def test_what_is_not_needed_is_not_computed(blocks):
    hidden_TD, weight_VD, target_T = inputs(4, 8, 600)
    expected = results(logprob, hidden_TD, weight_VD, target_T, 1.0)
    logp_T, entropy_T = logprob(hidden_TD, weight_VD.detach(), target_T)
    assert torch.equal(logp_T, expected[0]) and torch.equal(entropy_T, expected[1])
    a_T, b_T = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    ((a_T * logp_T).sum() + (b_T * entropy_T).sum()).backward()
    assert torch.equal(hidden_TD.grad, expected[2]) and weight_VD.grad is None
    logp_T, entropy_T = logprob(hidden_TD.detach(), weight_VD, target_T)
    ((a_T * logp_T).sum() + (b_T * entropy_T).sum()).backward()
    assert torch.equal(weight_VD.grad, expected[3])
    with torch.no_grad():
        assert not logprob(hidden_TD, weight_VD, target_T)[0].requires_grad


def test_no_tokens_and_bad_input():
    hidden_TD, weight_VD, target_T = inputs(4, 8, 600)
    logp_T, entropy_T = logprob(hidden_TD[:0], weight_VD, target_T[:0])
    (logp_T.sum() + entropy_T.sum()).backward()
    assert logp_T.shape == entropy_T.shape == (0,) and (weight_VD.grad == 0).all()
    # A target outside the vocabulary must not pass for a token. Fails when the target's logit
    # starts from 0.
    logp_T, _ = logprob(hidden_TD, weight_VD, torch.tensor([0, -1, 600, 599]))
    assert logp_T.isnan().tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="temperature is 0"):
        logprob(hidden_TD, weight_VD, target_T, 0)
    with pytest.raises(ValueError, match=r"hidden is torch.float32, weight torch.bfloat16"):
        logprob(hidden_TD, weight_VD.bfloat16(), target_T)


def extra_memory(T, D, V):
    """Bytes by which forward and backward raise the peak memory of this fresh process."""

    def peak():  # not ru_maxrss, which a child process inherits from its parent
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    hidden_TD, weight_VD, target_T = inputs(T, D, V)
    small = inputs(8, D, 64)  # what the first call of everything costs
    sum(x.sum() for x in logprob(*small)).backward()
    # A system may have put untouched pages aside, which would come back as extra.
    hidden_TD.sum(), weight_VD.sum()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = peak()
    logp_T, entropy_T = logprob(hidden_TD, weight_VD, target_T)
    (logp_T.sum() + entropy_T.sum()).backward()
    extra = peak() - before
    assert hidden_TD.grad.isfinite().all() and weight_VD.grad.isfinite().all()
    return extra


# The same vocabulary with few columns in the default run. One (T, V) tensor in float32 is 0.31 GB
# there, and 2.5 GB in the slow one, whose weight gradient alone is 0.54 GB. Fails when any such
# tensor is made.
@pytest.mark.parametrize(
    ("T", "D", "limit"), [(512, 8, 0.15e9), pytest.param(4096, 896, 0.9e9, marks=pytest.mark.slow)]
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory(T, D, limit):
    code = f"from tests.test_logprob import extra_memory; print(extra_memory({T}, {D}, 151_936))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    print(f"extra memory at T={T}, D={D}, V=151936: {int(result.stdout) / 1e9:.2f} GB")
    assert int(result.stdout) < limit


def check_kernels():
    """The function with the row kernels, and the bf16 gradient that they write on a GPU."""
    module._rows = lambda x: (module.forward_triton, module.backward_triton)
    check_accuracy("cpu", sizes=((5, 16, 700), (2, 8, 9000)))
    module.BLOCK["cpu"] = 2**12
    check_accuracy("cpu", sizes=((5, 16, 700), (3, 32, 5000)))
    z_TC = torch.randn(3, 2500, generator=torch.Generator().manual_seed(0)) * 3
    target_T = torch.tensor([7, 100, 2000])
    first = 100  # one target lies in an earlier block, one in the first column of this one
    generator = torch.Generator().manual_seed(0)
    lse_T, entropy_T, d_logp_T, d_entropy_T = torch.randn(4, 3, generator=generator)
    for d in (None, d_entropy_T):
        rows = (lse_T + 12, entropy_T, d_logp_T, d)
        wide = [None if x is None else x.double() for x in rows]
        exact = module.backward_reference(
            z_TC.double(), first, target_T, *wide, 1 / 0.7, torch.float64
        )
        found = module.backward_triton(
            z_TC.clone(), first, target_T, *rows, 1 / 0.7, torch.bfloat16
        )
        # Where a GPU rounds to bf16, the interpreter truncates: up to 2**-8 each, 2**-8.8 in the
        # mean square.
        assert found.dtype == torch.bfloat16 and (found - exact).norm() / exact.norm() < 2.0**-8


def test_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


def test_kernels_compile_ahead_of_time(compiled):
    module.load_triton()
    numbers = dict(first="i32", T="i32", C="i32", inverse_temperature="fp32")
    types = dict(numbers, z_TC="*fp32", target_T="*i64", state_4T="*fp32")
    types |= dict(lse_T="*fp32", entropy_T="*fp32", d_logp_T="*fp32", d_entropy_T="*fp32")
    types |= dict(grad_TC="*bf16")
    without = {name: kind for name, kind in types.items() if name != "d_entropy_T"}
    for kernel, kinds, constants in (
        (module.forward_kernel, types, dict(BLOCK=4096)),
        (module.backward_kernel, types, dict(BLOCK=2048, ENTROPY=True)),
        (
            module.backward_kernel,
            dict(without, grad_TC="*fp32"),
            dict(BLOCK=2048, ENTROPY=False, d_entropy_T=None),
        ),
    ):
        compiled(kernel, kinds, constants)


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch):
    check_accuracy("cuda", sizes=((5, 16, 700), (64, 48, 32), (300, 64, 9000)))
    monkeypatch.setitem(module.BLOCK, "cuda", 2**18)
    check_accuracy("cuda", sizes=((300, 64, 9000),))


if __name__ == "__main__":
    check_kernels()
