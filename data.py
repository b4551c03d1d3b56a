r"""Problems: from a file, from the hub, or from a generator that needs neither; how they are asked, and in which order.

The study's recipe: every mathematics problem is one user turn, `PROMPT`, for base and instruct models alike; problems
come easy to hard and are never shuffled; with a reuse factor tau, a difficulty-stratified subset of total / tau
problems is seen for tau epochs in order, so that the number of steps is fixed. Batch t is

    B_t = { problems[(t P + i) mod n] : 0 <= i < P },    a pure function of t: resuming replays and skips nothing.

Deviations: the study samples its subsets class by class of difficulty, we take evenly spaced ranks of the curriculum
(no seed, and every class has its share to within one problem); the remainder of an epoch is not dropped, the
batch goes on with the next epoch; problems whose pass rate is unknown come last.

The tiny world (`arithmetic`) is a chain of additions and subtractions of single digits whose running value stays in
0..9. Every operand has a label, which tells a small model where to look for the next one:

    prompt a6b-4c+1?    solution b6-4=2;c2+1=3;\boxed{3}    level = number of steps, here 2

Labels are consecutive letters from a random first one. A chain is held out when a hash of it *without* its labels says
so: one in four, decided before anything is drawn. So no problem of the test split, under any labels, is in a training
stream or in a pretraining corpus. Of the 90 chains of level 1, 63 are for training and 27 held out, each with 25 first
letters. `arithmetic-hard` has levels 1 to 10, and its answer is the last two running values: a guess is right once in a
hundred.
"""

import ast
import itertools
import json
import math
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

PROMPT = (
    "You are a knowledgeable math assistant. Answer the following questions and think step by step. {}"
    " Please output the final answer within \\boxed{{}}."
)

# (columns of the question, column of the answer, how it is written); the first layout whose columns hold something is
# used. A dot enters a nested column. `prompt` is asked as it stands, anything else is wrapped in PROMPT.
LAYOUTS = (
    (("prompt",), "reward_model.ground_truth", "alone"),  # the study's files, and others in verl's format
    (("Body", "Question"), "Answer", "alone"),  # SVAMP
    (("body", "question"), "answer", "unit"),  # ASDiv: 9 (apples)
    (("input",), "target", "alone"),  # MAWPS
    (("problem",), "answer", "alone"),  # MATH-500, AIME
    (("problem",), "solution", "working"),  # MATH: ends in \boxed{9}
    (("question",), "answer", "alone"),  # GSM8K: working before #### is left out
    (("prompt",), "answer", "alone"),
)
PASS_RATES = ("extra_info.qwen2.5_7b_pass_rate", "qwen2.5_7b_pass_rate")  # difficulty = 1 - pass rate
WORLDS = {"arithmetic": (5, 1), "arithmetic-hard": (10, 2)}  # name: (levels, running values that the answer holds)
LETTERS = string.ascii_lowercase


@dataclass(frozen=True)
class Problem:
    index: int  # place in its file or stream, before any ordering: it keys the noise of its samples
    prompt: str  # the user's turn; render() puts it in a chat template if there is one
    answer: str  # the reference
    difficulty: float | None = None  # higher is harder: 1 - pass rate of Qwen2.5-7B, or the level of a chain
    source: str = ""  # the benchmark it belongs to
    kind: str = "math"  # what the answer is: math; choice, a letter; grid, a table as JSON; code, tests to pass


# ---- The tiny world -----------------------------------------------------------------------------------------------


def draw_chain(key: str, level: int) -> str:
    """A prompt of `level` steps, uniform over first letters, starts and steps; a pure function of `key`."""
    bits = int.from_bytes(blake2b(key.encode(), digest_size=16).digest(), "big")
    bits, first = divmod(bits, 26 - level)
    bits, value = divmod(bits, 10)
    prompt = f"{LETTERS[first]}{value}"
    for label in LETTERS[first + 1 : first + 1 + level]:
        # Drawing the next value, any but this one, is drawing uniformly from the nine steps that stay within 0..9.
        bits, after = divmod(bits, 9)
        after += after >= value
        prompt += f"{label}{after - value:+d}"
        value = after
    return prompt + "?"


def held_out(prompt: str) -> bool:
    """Whether a chain belongs to the test split, whatever its labels."""
    chain = prompt.encode().translate(None, LETTERS.encode())
    return blake2b(chain, digest_size=1).digest()[0] % 4 == 0


