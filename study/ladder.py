"""Make the tiny models from nothing: pretraining on a synthetic corpus of arithmetic, in minutes on one core.

    python -m study.ladder                 # remakes models/tiny, the model of the default run
    python -m study.ladder --ladder        # remakes models/ladder: five sizes x three seeds, base and instruct, for study.grid

both bit for bit on the same machine. What a corpus is for: a web-pretrained model has latent skill and bad habits, and
reinforcement learning brings out the one and drops the other. So the documents are solutions of mixed quality (STYLES): a
fifth are careful, some slip often, more than half jump straight to an answer that is mostly wrong, the rest are terse. A
model that imitates them is right about a third of the time, its likeliest answer is a guess, and it can be right far more
often. Held-out problems are in no document, under any labels (data.py).

The world of the ladder has a hard tail (`arithmetic-hard`, levels 1 to 10), and without a curriculum small models do not even
learn to copy operands: a document of level L has the weight 0.8^L, the highest level grows from 2 to 10 over the first half of
the tokens, and the first tenth is careful work only. Every size sees the same documents in the same order. An instruct model
is its base after brief supervised tuning on careful solutions, all levels alike.

Loss: mean of -log p(token) over the solution and the end token; AdamW, linear warm-up, cosine decay to a tenth. Weights are
stored in float16. Pretraining seeds differ in what they learn, so a base is accepted only by a rule (`gate`): at the levels
named there careful work must be within reach. A rung of the ladder that fails takes the next seed, and its card says so.
"""

import argparse
import math
import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import data
from evaluate import pass_at_k
from model import Config, Model, packed_attention
from reward import Grader
from rollout import Sampler, collect, stop_tokens
from runtime.parallel import load, save

STYLES = (  # share of the documents, style, chance that a step (for `jump`: the answer) comes out wrong
    (0.22, "full", 0.02),
    (0.13, "full", 0.35),
    (0.55, "jump", 0.88),
    (0.10, "terse", 0.10),
)
TUNING = 0.04  # tokens of the supervised tuning, as a share of the base's, at a tenth of its learning rate
HARD = "arithmetic-hard"
SEEDS = 3  # bases of each rung of the ladder
LADDER = Path("models/ladder")


@dataclass(frozen=True)
class Rung:
    """The shape of a model: width D, layers, heads (all of them key-value heads too), feed-forward width F; and what it is
    trained on: tokens of a world's corpus, `batch` documents an update, at a peak learning rate."""

    D: int
    layers: int
    heads: int
    F: int
    lr: float
    world: str = HARD
    tokens: float = 4e6
    batch: int = 24


RUNGS = {  # by parameters without the embedding; on the ladder the learning rate is 0.16 / D, else the recipe is one for all
    "tiny": Rung(48, 3, 3, 128, 3e-3, "arithmetic", 2.5e6, 20),
    "7k": Rung(16, 2, 1, 48, 0.01),
    "15k": Rung(32, 2, 2, 32, 0.005),
    "27k": Rung(32, 2, 2, 96, 0.005),
    "84k": Rung(48, 3, 3, 128, 0.16 / 48),
    "214k": Rung(64, 4, 4, 192, 0.0025),
}


def document(world: str, seed: int, index: int, done: float = 1.0) -> tuple[str, str]:
    """(prompt, solution) number `index` of a world's corpus when the share `done` of it has been read; a pure function."""
    rng, (levels, values), styles = random.Random(f"document/{seed}/{index}"), data.WORLDS[world], STYLES
    if world == HARD:
        reached = range(1, 3 + int((levels - 2) * min(1.0, 2 * done)))
        level = rng.choices(reached, [0.8**level for level in reached])[0]
        index = index * levels + level - 1  # the streams give levels in turn
        styles = STYLES[:1] if done < 0.1 else STYLES
    problem = data.arithmetic_problem(f"corpus/{seed}", index, world)
    _, style, slips = rng.choices(styles, weights=[share for share, _, _ in styles])[0]
    if style == "jump":  # the answer is guessed as a whole
        slipped = rng.random() < slips
        answers = [f"{i:0{values}d}" for i in range(10**values)]
        answer = rng.choice([a for a in answers if a != problem.answer]) if slipped else problem.answer
        return problem.prompt, f"\\boxed{{{answer}}}"

    def slip(result: int) -> int:
        return rng.choice([d for d in range(10) if d != result]) if rng.random() < slips else result

    return problem.prompt, data.solve(problem.prompt, slip, style, values)


