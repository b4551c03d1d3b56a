"""Make the tiny models from nothing: pretraining on a synthetic corpus of arithmetic.

    python -m study.ladder             # models/tiny, the model of the default run, in minutes
    python -m study.ladder --ladder    # models/ladder: five sizes x three seeds, base and instruct

Both give the same bits on the same machine.

Why this corpus. A model pretrained on the web has latent skill and bad habits; reinforcement
learning brings out the skill and drops the habits. So the documents are solutions of mixed quality
(STYLES): a fifth are careful, some slip often, more than half jump to an answer that is mostly
wrong, the rest are terse. A model that imitates them is right about a third of the time, its
likeliest answer is a guess, and it can be right far more often. No document holds a held-out
problem, under any labels (data.py).

The ladder's world has a hard tail (`arithmetic-hard`, levels 1 to 10). Small models do not even
learn to copy operands there without a curriculum: a document of level L has weight 0.8^L, the
highest level grows from 2 to 10 over the first half of the tokens, and the first tenth is careful
work only. Every size sees the same documents in the same order. An instruct model is its base
after brief supervised tuning on careful solutions, with all levels alike.

Training minimises the mean of -log p(token) over the solution and the end token, by AdamW with
linear warm-up and cosine decay to a tenth. Weights are stored in float16. Pretraining seeds differ
in what they learn, so a base is accepted by a rule (`gate`): careful work must be within reach at
every level. A rung of the ladder whose base is refused takes the next seed; its card says so.
"""
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from tqdm import tqdm

import data
from model import Config, Model, packed_attention
from reward import Grader
from rollout import Rollout, Sampler, stop_tokens
from runtime.parallel import load, save

HARD = "arithmetic-hard"
SEEDS = 3      # bases of each rung of the ladder
TUNING = 0.04  # tokens of the supervised tuning, as a share of the tokens of the base
LADDER = Path("models/ladder")


class Style(NamedTuple):
    """How the solutions of a part of the corpus look."""
    share: float  # of the documents
    form: str     # see data.solve
    slips: float  # chance that a step comes out wrong; for "jump", that the answer does


STYLES = (
    Style(0.22, "full", 0.02),
    Style(0.13, "full", 0.35),
    Style(0.55, "jump", 0.88),
    Style(0.10, "terse", 0.10),
)


@dataclass(frozen=True)
class Rung:
    """The shape of a model, and its pretraining."""
    D: int       # width
    layers: int
    heads: int   # all of them key-value heads too
    F: int       # feed-forward width
    lr: float    # peak learning rate
    world: str = HARD
    tokens: float = 4e6
    batch: int = 24  # documents of an update


# Named by parameters without the embedding. On the ladder the learning rate is 0.16 / D.
RUNGS = {
    "tiny": Rung(48, 3, 3, 128, 3e-3, "arithmetic", 2.5e6, 20),
    "7k": Rung(16, 2, 1, 48, 0.01),
    "15k": Rung(32, 2, 2, 32, 0.005),
    "27k": Rung(32, 2, 2, 96, 0.005),
    "84k": Rung(48, 3, 3, 128, 0.16 / 48),
    "214k": Rung(64, 4, 4, 192, 0.0025),
}


# ---------------------------------------------------------------- The corpus
def document(world: str, seed: int, index: int, done: float = 1.0) -> tuple[str, str]:
    """(prompt, solution) number `index` of a world's corpus: a pure function.

    done: the share of the corpus that was read before, which the curriculum depends on.
    """
    rng = random.Random(f"document/{seed}/{index}")
    levels, digits = data.WORLDS[world]
    styles = STYLES
    if world == HARD:
        highest = 2 + int((levels - 2) * min(1.0, 2 * done))
        reached = range(1, highest + 1)
        weights = [0.8**level for level in reached]
        level = rng.choices(reached, weights)[0]
        index = index * levels + level - 1  # a stream of problems gives the levels in turn
        if done < 0.1:
            styles = STYLES[:1]
    problem = data.arithmetic_problem(f"corpus/{seed}", index, world)
    shares = [style.share for style in styles]
    style = rng.choices(styles, weights=shares)[0]
    if style.form == "jump":
        return problem.prompt, guess(problem.answer, style.slips, digits, rng)

    def slip(result: int) -> int:
        if rng.random() >= style.slips:
            return result
        return rng.choice([digit for digit in range(10) if digit != result])

    return problem.prompt, data.solve(problem.prompt, slip, style.form, digits)