def solve(prompt: str, slip: Callable[[int], int] | None = None, style: str = "full", values: int = 1) -> str:
    r"""The working out of a chain and its boxed answer, the last `values` running values.

    style: `full` b6-4=2;c2+1=3;\boxed{3}, `terse` b2;c3;\boxed{3}, `jump` \boxed{3}.
    slip: called with the result of each step, returns the digit to write instead; the working goes on from what was
    written. Where that would leave 0..9 the result is 0 or 9, since the world has single digits only.
    """
    value = int(prompt[1])
    seen, text = [value], []
    for at in range(2, len(prompt) - 1, 3):
        label, step = prompt[at], prompt[at + 1 : at + 3]
        after = min(max(value + int(step), 0), 9)
        after = after if slip is None else slip(after)
        text.append(f"{label}{value}{step}={after};" if style == "full" else f"{label}{after};")
        value = after
        seen.append(value)
    boxed = f"\\boxed{{{''.join(map(str, seen[-values:]))}}}"
    return boxed if style == "jump" else "".join(text) + boxed


def draw_problem(stream: int | str, index: int, world: str, keep: Callable[[str], bool]) -> Problem:
    """The first chain that `keep` accepts of those that (stream, index) leads to. Levels come in turn, so that any
    stretch of a stream, be it a batch or a reused subset, is stratified by difficulty."""
    levels, values = WORLDS[world]
    level = 1 + index % levels
    keys = (f"{stream}/{index}/{attempt}" for attempt in itertools.count())
    prompt = next(filter(keep, (draw_chain(key, level) for key in keys)))
    answer = solve(prompt, style="jump", values=values)[len("\\boxed{") : -1]
    return Problem(index, prompt, answer, float(level), world)


def arithmetic_problem(seed: int | str, index: int, world: str = "arithmetic") -> Problem:
    """Problem `index` of the training stream `seed`: a pure function, and never a held-out chain."""
    return draw_problem(seed, index, world, lambda prompt: not held_out(prompt))


def arithmetic_test(world: str = "arithmetic", count: int = 500) -> list[Problem]:
    """The held-out problems: the same ones for ever, no two prompts alike, every level equally often."""
    problems = {}
    for index in range(count):
        problem = draw_problem("held-out", index, world, lambda p: held_out(p) and p not in problems)
        problems[problem.prompt] = problem
    return list(problems.values())


class Arithmetic(Sequence):
    """The endless training stream of a tiny world: problems are made when they are indexed; a slice is a list."""

    def __init__(self, seed: int | str, world: str = "arithmetic"):
        self.seed, self.world = seed, world

    def __len__(self):
        return 1 << 40

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return arithmetic_problem(self.seed, index, self.world)

    def __iter__(self):
        raise TypeError("the training stream is endless: index it, slice it, or pick() from it")


def make_tokenizer():
    r"""One token per character of the tiny world, `\boxed`, and the end of text (padding too): 45 tokens, no bos.

    A Qwen2Tokenizer without merges, because AutoTokenizer turns any tokenizer beside a Qwen2 config.json into one. It
    drops characters outside its alphabet in silence: drop_long() refuses problems that it cannot write.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    end = "<|end|>"
    vocab = {token: i for i, token in enumerate([end, *"{}=;?+-", *string.digits, *LETTERS])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], unk_token=end, eos_token=end, pad_token=end)
    tokenizer.add_tokens([AddedToken("\\boxed", normalized=False)])
    return tokenizer


# ---- Files and the hub --------------------------------------------------------------------------------------------


def load(name: str, split: str = "train", seed: int = 0) -> Sequence[Problem]:
    """Problems from `arithmetic` or `arithmetic-hard`, a .jsonl, .json or .parquet file, or the hub.

    A `:split` after a name counts more than `split`; a file is one split. `owner/name/config` names a configuration on
    the hub. `seed` chooses the training stream of the tiny world, which is endless: index it or pick() from it.
    Raises FileNotFoundError, ValueError (unknown columns, rows without a question or an answer).
    """
    path = Path(name)
    if path.is_file():
        return to_problems(read_rows(path), path.stem)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        raise FileNotFoundError(f"no file {name} (looked in {Path.cwd()})")
    name, _, given = name.partition(":")
    split = given or split
    if name not in WORLDS:
        return to_problems(read_hub(name, split), name)
    if split not in ("train", "test"):
        raise ValueError(f"{name} has the splits train and test, not {split!r}")
    return arithmetic_test(name) if split == "test" else Arithmetic(seed, name)


def read_rows(path: Path) -> list[dict]:
    """The rows of a .jsonl, .json (a list of objects) or .parquet file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{path}: data files end in .jsonl, .json or .parquet, not {path.suffix!r}")
    text = path.read_text(encoding="utf-8-sig")
    # A JSON string may hold separators such as U+2028, so splitlines() would cut rows in two.
    pieces, rows = [text] if path.suffix == ".json" else text.split("\n"), []
    for line, piece in enumerate(pieces, 1):
        try:
            rows += [json.loads(piece)] if piece.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {line + error.lineno - 1}: not JSON: {error.msg}") from error
    rows = rows[0] if path.suffix == ".json" and rows else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected objects, one a line in .jsonl, in one list in .json")
    return rows