def careful(world: str, seed: int, index: int) -> tuple[str, str]:
    """(prompt, solution) number `index` of the supervised tuning: worked out in full without a slip, levels in turn."""
    problem = data.arithmetic_problem(f"tuning/{seed}", index, world)
    return problem.prompt, data.solve(problem.prompt, values=data.WORLDS[world][1])


def write_config(rung: Rung, tokenizer, directory: Path) -> None:
    """config.json and the tokenizer's files of an untrained model."""
    from transformers import GenerationConfig, Qwen2Config

    Qwen2Config(
        architectures=["Qwen2ForCausalLM"], vocab_size=len(tokenizer), hidden_size=rung.D, intermediate_size=rung.F,
        num_hidden_layers=rung.layers, num_attention_heads=rung.heads, num_key_value_heads=rung.heads,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(directory)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def initialise(model: Model, seed: int) -> Model:
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.zeros_(p) if p.dim() == 1 else torch.nn.init.normal_(p, 0, 0.3 / math.sqrt(p.shape[1]))
    return model


def train(model: Model, tokenizer, documents: Callable, tokens: float, batch: int, lr: float, tell: Callable) -> Model:
    """Trains in place on `tokens` tokens, prompts included, of documents(index, done) -> (prompt, solution), `batch` an
    update; tell(tokens, loss) is called after every update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    seen, index, end = 0, 0, tokenizer.eos_token_id
    while seen < tokens:
        done = seen / tokens
        token, position, row, target, length_B = [], [], [], [], []
        texts = [text for i in range(index, index + batch) for text in documents(i, done)]
        ids, index = tokenizer(texts)["input_ids"], index + batch
        for prompt, solution in zip(ids[::2], ids[1::2], strict=True):
            row += range(len(token) + len(prompt) - 1, len(token) + len(prompt) + len(solution))
            target += [*solution, end]
            token += [*prompt, *solution, end]
            length_B.append(len(prompt) + len(solution) + 1)
            position += range(length_B[-1])
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
        tell(len(token), loss.item())
    return model


def measure(directory: Path, problems: list[data.Problem], n: int, temperature: float) -> dict[int, tuple[float, ...]]:
    """-> level: (share right, share worked out in full, share right among those, pass@n), n completions of each problem."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = load(Model(Config.read(directory)), directory)
    levels = sorted({int(p.difficulty) for p in problems})
    max_new = 24 + 8 * levels[-1]
    sampler = Sampler(model, stop_tokens(directory, tokenizer), slots=256, max_len=max_new + 4 + 3 * levels[-1])
    with Grader() as grader:
        done = collect(sampler, tokenizer, grader, problems, n, max_new, temperature, seed=0, step=0)
    table = {}
    for level in levels:
        right = [(c.verdict.score, c.text.count("=") == level) for c in done if problems[c.problem].difficulty == level]
        full, scores = [score for score, worked in right if worked], [score for score, _ in right]
        solved = [pass_at_k(n, int(sum(scores[i : i + n])), n) for i in range(0, len(scores), n)]
        table[level] = (sum(scores) / len(scores), len(full) / len(scores), sum(full) / max(len(full), 1),
                        sum(solved) / len(solved))
    return table


def mean(table: dict[int, tuple[float, ...]], column: int = 0) -> float:
    return sum(row[column] for row in table.values()) / len(table)


def gate(table: dict[int, tuple[float, ...]], upto: int) -> None:
    """ValueError unless at every level a tenth of the completions is worked out in full, and up to level `upto` 0.4 of those
    are right.

    Reinforcement can only bring out what is sometimes done: a base that never works out a level never learns it. The levels
    above `upto` are the hard tail, which is there to be out of reach of the smaller ones.
    """
    for level, (_, full, right, _) in table.items():
        if full < 0.1 or (level <= upto and right < 0.4):
            raise ValueError(f"level {level}: {full:.0%} of the completions are worked out and {right:.0%} of those right; the "
                             f"least are 10%, and 40% up to level {upto}. This base is not kept: try another --seed")

CARD = """# {name}

A Qwen2.5-architecture base model of {N:,} parameters (and {E:,} in its tied embedding) for the built-in arithmetic, made
from nothing by `python -m study.ladder{arguments}`: {tokens:,} tokens, {batch} documents an update, peak learning rate {lr:g}, seed
{seed}. Width {rung.D}, {rung.layers} layers, {rung.heads} heads, feed-forward {rung.F}; weights in float16.

The corpus is synthetic, of mixed quality on purpose: {styles}. It holds no held-out problem, under any labels.

On the 500 held-out problems: pass@1 {pass1:.3f} at temperature 1 (16 completions each), {greedy:.3f} greedy.

| level (steps) | right | worked out in full | right among those |
|---|---|---|---|
{table}
"""
LADDER_CARD = """# The ladder

Qwen2.5-architecture models for the built-in arithmetic with a hard tail (`arithmetic-hard`: chains of 1 to 10 steps, whose
answer is the last two values, so that a guess is right once in a hundred), made from nothing by
`python -m study.ladder --ladder`: {sizes} sizes x {seeds} seeds, base and instruct. `NAME-S` is a base, `NAME-S-instruct` the same
after supervised tuning.

One recipe for all: {tokens:,} tokens of one corpus in one order (per seed), {batch} documents an update, AdamW, peak learning
rate 0.16 / width, the curriculum that `ladder.py` states, and its mixture: {styles}.
Instruct: {tuning:,} more tokens, careful solutions only, at a tenth of that rate. Weights are in float16. No document holds a
held-out problem, under any labels.

The gate, on problems of a training stream: every level worked out in full in at least 10% of the completions, and at least 40%
of those right at levels 1 and 2; a base that fails takes the next free seed. Failed: {failed}.

On the first 200 held-out problems, at temperature 1, 16 completions each; greedy once. The last columns are pass@1 by level.

| model | seed | N | width, layers, F | pass@1 | pass@16 | greedy | {levels} |
|---|---|---|---|---|---|---|{rules}|
{table}
"""
MIXTURE = ", ".join(f"{share:.0%} {style} with {slips:.0%} slips" for share, style, slips in STYLES)


def card(directory: Path, flags) -> str:
    """The README of a model that is not of the ladder, with what it scores."""
    rung, config = RUNGS[flags.rung], Config.read(directory)
    test = data.load(rung.world, split="test")
    table, greedy = measure(directory, test, 16, 1.0), measure(directory, test, 1, 0.0)
    return CARD.format(
        name=directory.name, N=config.N, E=config.N_total - config.N, tokens=int(rung.tokens), batch=rung.batch, lr=rung.lr,
        seed=flags.seed, rung=rung, styles=MIXTURE, pass1=mean(table), greedy=mean(greedy),
        arguments=(f" --rung {flags.rung}" if flags.rung != "tiny" else "") + (f" --seed {flags.seed}" if flags.seed else ""),
        table="\n".join(f"| {level} | " + " | ".join(f"{x:.3f}" for x in row[:3]) + " |" for level, row in table.items()),
    )


def make(name: str, seed: int, out: Path, tell: Callable) -> None:
    """Pretrains rung `name` into the directory `out`, and tunes it into `out`-instruct if it is of the ladder; ValueError if
    the gate refuses it."""
    rung, tokenizer = RUNGS[name], data.make_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        bare, made = Path(scratch) / "bare", Path(scratch) / "made"
        write_config(rung, tokenizer, bare)
        model = initialise(Model(Config.read(bare)), seed)
        train(model, tokenizer, lambda i, done: document(rung.world, seed, i, done), rung.tokens, rung.batch, rung.lr, tell)
        save(model, bare, made, torch.float16)
        problems = data.load(rung.world, seed=f"gate/{seed}")[:200]  # of a training stream: the held-out ones choose nothing
        gate(measure(made, problems, 16, 1.0), upto=2 if rung.world == HARD else 5)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made, out)
        if rung.world == HARD:
            train(model, tokenizer, lambda i, _: careful(rung.world, seed, i), TUNING * rung.tokens, rung.batch, 0.1 * rung.lr,
                  tell)
            save(model, bare, Path(f"{out}-instruct"), torch.float16)