def guess(answer: str, slips: float, digits: int, rng: random.Random) -> str:
    """An answer without working, wrong with probability `slips`."""
    if rng.random() < slips:
        answers = [f"{number:0{digits}d}" for number in range(10**digits)]
        answers.remove(answer)
        answer = rng.choice(answers)
    return f"\\boxed{{{answer}}}"


def careful(world: str, seed: int, index: int) -> tuple[str, str]:
    """(prompt, solution) number `index` of the tuning: worked out without a slip, levels in turn.
    """
    problem = data.arithmetic_problem(f"tuning/{seed}", index, world)
    _, digits = data.WORLDS[world]
    return problem.prompt, data.solve(problem.prompt, values=digits)


# ---------------------------------------------------------------- Training
def write_config(rung: Rung, tokenizer, directory: Path) -> None:
    """config.json and the tokenizer's files of an untrained model."""
    from transformers import GenerationConfig, Qwen2Config

    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=rung.D,
        intermediate_size=rung.F,
        num_hidden_layers=rung.layers,
        num_attention_heads=rung.heads,
        num_key_value_heads=rung.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        **special,
    )
    config.save_pretrained(directory)
    GenerationConfig(**special).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def initialise(model: Model, seed: int) -> Model:
    """Zero biases, normal matrices of standard deviation 0.3 / sqrt(columns), norms as they are."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "norm" in name:
            continue
        if p.dim() == 1:
            torch.nn.init.zeros_(p)
        else:
            torch.nn.init.normal_(p, 0, 0.3 / math.sqrt(p.shape[1]))
    return model


def mean_loss(model: Model, ids: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, int]:
    """-> (mean of -log p over all solution tokens, tokens read), of (prompt ids, solution ids)."""
    token, position, row, target, length = [], [], [], [], []
    for prompt, solution in ids:
        first = len(token) + len(prompt) - 1  # this row predicts the first token of the solution
        row += range(first, first + len(solution))
        target += solution
        token += prompt + solution
        length.append(len(prompt) + len(solution))
        position += range(length[-1])
    attend = packed_attention(length, "cpu")
    logp_R, _ = model(torch.tensor(token), torch.tensor(position), attend,
                      torch.tensor(row), torch.tensor(target))
    return -logp_R.mean(), len(token)


def train(model: Model, tokenizer, documents: Callable, tokens: float, batch: int, lr: float,
          bar: tqdm) -> list[float]:
    """Train in place on `tokens` tokens, prompts included. Returns the loss of every update.

    documents(index, done) -> (prompt, solution); `batch` of them make an update.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    losses = []
    seen = 0
    while seen < tokens:
        done = seen / tokens
        first = len(losses) * batch
        texts = []
        for index in range(first, first + batch):
            texts += documents(index, done)
        ids = tokenizer(texts)["input_ids"]
        solutions = [[*solution, tokenizer.eos_token_id] for solution in ids[1::2]]

        warmup = min(1.0, done / 0.02 + 0.01)
        cosine = 0.55 + 0.45 * math.cos(math.pi * done)
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup * cosine
        loss, read = mean_loss(model, list(zip(ids[::2], solutions, strict=True)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        seen += read
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        bar.update(read)
    return losses


# ---------------------------------------------------------------- Measuring
class Scores(NamedTuple):
    """How a model does at one level, as shares of its completions (`solved`: of the problems)."""
    right: float
    full: float           # worked out in full
    right_if_full: float
    solved: float         # right at least once in n completions: pass@n


def measure(directory: Path, problems: Sequence[data.Problem], n: int, temperature: float
            ) -> dict[int, Scores]:
    """{level: Scores} of n completions of each problem."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = load(Model(Config.read(directory)), directory)
    levels = sorted({int(problem.difficulty) for problem in problems})
    max_prompt = 4 + 3 * levels[-1]
    max_new = 24 + 8 * levels[-1]
    stop = stop_tokens(directory, tokenizer)
    sampler = Sampler(model, stop, slots=256, max_len=max_prompt + max_new)
    with Grader() as grader:
        rollout = Rollout(sampler, data.Renderer(tokenizer), grader, max_new, seed=0)
        completions = rollout.draw(problems, n, temperature, step=0)
    table = {}
    for level in levels:
        mine = [c for c in completions if problems[c.place].difficulty == level]
        table[level] = scores(mine, level)
    return table


def scores(completions: list, level: int) -> Scores:
    full = [c for c in completions if c.text.count("=") == level]
    problems = {c.place for c in completions}
    solved = {c.place for c in completions if c.verdict.score}
    return Scores(
        right=sum(c.verdict.score for c in completions) / len(completions),
        full=len(full) / len(completions),
        right_if_full=sum(c.verdict.score for c in full) / max(len(full), 1),
        solved=len(solved) / len(problems),
    )


def mean(table: dict[int, Scores], column: str = "right") -> float:
    return sum(getattr(row, column) for row in table.values()) / len(table)


def gate(table: dict[int, Scores], upto: int) -> None:
    """ValueError if a base is refused.

    At every level a tenth of the completions must be worked out in full, and up to level `upto` 40%
    of those must be right. Reinforcement only brings out what is sometimes done: a base that never
    works out a level never learns it. The levels above `upto` are the hard tail, which is meant to
    be out of reach of the smaller models.
    """
    for level, row in table.items():
        if row.full < 0.1 or (level <= upto and row.right_if_full < 0.4):
            raise ValueError(
                f"level {level}: {row.full:.0%} of the completions are worked out and "
                f"{row.right_if_full:.0%} of those right; 10% are needed, and 40% up to level "
                f"{upto}. This base is refused: try another seed")


# ---------------------------------------------------------------- Making models and their cards
def make(name: str, seed: int, out: Path, bar: tqdm) -> None:
    """Pretrain rung `name` into the directory `out`. ValueError if the gate refuses the base.

    A rung of the ladder is then tuned, into the directory OUT-instruct.
    """
    rung = RUNGS[name]
    tokenizer = data.make_tokenizer()

    def mixed(index, done):
        return document(rung.world, seed, index, done)

    def tuning(index, done):
        return careful(rung.world, seed, index)

    with tempfile.TemporaryDirectory() as scratch:
        bare = Path(scratch, "bare")
        made = Path(scratch, "made")
        write_config(rung, tokenizer, bare)
        model = initialise(Model(Config.read(bare)), seed)
        train(model, tokenizer, mixed, rung.tokens, rung.batch, rung.lr, bar)
        save(model, bare, made, torch.float16)
        # Problems of a training stream: the held-out ones must choose nothing.
        problems = data.Arithmetic(f"gate/{seed}", rung.world)[:200]
        gate(measure(made, problems, 16, 1.0), upto=2 if rung.world == HARD else 5)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made, out)
        if rung.world == HARD:
            tokens = TUNING * rung.tokens
            train(model, tokenizer, tuning, tokens, rung.batch, 0.1 * rung.lr, bar)
            save(model, bare, Path(f"{out}-instruct"), torch.float16)


CARD = """# {name}

A Qwen2.5-architecture base model of {N:,} parameters (and {E:,} in its tied embedding) for the
built-in arithmetic, made from nothing by `python -m study.ladder`: {tokens:,} tokens, {rung.batch}
documents an update, peak learning rate {rung.lr:g}, seed 0. Width {rung.D}, {rung.layers} layers,
{rung.heads} heads, feed-forward {rung.F}; weights in float16.

The corpus is synthetic, of mixed quality on purpose: {styles}.
It holds no held-out problem, under any labels.

On the 500 held-out problems: pass@1 {pass1:.3f} at temperature 1 (16 completions each),
{greedy:.3f} greedy.

| level (steps) | right | worked out in full | right among those |
|---|---|---|---|
{table}
"""
LADDER_CARD = """# The ladder

Qwen2.5-architecture models for the built-in arithmetic with a hard tail (`arithmetic-hard`: chains
of 1 to 10 steps, whose answer is the last two values, so that a guess is right once in a hundred),
made from nothing by `python -m study.ladder --ladder`: {sizes} sizes x {seeds} seeds, base and
instruct. `NAME-S` is a base, `NAME-S-instruct` the same after supervised tuning.

All models share one recipe: {tokens:,} tokens of one corpus in one order (per seed), {rung.batch}
documents an update, AdamW, peak learning rate 0.16 / width, and the curriculum that
`study/ladder.py` states. The corpus: {styles}.
Instruct models see {tuning:,} more tokens, careful solutions only, at a tenth of that rate. Weights
are in float16. No document holds a held-out problem, under any labels.

A gate decides which bases are kept, on problems of a training stream: at every level at least 10%
of the completions are worked out in full, and at levels 1 and 2 at least 40% of those are right. A
base that fails is replaced by one of the next free seed. Failed: {failed}.

Measured on the first 200 held-out problems, with 16 completions each at temperature 1, and one
greedy completion. The last columns are pass@1 by level.

| model | seed | N | width, layers, F | pass@1 | pass@16 | greedy | {levels} |
|---|---|---|---|---|---|---|{rules}|
{table}
"""
MIXTURE = ", ".join(f"{share:.0%} {form} with {slips:.0%} slips" for share, form, slips in STYLES)


def cells(values) -> str:
    """Cells of a row of a Markdown table."""
    return " | ".join(map(str, values))


def tiny_card(directory: Path) -> str:
    """The card of models/tiny, with its scores."""
    rung = RUNGS["tiny"]
    config = Config.read(directory)
    test = data.arithmetic_test(rung.world)
    table = measure(directory, test, 16, 1.0)
    rows = []
    for level, row in table.items():
        shares = [f"{share:.3f}" for share in row[:3]]
        rows.append(f"| {cells([level, *shares])} |")
    return CARD.format(
        name=directory.name, N=config.N, E=config.N_total - config.N, tokens=int(rung.tokens),
        rung=rung, styles=MIXTURE, pass1=mean(table), greedy=mean(measure(directory, test, 1, 0.0)),
        table="\n".join(rows))


def ladder_row(path: Path, rung: Rung, seed: int) -> str:
    """The line of a model in the ladder's card."""
    test = data.arithmetic_test(HARD)[:200]
    table = measure(path, test, 16, 1.0)
    greedy = measure(path, test, 1, 0.0)
    by_level = [row.right for row in table.values()]
    shares = [mean(table), mean(table, "solved"), mean(greedy), *by_level]
    model = [path.name, seed, f"{Config.read(path).N:,}", f"{rung.D}, {rung.layers}, {rung.F}"]
    return f"| {cells([*model, *(f'{share:.2f}' for share in shares)])} |"


def make_pair(name: str, index: int, out: Path) -> tuple[list[str], list[str]]:
    """Make base `index` of a rung and its instruct model.

    The seed is the first of index, index + SEEDS, .. that the gate accepts. Returns the two lines
    of the card, and what the gate said of the refused bases.
    """
    torch.set_num_threads(1)
    failed = []
    path = out / f"{name}-{index}"
    for seed in range(index, 4 * SEEDS, SEEDS):
        try:
            make(name, seed, path, tqdm(disable=True))
        except ValueError as error:
            reason, _, _ = str(error).partition(";")
            failed.append(f"{name} with seed {seed} ({reason})")
            continue
        both = path, Path(f"{path}-instruct")
        return [ladder_row(directory, RUNGS[name], seed) for directory in both], failed
    raise ValueError(f"{name}: the bases of four seeds were refused: {'; '.join(failed)}")


def make_ladder(out: Path, jobs: int) -> str:
    """Make all rungs and seeds, one process each, and return the card."""
    names = [name for name in RUNGS if name != "tiny"]
    # The largest first, so that the processes end together.
    tasks = [(name, index) for name in reversed(names) for index in range(SEEDS)]
    running = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for name, index in tasks:
            running[name, index] = pool.submit(make_pair, name, index, out)
        for future in tqdm(as_completed(running.values()), total=len(running), unit="pair"):
            future.result()
    rows, failed = [], []
    for name in names:
        for index in range(SEEDS):
            lines, refused = running[name, index].result()
            rows += lines
            failed += refused
    rung = RUNGS[names[0]]
    levels, _ = data.WORLDS[HARD]
    return LADDER_CARD.format(
        sizes=len(names), seeds=SEEDS, tokens=int(rung.tokens), rung=rung, styles=MIXTURE,
        tuning=int(TUNING * rung.tokens), levels=cells(range(1, levels + 1)),
        rules="|".join(["---"] * levels), failed="; ".join(failed) or "none",
        table="\n".join(rows))


# ---------------------------------------------------------------- The command
@dataclass
class Flags:
    ladder: bool = False  # make the ladder, five sizes x three seeds, instead of models/tiny
    out: str = ""  # directory to write; models/tiny or models/ladder if not given
    jobs: int = os.cpu_count() or 1  # processes that make the ladder, of one thread each


def main() -> None:
    flags = tyro.cli(Flags, description="Make the tiny models.")
    torch.set_num_threads(1)  # sums in one order: the same bits whatever else runs
    out = Path(flags.out or ("models/ladder" if flags.ladder else "models/tiny"))
    try:
        if flags.ladder:
            card = make_ladder(out, flags.jobs)
        else:
            with tqdm(total=int(RUNGS["tiny"].tokens), unit="token", unit_scale=True) as bar:
                make("tiny", 0, out, bar)
            card = tiny_card(out)
    except ValueError as error:
        sys.exit(f"study.ladder: {error}")
    (out / "README.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
