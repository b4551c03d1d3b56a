"""Make the tiny base models from nothing: pretraining on a synthetic corpus of arithmetic, in minutes on one core.

    python ladder.py                 # remakes models/tiny, bit for bit on the same machine

What the corpus is for: a web-pretrained model has latent skill and bad habits, and reinforcement learning brings out the
one and drops the other. So the documents are solutions of mixed quality (STYLES): a third are careful, a fifth slip often,
a third jump straight to an answer that is mostly wrong, the rest are terse. A model that imitates them is right about a
third of the time, and can be right nearly always. Held-out problems are in no document, under any labels (data.py).

Loss: mean of -log p(token) over the solution and the end token; AdamW, linear warm-up, cosine decay to a tenth. Weights are
stored in float16. Pretraining seeds differ in what they learn, so a base is accepted only by a rule (`gate`): given careful
work, every level must be within reach, or the model is not written.
"""

import argparse
import math
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import data
from model import Config, Model, packed_attention, save

STYLES = (  # share of the documents, style, chance that a step (for `jump`: the answer) comes out wrong
    (0.35, "full", 0.02),
    (0.20, "full", 0.35),
    (0.35, "jump", 0.80),
    (0.10, "terse", 0.10),
)


@dataclass(frozen=True)
class Rung:
    """The shape of a model: width D, layers, heads (all of them key-value heads too), feed-forward width F."""

    D: int
    layers: int
    heads: int
    F: int


RUNGS = {"tiny": Rung(48, 3, 3, 128)}


def document(seed: int, index: int) -> tuple[str, str]:
    """(prompt, solution) number `index` of the corpus; a pure function of both arguments."""
    rng = random.Random(f"document/{seed}/{index}")
    problem = data.arithmetic_problem(f"corpus/{seed}", index)
    _, style, slips = rng.choices(STYLES, weights=[share for share, _, _ in STYLES])[0]
    if style == "jump":  # the answer is guessed as a whole
        slipped = rng.random() < slips
        answer = rng.choice([d for d in "0123456789" if d != problem.answer]) if slipped else problem.answer
        return problem.prompt, f"\\boxed{{{answer}}}"

    def slip(result: int) -> int:
        return rng.choice([d for d in range(10) if d != result]) if rng.random() < slips else result

    return problem.prompt, data.solve(problem.prompt, slip, style)


def write_config(rung: Rung, tokenizer, directory: Path) -> None:
    """config.json and the tokenizer's files of an untrained model."""
    from transformers import GenerationConfig, Qwen2Config

    Qwen2Config(
        architectures=["Qwen2ForCausalLM"], vocab_size=len(tokenizer), hidden_size=rung.D, intermediate_size=rung.F,
        num_hidden_layers=rung.layers, num_attention_heads=rung.heads, num_key_value_heads=rung.heads,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(directory)  # fmt: skip
    GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def pretrain(model: Model, tokenizer, seed: int, tokens: int, batch: int, lr: float) -> Model:
    """Trains in place on `tokens` tokens of the corpus, prompts included, `batch` documents at a time."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.zeros_(p) if p.dim() == 1 else torch.nn.init.normal_(p, 0, 0.3 / math.sqrt(p.shape[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    seen, index, end = 0, 0, tokenizer.eos_token_id
    bar = tqdm(total=tokens, unit="token", unit_scale=True, disable=None)
    while seen < tokens:
        token, position, row, target, length_B = [], [], [], [], []
        for _ in range(batch):
            prompt, solution = (tokenizer.encode(text) for text in document(seed, index))
            row += range(len(token) + len(prompt) - 1, len(token) + len(prompt) + len(solution))
            target += [*solution, end]
            token += [*prompt, *solution, end]
            length_B.append(len(prompt) + len(solution) + 1)
            position += range(length_B[-1])
            index += 1
        done = seen / tokens
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, done / 0.02 + 0.01) * (0.55 + 0.45 * math.cos(math.pi * done))
        token_T, position_T, row_R, target_R = (torch.tensor(x) for x in (token, position, row, target))
        logp_R, _ = model(token_T, position_T, packed_attention(length_B, "cpu"), row_R, target_R)
        loss = -logp_R.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += len(token)
        bar.update(len(token))
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny base models.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rung", choices=RUNGS, default="tiny", help="which shape")
    parser.add_argument("--out", type=Path, help="directory to write; models/RUNG if not given, and replaced")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus and the initial weights")
    parser.add_argument("--tokens", type=float, default=2.5e6, help="to train on")
    parser.add_argument("--batch", type=int, default=20, help="documents of an update")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    flags = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order: the same bits whatever else runs
    tokenizer = data.make_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        write_config(RUNGS[flags.rung], tokenizer, Path(scratch))
        model = Model(Config.read(scratch))
        print(f"{flags.rung}: {model.config.N:,} parameters + {model.config.N_total - model.config.N:,} in the embedding")
        pretrain(model, tokenizer, flags.seed, int(flags.tokens), flags.batch, flags.lr)
        out = flags.out or Path("models") / flags.rung
        shutil.rmtree(out, ignore_errors=True)
        save(model, scratch, out, torch.float16)
    print(out)


if __name__ == "__main__":
    main()
