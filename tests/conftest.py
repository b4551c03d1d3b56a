"""Small random models of the supported families, made here, so that no test downloads anything."""

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
VOCAB = 97  # a prime: no dimension can be mistaken for another
SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    eos_token_id=0,
    bos_token_id=None,
    pad_token_id=0,
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def hugging_face(family: str, tied: bool = False, seed: int = 0):
    """A random float32 model of transformers, with weights large enough that every part of the
    computation shows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = {"qwen3": {"head_dim": 16}, "llama": {"rope_parameters": LLAMA3}}.get(family, {})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SHAPE, **extra, tie_word_embeddings=tied)
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3).add_(1.0 if "norm" in name else 0.0)
    return model.float().eval()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(family, tied) -> (directory in Hugging Face layout, the transformers model saved
    there)."""
    made = {}

    def make(family: str = "qwen2", tied: bool = True):
        if (family, tied) not in made:
            directory = tmp_path_factory.mktemp(f"{family}-{'tied' if tied else 'untied'}")
            oracle = hugging_face(family, tied)
            oracle.save_pretrained(directory)
            made[family, tied] = directory, oracle
        return made[family, tied]

    return make


@pytest.fixture
def ours(checkpoint):
    """ours(family, tied) -> our Model filled from that checkpoint, float32."""
    from model import Config, Model
    from runtime.parallel import load

    return lambda family="qwen2", tied=True: load(
        Model(Config.read(checkpoint(family, tied)[0])), checkpoint(family, tied)[0]
    )


@pytest.fixture
def torchrun():
    """torchrun(n, *arguments) runs a script of the repository on n processes on the CPU and returns
    the finished process."""
    import subprocess

    def start(n: int, *arguments, timeout: int = 600, **environment):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(n),
        ]
        command += map(str, arguments)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )

    return start


@pytest.fixture
def interpreted():
    """interpreted(file) runs a test file as a script under triton's interpreter, which must be
    chosen before the import."""
    import subprocess

    triton, numpy = pytest.importorskip("triton"), pytest.importorskip("numpy")
    versions = [[int(n) for n in x.__version__.split(".")[:2]] for x in (triton, numpy)]
    if versions[0] < [3, 7] and versions[1] >= [2, 4]:
        pytest.skip(
            "triton 3.6's interpreter takes int() of arrays, which numpy 2.4 refuses: "
            "install numpy<2.4"
        )

    def run(file: str) -> None:
        environment = os.environ | {
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(
            [sys.executable, file], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture(params=[80, 90])
def compiled(request):
    """compiled(kernel, types, constants) compiles a Triton kernel for sm_80, and for sm_90, which
    needs no GPU; types: those of its arguments by name, the others are constants."""
    pytest.importorskip("triton")
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def run(kernel, types: dict, constants: dict) -> None:
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        assert compile(
            ASTSource(kernel, signature, constants), target=GPUTarget("cuda", request.param, 32)
        ).asm["cubin"]

    return run