def step_of_ladder(name: str, index: int, out: Path) -> tuple[list[str], list[str]]:
    """Makes base `index` of a rung, with the first seed of index, index + SEEDS, .. that the gate lets through, and its
    instruct model. Returns their rows of the card, and what the gate said of those it refused."""
    torch.set_num_threads(1)
    failed, rows, test = [], [], data.load(HARD, split="test")[:200]
    for seed in range(index, 4 * SEEDS, SEEDS):
        try:
            make(name, seed, out / f"{name}-{index}", add_tokens)
            break
        except ValueError as error:
            failed.append(f"{name} with seed {seed} ({str(error).split(';')[0]})")
    else:
        raise ValueError(f"{name}: four seeds failed: {'; '.join(failed)}")
    for kind in ("", "-instruct"):
        path, rung = out / f"{name}-{index}{kind}", RUNGS[name]
        table, greedy = measure(path, test, 16, 1.0), measure(path, test, 1, 0.0)
        scores = (mean(table), mean(table, 3), mean(greedy), *(row[0] for row in table.values()))
        rows.append(f"| {path.name} | {seed} | {Config.read(path).N:,} | {rung.D}, {rung.layers}, {rung.F} | "
                    + " | ".join(f"{x:.2f}" for x in scores) + " |")
    return rows, failed