def read_hub(name: str, split: str) -> list[dict]:
    """The rows of owner/name or owner/name/config on the hub."""
    parts = name.split("/")
    repository, config = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        from datasets import load_dataset

        try:
            return load_dataset(repository, config or None, split=split).to_list()
        except ValueError:  # it has several configurations; that of the problems is often called main, as in GSM8K
            return load_dataset(repository, config or "main", split=split).to_list()
    except Exception as error:  # no package, no network, no such name: whatever it was, the way out is the same
        raise FileNotFoundError(
            f"{name} (split {split}) is no local file, and the hub did not give it: {error}\n"
            "A hub name is owner/name or owner/name/config, with an optional :split. Without a network give a .jsonl, "
            ".json or .parquet file, or `arithmetic`, which is built in."
        ) from error


def cell(row: dict, column: str):
    """The value of a possibly nested column, None where there is none. A dot may also be part of a name (qwen2.5)."""
    head, _, tail = column.partition(".")
    if tail and isinstance(row.get(head), dict):
        return cell(row[head], tail)
    return row.get(column)


def to_problems(rows: list[dict], source: str) -> list[Problem]:
    """Rows of any layout in LAYOUTS as problems, numbered in the order of the file."""
    if not rows:
        raise ValueError(f"{source}: no rows")
    fits = (
        layout for layout in LAYOUTS
        if all(any(cell(row, column) is not None for row in rows) for column in (*layout[0], layout[1]))
    )
    if (layout := next(fits, None)) is None:
        found = sorted({column for row in rows for column, value in row.items() if value is not None})
        known = "; ".join(f"{' + '.join(questions)} -> {answer}" for questions, answer, _ in LAYOUTS)
        raise ValueError(f"{source}: the columns that hold something, {found}, are not understood. Understood: {known}")
    questions, answer, written = layout
    problems = []
    for index, row in enumerate(rows):
        try:
            prompt, (kind, truth) = ask(row, questions), read_truth(cell(row, answer), written, str(row.get("data_source")))
            problems.append(Problem(index, prompt, truth, difficulty(row), row.get("data_source") or source, kind))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}, row {index} (counted from 0): {error}") from error
    for field, column in (("prompt", " + ".join(questions)), ("answer", answer)):
        empty = [p.index for p in problems if not getattr(p, field)]
        if empty:
            shown = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
            raise ValueError(f"{source}: {len(empty)} of {len(rows)} rows have no {field} (column {column}): rows "
                             f"{shown}, counted from 0. Remove them or fill them in.")
    return problems


def ask(row: dict, questions: tuple[str, ...]) -> str:
    """The user's turn of a row, "" if there is none."""
    if questions != ("prompt",):
        text = " ".join(str(part).strip() for column in questions if (part := cell(row, column)))
        return PROMPT.format(text) if text else ""
    match row.get("prompt"):
        case None:
            return ""
        case str(text) | [{"role": "user", "content": str(text)}]:
            if text.startswith("[{'content':"):  # HumanEval of the study: the turns were turned into text once more
                return ask({"prompt": ast.literal_eval(text)}, questions)
            return text
        case other:
            raise ValueError(f"a prompt is a text or a single turn of the user, not {str(other)[:80]}")


def difficulty(row: dict) -> float | None:
    """1 - pass rate, else a column `difficulty` that holds a number, else None."""
    rate = next((rate for column in PASS_RATES if (rate := cell(row, column)) is not None), None)
    value = row.get("difficulty") if rate is None else 1.0 - float(rate)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def read_truth(value, written: str, source: str) -> tuple[str, str]:
    """-> (kind, reference): the study's puzzles have a table, its programs the tests to pass, its SuperGPQA a letter."""
    if isinstance(value, dict) and {"header", "rows"} <= value.keys():
        return "grid", json.dumps({"header": value["header"], "rows": value["rows"]})
    if isinstance(value, str) and value.startswith('{"functional":'):
        return "code", json.loads(value)["functional"].strip()
    return "choice" if "supergpqa" in source.lower() else "math", read_answer(value, written)


