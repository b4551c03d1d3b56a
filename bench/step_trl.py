"""TRL's side of bench_step, in TRL's environment: python -m bench.step_trl FOLDER WAY

FOLDER holds the checkpoint, problems.json and flags.json. WAY is "as it comes": TRL's defaults
(micro-batches of 8, recomputation, bfloat16 autocast) wherever the work does not fix a setting. Or
it is a way to generate, and the rest is tuned: the largest micro-batches, nothing recomputed,
float32 on a CPU and weights in bfloat16 on a GPU. Prints the fields of bench_step.Measured.
"""

import json
import os
import sys
import time
from argparse import Namespace
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bench.common import GPU, synchronise
from reward import score

PACKAGES = ("trl", "torch", "transformers", "accelerate", "vllm")
PAGE = 32  # tokens of a page of its continuous batching


class Clock(TrainerCallback):
    """When each step ended, and what TRL logged of it."""

    def __init__(self, now):
        self.now = now
        self.ends = []
        self.lines = []

    def on_step_end(self, *_, **__):
        synchronise()
        self.ends.append(self.now())

    def on_log(self, args, state, control, logs=None, **_):
        if "num_tokens" in logs:
            self.lines.append(logs)


def generation(way: str, rows: int, longest: int) -> dict:
    """Settings of GRPOConfig for a way to generate `rows` sequences of at most `longest` tokens."""
    if way == "vllm":
        return {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": 0.4,
            "vllm_max_model_length": longest,
        }
    if way == "continuous batching":
        settings = {"use_transformers_continuous_batching": True}
        if not GPU:  # unless told, it takes most of a machine's memory for its pages
            settings["transformers_continuous_batching_config"] = {
                "page_size": PAGE,
                "num_blocks": rows * ((longest - 1) // PAGE + 1) + 8,
                "max_batch_tokens": max(1024, rows),
            }
        return settings
    return {}


def rewards(completions, answer, **_):
    pairs = zip(completions, answer, strict=True)
    return [score(text, truth) for text, truth in pairs]


def differences(values: list) -> list:
    return [b - a for a, b in pairwise(values)]


def main() -> None:
    folder, way = Path(sys.argv[1]), sys.argv[2]
    flags = Namespace(**json.loads((folder / "flags.json").read_text()))
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    rows = flags.prompts * flags.group
    if way == "as it comes":
        batch = 8
        tuned = {}
    else:
        batch = min(rows // ranks, flags.peer_batch or (32 if GPU else rows))
        tuned = {
            "bf16": GPU,
            "gradient_checkpointing": False,
            "model_init_kwargs": {"dtype": "bfloat16" if GPU else "float32"},
            **generation(way, rows, 64 + flags.max_new),
        }
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        num_generations=flags.group,
        max_completion_length=flags.max_new,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=rows // (batch * ranks),
        max_steps=flags.steps + 1,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        beta=0.0,
        num_iterations=1,
        shuffle_dataset=False,
        use_cpu=not GPU,
        ddp_backend="gloo" if ranks > 1 else None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **tuned,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<never>"})  # a new id, which no logit stands for
    clock = Clock(time.process_time if flags.clock == "cpu" else time.perf_counter)
    trainer = GRPOTrainer(
        model=str(folder),
        args=config,
        train_dataset=Dataset.from_list(json.loads((folder / "problems.json").read_text())),
        callbacks=[clock],
        processing_class=tokenizer,
        reward_funcs=rewards,
    )
    trainer.train()
    versions = {}
    for name in PACKAGES:
        if find_spec(name):
            versions[f"peer's {name}"] = metadata.version(name)
    found = {
        "seconds": differences(clock.ends),
        "tokens": differences([line["num_tokens"] for line in clock.lines]),
        "completion": [line["completions/mean_length"] for line in clock.lines[1:]],
        "device": trainer.accelerator.device.type,
        "versions": versions,
    }
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))


if __name__ == "__main__":
    main()