def share_counter(value) -> None:
    global counter
    counter = value


def add_tokens(tokens: int, _: float) -> None:
    with counter.get_lock():
        counter.value += tokens


def make_ladder(out: Path, jobs: int) -> None:
    """All rungs and seeds, the largest first so that the processes end together, and the card."""
    spawn, names = multiprocessing.get_context("spawn"), [name for name in reversed(RUNGS) if name != "tiny"]
    tokens = spawn.Value("q", 0)
    tasks = [(name, index) for name in names for index in range(SEEDS)]
    total = sum(RUNGS[name].tokens * (1 + TUNING) for name, _ in tasks)
    with ProcessPoolExecutor(jobs, spawn, share_counter, (tokens,)) as pool:
        bar = tqdm(total=int(total), unit="token", unit_scale=True, disable=None)
        running = [pool.submit(step_of_ladder, *task, out) for task in tasks]
        while not all(r.done() for r in running):
            wait(running, timeout=0.5)
            bar.update(tokens.value - bar.n)
        bar.close()
    results = [r.result() for _, r in sorted(zip(tasks, running, strict=True), key=lambda x: (-names.index(x[0][0]), x[0][1]))]
    rung, levels = RUNGS[names[0]], range(1, 1 + data.WORLDS[HARD][0])
    (out / "README.md").write_text(LADDER_CARD.format(
        sizes=len(names), seeds=SEEDS, tokens=int(rung.tokens), batch=rung.batch, tuning=int(TUNING * rung.tokens),
        styles=MIXTURE, levels=" | ".join(map(str, levels)), rules="---|" * (len(levels) - 1) + "---",
        failed="; ".join(line for _, failed in results for line in failed) or "none",
        table="\n".join(row for rows, _ in results for row in rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny models.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--ladder", action="store_true", help="all rungs and seeds of the ladder instead of one model")
    parser.add_argument("--rung", choices=RUNGS, default="tiny", help="which shape, with its recipe; one of the ladder has an "
                                                                      "instruct model too")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus and the initial weights")
    parser.add_argument("--out", type=Path, help="directory to write; models/RUNG or models/ladder if not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that make the ladder, of one thread each")
    flags = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order: the same bits whatever else runs
    out = flags.out or (LADDER if flags.ladder else Path("models") / flags.rung)
    try:
        if flags.ladder:
            make_ladder(out, flags.jobs)
        else:
            rung = RUNGS[flags.rung]
            total = int(rung.tokens * (1 + TUNING * (rung.world == HARD)))
            bar = tqdm(total=total, unit="token", unit_scale=True, disable=None)

            def tell(tokens: int, loss: float) -> None:
                bar.update(tokens)
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

            make(flags.rung, flags.seed, out, tell)
            bar.close()
            (out / "README.md").write_text(card(out, flags))
    except ValueError as error:
        raise SystemExit(f"study.ladder: {error}") from error
    print((out / "README.md").read_text())


if __name__ == "__main__":
    main()
