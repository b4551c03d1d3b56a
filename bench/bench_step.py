"""One whole GRPO step, ours against TRL's GRPOTrainer: the same weights, prompts, group, lengths, threads and kind of loss.

    python -m venv trl && trl/bin/pip install torch trl         # TRL wants an environment of its own
    python -m bench.bench_step --peer-python trl/bin/python           # models/tiny's shape on a CPU, Qwen2.5-0.5B's on a GPU

A step is generating, grading, log-probs, backward, the optimiser, and giving the sampler the new weights. Each side runs as its
user would run it, in processes of its own, in turns for --rounds: ours is `grpo.py`, theirs a GRPOTrainer
 - "as it comes": its defaults (micro-batches of 8, recomputation, bfloat16 autocast) wherever the work does not fix a setting;
 - tuned: the largest micro-batches, nothing recomputed, float32 on a CPU and weights in bfloat16 on a GPU, once for every way
   to generate that it has in process: transformers' `generate`, its continuous batching, and vLLM where that is installed.
On a CPU with --ranks, ours and the tuned are that many processes by torchrun; "as it comes" is one, with all their threads.
The first step of a process is left out. Random weights; the end token has an id that no model has a row for, so every
completion is exactly --max-new tokens long, at no cost; both sides' own counts of tokens must agree, or there is no result.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from bench.common import ROOT, SHAPES, random_weights, record, synchronize, write_config

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
PEERS = ("as it comes", "generate", "continuous batching", "vllm")


def make(folder: Path, flags) -> None:
    """A checkpoint with random weights in `folder`, and the prompts and answers that grpo.py will draw, in its order."""
    from safetensors.torch import save_file

    import data
    from model import Config, Model

    V = SHAPES[flags.shape][5]
    write_config(folder, flags.shape, eos_token_id=V, pad_token_id=0)
    tokenizer, settings = (json.loads((ROOT / "models" / "tiny" / name).read_text()) for name in TOKENIZER)
    vocabulary, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    vocabulary |= {token["content"]: token["id"] for token in added}
    vocabulary |= {f"<{i}>": i for i in range(len(vocabulary), V)}  # full: a token added to it gets the id V
    added.append(added[0] | {"id": V, "content": "<|never|>"})
    for name, content in zip(TOKENIZER, (tokenizer, settings | {"eos_token": "<|never|>"}), strict=True):
        (folder / name).write_text(json.dumps(content))
    torch.manual_seed(0)
    weights = random_weights(Model(Config.read(folder))).state_dict()
    save_file({name: p.contiguous() for name, p in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    problems = data.order(data.load("arithmetic", seed=0))[: flags.prompts * (flags.steps + 1)]
    (folder / "problems.json").write_text(json.dumps([{"prompt": p.prompt, "answer": p.answer} for p in problems]))


def differences(values: list) -> list:
    return [b - a for a, b in pairwise(values)]


def ours(folder: Path, flags) -> dict:
    with tempfile.TemporaryDirectory() as out:
        on_cpu_time = "import runpy, time; time.perf_counter = time.process_time; runpy.run_path('grpo.py', {}, '__main__')"
        script = ["-c", on_cpu_time] if flags.clock == "cpu" else ["grpo.py"]
        slots = flags.prompts * flags.group // flags.ranks
        words = ["--model", folder, "--out", Path(out, "run"), "--steps", flags.steps + 1, "--prompts", flags.prompts,
                 "--group", flags.group, "--max-prompt", 64, "--max-new", flags.max_new, "--slots", slots, "--lr", 1e-6,
                 "--warmup", 0, "--eval-every", 10**6, "--eval-problems", 1, "--save-every", 10**6]
        run([sys.executable, *torchrun(flags.ranks), *script, *map(str, words), *flags.ours.split()], flags, flags.threads)
        lines = [json.loads(line) for line in Path(out, "run", "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    clock = [3600 * line["gpu_hours"] / flags.ranks for line in lines]  # from step to step, whatever is done between
    return {"seconds": differences(clock),
            "tokens": [line["tokens"] for line in lines[1:]], "completion": [line["length"] for line in lines[1:]],
            "phases": {name: round(median(line["seconds"][name] for line in lines[1:]), 4) for name in lines[1]["seconds"]}}


def theirs(folder: Path, flags) -> dict:
    """In the peer's environment: what `ours` returns, and the versions that made it."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from reward import score

    class Clock(TrainerCallback):
        def __init__(self):
            self.ends, self.lines = [], []

        def on_step_end(self, *_, **__):
            synchronize(flags.device)
            self.ends.append(time.process_time() if flags.clock == "cpu" else time.perf_counter())

        def on_log(self, args, state, control, logs=None, **_):
            if "num_tokens" in logs:
                self.lines.append(logs)

    rows, gpu, ranks = flags.prompts * flags.group, flags.device == "cuda", int(os.environ.get("WORLD_SIZE", 1))
    batch = 8 if flags.side == "as it comes" else min(rows // ranks, flags.peer_batch or (32 if gpu else rows))
    tuned = {"bf16": gpu, "gradient_checkpointing": False, "model_init_kwargs": {"dtype": "bfloat16" if gpu else "float32"}}
    ways = {"as it comes": {}, "generate": {}, "continuous batching": {"use_transformers_continuous_batching": True},
            "vllm": {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4,
                     "vllm_max_model_length": 64 + flags.max_new}}
    if not gpu:  # which otherwise takes most of the memory of the machine for its pages
        pages = rows * -(-(64 + flags.max_new) // 32) + 8
        ways["continuous batching"]["transformers_continuous_batching_config"] = {
            "page_size": 32, "num_blocks": pages, "max_batch_tokens": max(1024, rows)}
    config = GRPOConfig(
        output_dir=str(folder / "trl"), num_generations=flags.group, max_completion_length=flags.max_new, temperature=1.0,
        top_k=0, top_p=1.0, per_device_train_batch_size=batch, gradient_accumulation_steps=rows // (batch * ranks),
        max_steps=flags.steps + 1, learning_rate=1e-6, lr_scheduler_type="constant", beta=0.0, num_iterations=1,
        shuffle_dataset=False, use_cpu=not gpu, ddp_backend="gloo" if ranks > 1 else None, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, **ways[flags.side], **({} if flags.side == "as it comes" else tuned))  # fmt: skip
    clock, problems = Clock(), json.loads((folder / "problems.json").read_text())
    trainer = GRPOTrainer(
        model=str(folder), args=config, train_dataset=Dataset.from_list(problems), callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=lambda completions, answer, **_: [score(c, a) for c, a in zip(completions, answer, strict=True)])
    trainer.train()
    total = [line["num_tokens"] for line in clock.lines]
    names = ("trl", "torch", "transformers", "accelerate", "vllm")
    return {"seconds": differences(clock.ends), "tokens": differences(total),
            "completion": [line["completions/mean_length"] for line in clock.lines[1:]],
            "device": trainer.accelerator.device.type,
            "versions": {f"peer's {name}": metadata.version(name) for name in names if find_spec(name)}}


def torchrun(ranks: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []


def run(command: list[str], flags, threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=flags.limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done within --limit {flags.limit} seconds") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{(done.stderr or done.stdout)[-1500:]}")
    return done.stdout


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, default=Path(sys.executable), help="Python of an environment with TRL")
    parser.add_argument("--shape", choices=SHAPES, default="0.5B" if gpu else "tiny")
    parser.add_argument("--prompts", type=int, default=64 if gpu else 32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--max-new", type=int, default=512 if gpu else 32, help="tokens of every completion")
    parser.add_argument("--steps", type=int, default=2 if gpu else 5, help="measured steps of a process")
    parser.add_argument("--rounds", type=int, default=1 if gpu else 2, help="processes of each side, in turns")
    parser.add_argument("--ranks", type=int, default=1, help="processes on a CPU, by torchrun")
    parser.add_argument("--threads", type=int, default=1, help="of each process, on the CPU")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time of the process, for one "
                        "thread on a machine where other work has the cores, so that wall time means little")
    parser.add_argument("--peer-batch", type=int, default=0, help="TRL's sequences of a micro-batch; 0: all, or 32 on a GPU")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS[1:] if gpu else PEERS[:3], help="ways to run TRL")
    parser.add_argument("--limit", type=int, default=150 if gpu else 600, help="seconds of a process, its start included")
    parser.add_argument("--ours", default="--kv-gb 8" if gpu else "", help="more flags of grpo.py")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    flags.device = "cuda" if gpu else "cpu"
    if flags.side:
        found = theirs(flags.folder, flags)
        return print(json.dumps(found)) if os.environ.get("RANK", "0") == "0" else None
    del flags.side, flags.folder  # the record has no use for them
    torch.set_num_threads(flags.threads)
    if subprocess.run([flags.peer_python, "-c", "import trl"], capture_output=True).returncode:
        raise SystemExit(f"{flags.peer_python} cannot import trl. Make an environment for it and name its Python:\n"
                         "    python -m venv trl && trl/bin/pip install torch trl\n"
                         "    python -m bench.bench_step --peer-python trl/bin/python")
    rows = {name: {"name": name, "seconds": []} for name in ("ours", *flags.peers)}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), flags)
        command = [__file__, *sys.argv[1:], "--folder", folder, "--side"]
        for _ in range(flags.rounds):
            for name, row in rows.items():
                if "not_run" in row:
                    continue
                ranks = 1 if name == "as it comes" else flags.ranks
                try:
                    found = ours(Path(folder), flags) if name == "ours" else json.loads(run(
                        [str(flags.peer_python.absolute()), *torchrun(ranks), *command, name], flags,
                        flags.threads * flags.ranks // ranks).splitlines()[-1])
                except RuntimeError as reason:
                    if name == "ours":
                        raise
                    row["not_run"] = str(reason).strip().splitlines()[-1]
                    continue
                row |= found | {"seconds": row["seconds"] + found["seconds"]}
    work = rows["ours"]["tokens"]
    for row in rows.values():
        if "not_run" in row:
            continue
        there = row.pop("device", flags.device)
        if row["tokens"] != work or set(row["completion"]) != {flags.max_new} or there != flags.device:
            raise SystemExit(f"not the same work: {row['name']} counts {row['tokens']} tokens and completions of "
                             f"{row['completion']}, ours {work} and {rows['ours']['completion']}; it ran on {there}")
    best = median(rows["ours"]["seconds"])
    print(f"{flags.shape}: {flags.prompts} prompts x {flags.group} samples x {flags.max_new} tokens, {flags.device}, "
          f"{flags.ranks} x {flags.threads} thread(s), {flags.clock} time; "
          f"with prompts {sum(work) / len(work):,.0f} tokens a step, on all\n")
    print(f"{'seconds of a step':28}{'median':>10}{'least':>10}{'times ours':>12}{'of leasts':>11}")
    for name, row in rows.items():
        if "not_run" in row:
            print(f"{name:28}not run: {row['not_run'][:120]}")
            continue
        row |= {"median": median(row["seconds"]), "least": min(row["seconds"])}
        row |= {"ratio": row["median"] / best, "ratio_of_leasts": row["least"] / rows["ours"]["least"]}
        print(f"{name if name == 'ours' else 'TRL, ' + name:28}{row['median']:10.3f}{row['least']:10.3f}{row['ratio']:12.2f}"
              f"{row['ratio_of_leasts']:11.2f}")
    print("ours by phase: " + ", ".join(f"{name} {seconds:.3f}" for name, seconds in rows["ours"]["phases"].items()))
    versions = {k: v for row in rows.values() for k, v in row.pop("versions", {}).items()}
    record("step", flags, list(rows.values()), {}, ("*.py", "kernels", "bench/bench_step.py", "bench/common.py"), versions)


if __name__ == "__main__":
    main()