def read_answer(value, written: str = "alone") -> str:
    r"""The reference as text: 145.0 -> 145, "... #### 72" -> 72, "... \boxed{x}" -> x; with a unit 9 (apples) -> 9.

    A float of nine decimals or more is a rounded fraction (MAWPS ships 0.6666666667), and answers are compared exactly:
    it is read as the fraction within 1e-9 whose denominator is at most 1000, if there is one. Where backslashes come in
    pairs only they were escaped twice (one in nine of the study's references: \\frac for \frac) and one of each is
    taken away; a matrix has both kinds and stays as it is. Nothing, nan, inf and working without an answer give "".
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        near = Fraction(value).limit_denominator(1000)
        rounded = len(repr(value).partition(".")[2]) >= 9 and abs(near - Fraction(value)) < 1e-9
        return str(near) if rounded or value.is_integer() else repr(value)
    if not isinstance(value, str | int | None):
        raise ValueError(f"the answer is of type {type(value).__name__}; text or a number is understood")
    text = "" if value is None else str(value).strip()
    if all(len(run) % 2 == 0 for run in re.findall(r"\\+", text)):
        text = text.replace("\\\\", "\\")
    if written == "working" or "####" in text or "\\boxed" in text:
        from reward import extract  # here, since most data needs none, and sympy is slow to import

        text = extract(text) or ""
    return re.sub(r"\s*\([^()]*\)$", "", text) if written == "unit" and text[:1].isdigit() else text


# ---- From problems to a run ---------------------------------------------------------------------------------------


@lru_cache(4096)  # a run evaluates the same problems again and again
def render(problem: Problem, tokenizer, template: str = "auto") -> list[int]:
    """Token ids of the prompt, special tokens included once.

    template: `chat` (up to and with the header of the model's turn), `plain` (the text as it stands, after a bos if the
    tokenizer has one), `auto` (chat where the tokenizer has a chat template, as the study does for base models too).
    """
    if template not in ("auto", "chat", "plain"):
        raise ValueError(f"template is auto, chat or plain, not {template!r}")
    if template == "chat" or (template == "auto" and tokenizer.chat_template):
        turns = [{"role": "user", "content": problem.prompt}]
        return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
    return list(tokenizer(problem.prompt)["input_ids"])


def drop_long(
    problems: Sequence[Problem], tokenizer, limit: int, template: str = "auto"
) -> tuple[Sequence[Problem], int]:
    """-> (the problems whose prompts have at most `limit` tokens, how many were dropped).

    The endless stream is judged by one problem of each level and comes back whole. Raises ValueError when nothing is
    left, and when the tokenizer has no tokens for the text, as those of the tiny models have none for words.
    """
    endless = isinstance(problems, Arithmetic)
    judged = problems[: WORLDS[problems.world][0]] if endless else problems
    back = tokenizer.decode(render(judged[0], tokenizer, template))
    if len(back) < 0.9 * len(judged[0].prompt):
        raise ValueError(f"this tokenizer cannot write the problems: {judged[0].prompt[:60]!r} comes back as "
                         f"{back[:60]!r}. The tiny models read `arithmetic`; other problems need a real --model.")
    kept = [p for p in judged if len(render(p, tokenizer, template)) <= limit]
    if not kept or (endless and len(kept) < len(judged)):
        raise ValueError(f"{len(judged) - len(kept)} of {len(judged)} prompts exceed {limit} tokens: raise the limit")
    return (problems if endless else kept), len(judged) - len(kept)


def order(problems: Sequence[Problem], reuse: int = 1, total: int = 0) -> Sequence[Problem]:
    """The curriculum, one epoch of a run: easy to hard, file order among equals, unknown difficulty last.

    With reuse > 1 (tau) it keeps total / tau problems, rounded up and evenly spaced in that order; total = steps x P
    are the prompts of the whole run. Of the tiny world's stream, a mixture of levels, it keeps the first total / tau.
    """
    endless = isinstance(problems, Arithmetic)
    if not endless:
        problems = sorted(problems, key=lambda p: math.inf if p.difficulty is None else p.difficulty)
    if reuse == 1:
        return problems
    keep = math.ceil(total / reuse) if reuse > 1 else 0
    if not 0 < keep <= len(problems):
        raise ValueError(f"a reuse of {reuse} needs {total} / {reuse} problems, and there are {len(problems)}")
    return problems[:keep] if endless else [problems[(2 * i + 1) * len(problems) // (2 * keep)] for i in range(keep)]


def pick(problems: Sequence[Problem], step: int, P: int) -> list[Problem]:
    """The P problems of training step `step`, counted from 0, all different; the next epoch follows without a break."""
    if P > len(problems):
        raise ValueError(f"a step of {P} prompts cannot be filled from {len(problems)} problems: take fewer per step")
    return [problems[i % len(problems)] for i in range(step * P, (step + 1) * P)]
