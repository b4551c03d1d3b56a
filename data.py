r"""Problems: the built-in arithmetic, files, the hub; their prompts, their order, their tokens.

A problem is a prompt and the answer that a right completion must reach. The study asks every
mathematics problem in one turn of the user, `PROMPT`, for base and instruct models alike, and
takes problems from easy to hard, never shuffled. With a reuse factor tau, a subset of
total / tau problems, stratified by difficulty, is seen for tau epochs, so that the number of
steps is fixed.

Deviations: the study samples its subsets class by class, we take evenly spaced ranks of the
curriculum (no seed; each class keeps its share to within one problem). An epoch's remainder is
not dropped: the batch goes on with the next epoch. Unknown difficulty comes last.

The tiny world (`arithmetic`) is a chain of additions and subtractions of single digits whose
running value stays in 0..9. Each operand has a label, which tells a small model where to look
for the next one:

    prompt a6b-4c+1?    solution b6-4=2;c2+1=3;\boxed{3}    level = number of steps, here 2

Labels are consecutive letters from a random first one. A hash of the chain *without* its labels
decides whether the chain is held out (one in four), so no problem of the test split, under any
labels, is in a training stream or in a pretraining corpus. Of the 90 chains of level 1, 63 are
for training and 27 held out, each with 25 first letters. `arithmetic-hard` has levels 1 to 10,
and its answer is the last two running values: a guess is right once in a hundred.
"""

import ast
import itertools
import json
import math
import os
import re
import signal
import string
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

PROMPT = (
    "You are a knowledgeable math assistant. Answer the following questions and think step by step."
    " {problem} Please output the final answer within \\boxed{}."
)


@dataclass(frozen=True)
class Problem:
    index: int  # row of its file or place in its stream; keys the sampling noise of the problem
    prompt: str  # the user's text
    answer: str  # the reference
    difficulty: float | None = None  # higher is harder: 1 - pass rate of Qwen2.5-7B, or the level
    source: str = ""  # the benchmark it belongs to
    kind: str = "math"  # of answer: math; choice, a letter; grid, a table as JSON; code, its tests
    turns: tuple[tuple[str, str], ...] = ()  # (role, content); if given, rendered instead of prompt
    alternatives: tuple[str, ...] = ()  # other forms of the answer that count as right


# ---- The tiny world -------------------------------------------------------------------------

LETTERS = string.ascii_lowercase
WORLDS = {"arithmetic": (5, 1), "arithmetic-hard": (10, 2)}  # levels, running values in the answer


def draw_chain(key: str, level: int) -> str:
    """A prompt of `level` steps, uniform over labels, starts and steps; a function of `key`."""
    bits = int.from_bytes(blake2b(key.encode(), digest_size=16).digest(), "big")
    bits, first = divmod(bits, 26 - level)
    bits, value = divmod(bits, 10)
    prompt = f"{LETTERS[first]}{value}"
    for label in LETTERS[first + 1 : first + 1 + level]:
        # To draw the next value, any but this one, is to draw from the nine steps inside 0..9.
        bits, after = divmod(bits, 9)
        after += after >= value
        prompt += f"{label}{after - value:+d}"
        value = after
    return prompt + "?"


def held_out(prompt: str) -> bool:
    """Whether a chain belongs to the test split, whatever its labels."""
    chain = prompt.encode().translate(None, LETTERS.encode())
    return blake2b(chain, digest_size=1).digest()[0] % 4 == 0


def solve(
    prompt: str, slip: Callable[[int], int] | None = None, style: str = "full", values: int = 1
) -> str:
    r"""The solution of a chain; the box holds the last `values` running values.

    style: `full` b6-4=2;c2+1=3;\boxed{3}, `terse` b2;c3;\boxed{3}, `jump` \boxed{3}.
    slip: gets the result of each step and returns the digit to write instead. The solution goes on
    from what was written; a result that would leave 0..9 becomes 0 or 9.
    """
    value = int(prompt[1])
    running = [value]
    text = ""
    for at in range(2, len(prompt) - 1, 3):
        label = prompt[at]
        step = prompt[at + 1 : at + 3]
        after = min(max(value + int(step), 0), 9)
        if slip is not None:
            after = slip(after)
        working = f"{value}{step}=" if style == "full" else ""
        text += f"{label}{working}{after};"
        value = after
        running.append(value)
    if style == "jump":
        text = ""
    answer = "".join(map(str, running[-values:]))
    return f"{text}\\boxed{{{answer}}}"


def draw_problem(stream: int | str, index: int, world: str, keep: Callable[[str], bool]) -> Problem:
    """The first chain that `keep` accepts among those that (stream, index) leads to.

    Levels take turns, so any stretch of a stream (a batch, a reused subset) is stratified.
    """
    levels, values = WORLDS[world]
    level = 1 + index % levels
    for attempt in itertools.count():
        prompt = draw_chain(f"{stream}/{index}/{attempt}", level)
        if keep(prompt):
            break
    answer = solve(prompt, style="jump", values=values)[len("\\boxed{") : -1]
    return Problem(index, prompt, answer, float(level), world)


def arithmetic_problem(seed: int | str, index: int, world: str = "arithmetic") -> Problem:
    """Problem `index` of the training stream `seed`: a pure function, never a held-out chain."""
    return draw_problem(seed, index, world, lambda prompt: not held_out(prompt))


def arithmetic_test(world: str = "arithmetic") -> list[Problem]:
    """The 500 held-out problems: always the same, all different, each level equally often."""
    problems = {}

    def keep(prompt):
        return held_out(prompt) and prompt not in problems

    for index in range(500):
        problem = draw_problem("held-out", index, world, keep)
        problems[problem.prompt] = problem
    return list(problems.values())


class Arithmetic(Sequence):
    """The endless training stream of a tiny world. Indexing makes a problem, a slice a list."""

    def __init__(self, seed: int | str, world: str = "arithmetic"):
        self.seed = seed
        self.world = world

    def __len__(self):
        return 1 << 40

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return arithmetic_problem(self.seed, index, self.world)

    def __iter__(self):
        raise TypeError("the training stream is endless: index it or slice it")


def make_tokenizer():
    r"""45 tokens: a character of the tiny world each, `\boxed`, and the end of text (also padding).

    A Qwen2Tokenizer without merges, because AutoTokenizer turns any tokenizer beside a Qwen2
    config.json into one. It drops unknown characters silently; drop_long() refuses such problems.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    end = "<|end|>"
    characters = [*"{}=;?+-", *string.digits, *LETTERS]
    vocab = {token: i for i, token in enumerate([end, *characters])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], unk_token=end, eos_token=end, pad_token=end)
    tokenizer.add_tokens([AddedToken("\\boxed", normalized=False)])
    return tokenizer


# ---- Files, directories, the hub ------------------------------------------------------------

MOST_FILES = 10_000  # of a directory that is a data set
SUFFIXES = (".jsonl", ".json", ".parquet")


def load(
    name: str, split: str = "train", seed: int = 0, prompt: str = PROMPT
) -> tuple[Sequence[Problem], list[str]]:
    """-> (problems, notes: plain sentences about what was dropped, for the first lines of a run).

    name: `arithmetic` or `arithmetic-hard`; a .jsonl, .json or .parquet file; a directory in
    Hugging Face data-set layout; owner/name or owner/name/config on the hub. A `:split` at the end
    overrides `split`; a file is one split. seed: chooses the training stream of the tiny world.
    prompt: wraps questions of layouts that hold a bare question; {problem} is where it goes.

    Raises FileNotFoundError and ValueError (not readable, unknown columns, more than a tenth of the
    rows are no problems); the message names the file and the remedy.
    """
    if "{problem}" not in prompt:
        raise ValueError(f"--prompt must hold {{problem}}, the question's place; got {prompt!r}")
    place, _, given = name.partition(":")
    if Path(name).exists():  # the colon, if any, is part of a file's name
        place, given = name, ""
    split = given or split
    if place in WORLDS:
        notes = [] if prompt == PROMPT else [f"{place}: --prompt is not used, prompts are fixed"]
        return tiny_world(place, split, seed), notes
    path = Path(place)
    if path.is_file():
        if given:
            raise ValueError(f"{name}: a file is one split; give it as {place}")
        rows = read_file(path)
    elif path.is_dir():
        rows = read_directory(path, split)
    elif path.is_absolute() or place.startswith((".", "~")) or path.suffix in SUFFIXES:
        raise FileNotFoundError(f"no file or directory {place} (looked in {Path.cwd()})")
    else:
        rows = read_hub(place, split)
    return to_problems(rows, place, path.stem if path.exists() else place, prompt)


def tiny_world(world: str, split: str, seed: int) -> Sequence[Problem]:
    """A tiny world's endless training stream, or its test split."""
    if split == "train":
        return Arithmetic(seed, world)
    if split == "test":
        return arithmetic_test(world)
    raise ValueError(f"{world} has the splits train and test, not {split!r}")


def read_file(path: Path) -> list[dict]:
    """The rows of a .jsonl, .json (a list) or .parquet file."""
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: data files end in {', '.join(SUFFIXES)}, not {path.suffix!r}")
    text = read_text(path)
    if path.suffix == ".json":
        rows = parse_json(text, path, 1)
    else:
        # Not splitlines(): a JSON string may hold other separators, such as U+2028.
        lines = enumerate(text.split("\n"), 1)
        rows = [parse_json(line, path, number) for number, line in lines if line.strip()]
    if isinstance(rows, list) and all(isinstance(row, dict | list) for row in rows):
        return [row if isinstance(row, dict) else name_columns(row) for row in rows]
    raise ValueError(f"{path}: expected objects, one a line in .jsonl, in one list in .json")


def name_columns(row: list) -> dict:
    return {str(place): entry for place, entry in enumerate(row)}


def read_parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}. Fetch it again.") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; ValueError with the command that converts another encoding."""
    raw = path.read_bytes()
    encoding = "UTF-16" if b"\0" in raw[:100] else "UTF-8"
    if encoding == "UTF-8":
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            encoding = "LATIN1"
    raise ValueError(
        f"{path} is not UTF-8 and looks like {encoding}. Convert it: "
        f"iconv -f {encoding} -t UTF-8 {path} > converted{path.suffix}"
    )


def parse_json(text: str, path: Path, line: int):
    """JSON that starts at `line` of `path`; ValueError with the line of the fault."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1
        message = getattr(error, "msg", error)
        raise ValueError(f"{path}, line {line}: not JSON: {message}") from error


def read_directory(path: Path, split: str) -> list[dict]:
    """A split of a directory in Hugging Face data-set layout."""
    found = itertools.chain.from_iterable(files for _, _, files in os.walk(path))
    if sum(1 for _ in itertools.islice(found, MOST_FILES + 1)) > MOST_FILES:
        # The package datasets would look at each of them, for hours in a home directory.
        raise ValueError(
            f"{path}: more than {MOST_FILES:,} files, so this is no data set; give the directory "
            "that holds nothing else, or a file"
        )
    from datasets import load_dataset

    try:
        return load_dataset(str(path), split=split).to_list()
    except Exception as error:  # of many types; the remedy is the same
        cause = error.__cause__ or error
        raise ValueError(
            f"{path} (split {split}) is no data set that the package datasets can read: {cause}\n"
            "Give one of its .jsonl, .json or .parquet files, or another split as DIRECTORY:split."
        ) from error


def read_hub(name: str, split: str) -> list[dict]:
    """A split of owner/name or owner/name/config on the hub."""
    parts = name.split("/")
    repository = "/".join(parts[:2])
    config = "/".join(parts[2:])
    if Path(repository).exists():  # load_dataset would read this local directory instead
        raise FileNotFoundError(f"no file or directory {name}, although {repository} exists here")
    try:
        from datasets import load_dataset

        try:
            data = load_dataset(repository, config or None, split=split)
        except ValueError as error:
            if config or "config" not in str(error).lower():
                raise
            # Of several configurations, the problems are often in the one called main (GSM8K).
            data = load_dataset(repository, "main", split=split)
        return data.to_list()
    except Exception as error:  # no package, no network, no such name: the remedy is the same
        raise FileNotFoundError(
            f"{name} (split {split}) is no local file, and the hub did not give it: {error}\n"
            "A hub name is owner/name or owner/name/config, with an optional :split. Without a "
            "network give a .jsonl, .json or .parquet file, or `arithmetic`, which is built in."
        ) from error


# ---- From rows to problems ------------------------------------------------------------------


class Layout(NamedTuple):
    questions: tuple[str, ...]  # columns; a dot enters a nested one
    answer: str  # column
    written: str = "alone"  # unit: 9 (apples); working: ends in \boxed{9}; either: alone or working

    def __str__(self):
        return f"{' + '.join(self.questions)} -> {self.answer}"


# The first layout whose columns hold something is used. `prompt` is asked as it stands.
LAYOUTS = (
    Layout(("prompt",), "reward_model.ground_truth"),  # verl: the study's files, DAPO-17k
    Layout(("Body", "Question"), "Answer"),  # SVAMP
    Layout(("body", "question"), "answer", "unit"),  # ASDiv
    Layout(("input",), "target"),  # MAWPS
    Layout(("problem",), "answer"),  # MATH-500, AIME, NuminaMath
    Layout(("problem",), "solution", "working"),  # MATH
    Layout(("question",), "answer"),  # GSM8K: the number follows ####
    Layout(("prompt",), "answer"),
    Layout(("prompt",), "solution", "either"),
    Layout(("0.value",), "1.ground_truth.value"),  # Open-Reasoner-Zero: two turns
)
PASS_RATES = ("extra_info.qwen2.5_7b_pass_rate", "qwen2.5_7b_pass_rate")
NO_ANSWER = {"", "proof", "notfound", "not found", "n/a", "nan", "null"}  # NuminaMath and others
SHORT = 100  # characters of a solution without a box that can be an answer


class NoProblem(Exception):
    """A row that is no problem; the message says why."""


def to_problems(
    rows: list[dict], name: str, source: str = "", prompt: str = PROMPT
) -> tuple[list[Problem], list[str]]:
    """-> (problems numbered by row, notes). Rows are counted from 0, as Problem.index is.

    Rows without a usable question or answer are dropped, and so are repeated prompts. Raises
    ValueError for unknown columns, text that is not Unicode, more than a tenth of dropped rows.
    """
    layout = find_layout(rows, name)
    problems = []
    dropped = {}  # reason: rows
    for index, row in enumerate(rows):
        try:
            problems.append(to_problem(index, row, layout, source or name, prompt))
        except NoProblem as reason:
            dropped.setdefault(str(reason), []).append(index)
        except ValueError as error:
            raise ValueError(f"{name}, row {index} (counted from 0): {error}") from error
    notes = [f"{name}: {describe(reason, found, rows)}" for reason, found in dropped.items()]
    if len(rows) - len(problems) > len(rows) / 10:
        raise ValueError(
            f"{'; '.join(notes)}. More than a tenth of the rows are no problems (read as "
            f"{layout}): remove these rows or mend them."
        )
    unique = drop_repeats(problems)
    if len(unique) < len(problems):
        notes.append(f"{name}: {len(problems) - len(unique):,} repeated prompts dropped")
    several = sum(bool(problem.alternatives) for problem in unique)
    if several:
        notes.append(f"{name}: {several:,} answers are lists; each entry counts as right")
    if prompt != PROMPT and layout.questions == ("prompt",):
        notes.append(f"{name}: --prompt is not used, its column `prompt` is asked as it stands")
    return unique, notes


def describe(reason: str, found: list[int], rows: list[dict]) -> str:
    count = f"{len(found):,} of {len(rows):,} rows dropped"
    first = ", ".join(map(str, found[:3]))
    more = ", .." if len(found) > 3 else ""
    return f"{count}, {reason} (rows {first}{more}, counted from 0)"


def find_layout(rows: list[dict], name: str) -> Layout:
    if not rows:
        raise ValueError(f"{name}: no rows. Give a file that holds problems.")
    for layout in LAYOUTS:
        if all(holds(rows, column) for column in (*layout.questions, layout.answer)):
            return layout
    columns = sorted(set().union(*rows))
    found = [column for column in columns if holds(rows, column)]
    known = "; ".join(map(str, LAYOUTS))
    raise ValueError(
        f"{name}: the columns that hold something, {found}, are not understood. Rename them to "
        f"one of: {known}"
    )


def holds(rows: list[dict], column: str) -> bool:
    return any(cell(row, column) is not None for row in rows)


def cell(row: dict, column: str):
    """A possibly nested column, None if missing. A dot can also be part of a name (qwen2.5)."""
    head, _, tail = column.partition(".")
    if tail and isinstance(row.get(head), dict):
        return cell(row[head], tail)
    return row.get(column)


def to_problem(index: int, row: dict, layout: Layout, source: str, prompt: str) -> Problem:
    """The problem of a row. Raises NoProblem, and ValueError for broken text or numbers."""
    source = str(row.get("data_source") or source)
    text, turns = read_question(row, layout, prompt)
    kind, forms = read_truth(cell(row, layout.answer), layout.written, source)
    for part in (text, source, *forms, *(content for _, content in turns)):
        check_unicode(part)
    answer, *others = forms
    return Problem(index, text, answer, difficulty(row), source, kind, turns, tuple(others))


def check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{half!r} is half of a surrogate pair and no character; remove it from the file"
        ) from error


def read_question(row: dict, layout: Layout, prompt: str) -> tuple[str, tuple]:
    """-> (the user's text, all turns as (role, content) if there are several)."""
    if layout.questions == ("prompt",):
        return read_turns(row.get("prompt"))
    parts = [cell(row, column) for column in layout.questions]
    parts = [part for part in parts if part is not None]
    if not all(isinstance(part, str) for part in parts):
        raise NoProblem("the question is not text")
    text = " ".join(part.strip() for part in parts).strip()
    if not text:
        raise NoProblem("no question")
    return prompt.replace("{problem}", text), ()


def read_turns(value) -> tuple[str, tuple]:
    """A prompt that is text, or a list of {"role": .., "content": ..} that ends with the user's."""
    if isinstance(value, list):
        turns = tuple(read_turn(turn) for turn in value)
    elif isinstance(value, str):
        turns = (("user", value),)
    else:
        turns = ()
    if not turns:
        raise NoProblem("no question")
    role, text = turns[-1]
    if role != "user":
        raise NoProblem("the prompt does not end with a turn of the user")
    if not text.strip():
        raise NoProblem("no question")
    if text.startswith("[{'content':"):  # HumanEval of the study: turns inside the text of a turn
        return read_turns(read_literal(text))
    return text, turns if len(turns) > 1 else ()


def read_literal(text: str):
    """A Python literal; nothing is computed."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise NoProblem("the turns inside the prompt cannot be read") from error


def read_turn(turn) -> tuple[str, str]:
    match turn:
        case {"role": str(role), "content": str(content)}:
            return role, content
    raise NoProblem("a turn of the prompt is not a role and a text")


def difficulty(row: dict) -> float | None:
    """1 - pass rate, else a column `difficulty` that holds a number, else None."""
    for column in PASS_RATES:
        rate = cell(row, column)
        if rate is not None:
            value = 1.0 - float(rate)
            return value if math.isfinite(value) else None
    value = row.get("difficulty")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def read_truth(value, written: str, source: str) -> tuple[str, list[str]]:
    """-> (kind, forms of the reference, at least one). Raises NoProblem.

    The study's puzzles have a table, its programs the tests to pass, its SuperGPQA a letter. A list
    of texts (in JSON too, as in Skywork-OR1) is one answer in several forms.
    """
    if isinstance(value, dict) and {"header", "rows"} <= value.keys():
        return "grid", [json.dumps({"header": value["header"], "rows": value["rows"]})]
    if isinstance(value, str) and value.startswith('{"functional":'):
        return "code", [json.loads(value)["functional"].strip()]
    entries = read_list(value)
    if len(entries) > 1 and not all(isinstance(entry, str) for entry in entries):
        raise NoProblem("the answer is a list of things that are not text")
    forms = dict.fromkeys(read_answer(entry, written) for entry in entries)
    forms = [form for form in forms if form.lower() not in NO_ANSWER]
    if not forms:
        raise NoProblem("no answer")
    return "choice" if "supergpqa" in source.lower() else "math", forms


def read_list(value) -> list:
    """A list as it is, the list in a text such as '["1/2", "0.5"]', else a list of the value."""
    if isinstance(value, str) and value.startswith('["'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return [value]  # mathematics that only looks like JSON
    return value if isinstance(value, list) else [value]


def read_answer(value, written: str = "alone") -> str:
    r"""The reference as text, "" if there is none (None, nan, inf, working without an answer).

    145.0 -> 145, "... #### 72" -> 72, "... \boxed{x}" -> x; with a unit 9 (apples) -> 9. Where all
    backslashes come in pairs they were escaped twice (one in nine of the study's references), and
    one of each is taken away; a matrix has both kinds and stays as it is.
    """
    if isinstance(value, float):
        return read_float(value)
    if not isinstance(value, str | int | None):
        raise NoProblem("the answer is a list or an object")
    text = "" if value is None else str(value).strip()
    if all(len(run) % 2 == 0 for run in re.findall(r"\\+", text)):
        text = text.replace("\\\\", "\\")
    if written == "either" and (len(text) > SHORT or "\n" in text):
        written = "working"
    if written == "working" or "####" in text or "\\boxed" in text:
        from reward import extract  # here: most data needs none, and sympy imports slowly

        return extract(text) or ""
    if written == "unit" and text[:1].isdigit():
        return re.sub(r"\s*\([^()]*\)$", "", text)
    return text


def read_float(value: float) -> str:
    """145.0 -> 145, 0.6666666667 -> 2/3, nan -> "".

    Answers are compared exactly, and MAWPS ships rounded fractions: nine decimals or more are read
    as the fraction within 1e-9 whose denominator is at most 1000, if there is one.
    """
    if not math.isfinite(value):
        return ""
    near = Fraction(value).limit_denominator(1000)
    decimals = repr(value).partition(".")[2]
    rounded = len(decimals) >= 9 and abs(near - Fraction(value)) < 1e-9
    return str(near) if rounded or value.is_integer() else repr(value)


def content(problem: Problem) -> str:
    """What makes a problem the same problem: its text with normalised spaces."""
    text = join_turns(turns_of(problem))
    return " ".join(text.split())


def turns_of(problem: Problem) -> tuple[tuple[str, str], ...]:
    return problem.turns or (("user", problem.prompt),)


def join_turns(turns: Iterable[tuple[str, str]]) -> str:
    """A conversation as plain text, for a model without a chat template."""
    return "\n\n".join(text for _, text in turns)


def drop_repeats(problems: Sequence[Problem]) -> list[Problem]:
    """The first problem of each content, in order."""
    first = {}
    for problem in problems:
        first.setdefault(content(problem), problem)
    return list(first.values())


# ---- From problems to a run -----------------------------------------------------------------


def evenly_spaced(problems: Sequence[Problem], count: int) -> list[Problem]:
    """The problems in the middle of `count` stretches of equal length."""
    total = len(problems)
    places = [(2 * i + 1) * total // (2 * count) for i in range(count)]
    return [problems[place] for place in places]


def split_held_out(
    problems: Sequence[Problem], count: int
) -> tuple[Sequence[Problem], list[Problem]]:
    """-> (training, held_out): evenly spaced, at most a fifth, and no text is on both sides.

    Of the tiny world, whose chains are held out by hash, the first `count` of the test split.
    """
    if isinstance(problems, Arithmetic):
        return problems, arithmetic_test(problems.world)[:count]
    unique = drop_repeats(problems)
    if len(unique) < 2:
        raise ValueError(
            f"{problems[0].source} has 1 problem: nothing can be held out of it. Give a file with "
            "more problems, or evaluate on another one with --eval FILE."
        )
    count = min(count, max(1, len(unique) // 5))
    held_out = evenly_spaced(unique, count)
    texts = {content(problem) for problem in held_out}
    return [problem for problem in problems if content(problem) not in texts], held_out


def hardness(problem: Problem) -> float:
    """What the curriculum sorts by: unknown difficulty comes last."""
    return math.inf if problem.difficulty is None else problem.difficulty


def order(problems: Sequence[Problem], reuse: int = 1, total: int = 0) -> Sequence[Problem]:
    """The curriculum, one epoch: easy to hard, file order among equals, unknown difficulty last.

    With reuse > 1 (tau), total / tau problems, rounded up, evenly spaced in that order; total =
    steps x P, the prompts of the whole run. The tiny world's stream is not sorted, as its levels
    take turns; with reuse its first total / tau problems are taken.
    """
    endless = isinstance(problems, Arithmetic)
    if not endless:
        problems = sorted(problems, key=hardness)
    if reuse == 1:
        return problems
    keep = math.ceil(total / reuse) if reuse > 1 else 0
    if not 0 < keep <= len(problems):
        raise ValueError(
            f"a reuse of {reuse} needs {total} / {reuse} problems, and there are {len(problems)}"
        )
    if endless:
        return problems[:keep]
    return evenly_spaced(problems, keep)


def digest(problems: Sequence[Problem]) -> str:
    """A hex digest of prompts, answers and turns; of the tiny world's stream: of seed and world."""
    if isinstance(problems, Arithmetic):
        rows = [("endless", problems.seed, problems.world)]
    else:
        rows = ((p.prompt, p.answer, p.turns, p.alternatives) for p in problems)
    state = blake2b(digest_size=16)
    for row in rows:
        state.update(json.dumps(row).encode() + b"\n")
    return state.hexdigest()


# (what a prompt says when it asks for a form of answer, an answer in that form)
FORMS = (
    ("boxed", "\\boxed{%s}"),
    ("####", "#### %s"),
    ("answer:", "Answer: %s"),
    ("answer is", "The answer is %s"),
    ("<answer>", "<answer>%s</answer>"),
)


def unread_format(problems: Sequence[Problem]) -> str:
    """A warning if most prompts ask for no form of answer that reward.extract reads, else "".

    Looks at up to 20 evenly spaced mathematics problems. The tiny world is taught its form.
    """
    if isinstance(problems, Arithmetic):
        return ""
    maths = [p for p in problems if p.kind == "math" and p.source not in WORLDS]
    looked_at = evenly_spaced(maths, min(20, len(maths)))
    unread = [problem for problem in looked_at if not asks_readably(problem)]
    if 2 * len(unread) <= len(looked_at):
        return ""
    example = unread[0]
    return (
        f"{len(unread)} of {len(looked_at)} prompts ask for no form of answer that the grader "
        f"reads, so right answers may get reward 0. For example, row {example.index} (counted "
        f"from 0) of {example.source} ends in {content(example)[-100:]!r} and its answer is "
        f"{example.answer[:40]!r}. Ask for the answer within \\boxed{{}}."
    )


def asks_readably(problem: Problem) -> bool:
    from reward import extract

    text = content(problem).lower()
    asked = [form for words, form in FORMS if words in text]
    return any(extract(form % problem.answer) for form in asked)


# ---- Tokens ---------------------------------------------------------------------------------

BATCH = 256  # prompts rendered together
TEMPLATE_SECONDS = 5.0  # processor time in which a chat template must render a batch
CACHED = 1 << 20  # prompts kept as tokens


@contextmanager
def processor_time_limit(seconds: float, message: str) -> Iterator[None]:
    """TimeoutError(message) when the body computes for longer. Acts in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(signum, frame):
        raise TimeoutError(message)

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Renderer:
    """Turns problems into token ids, by the tokenizer's chat template or plainly.

    template: `chat` (up to and with the header of the model's turn), `plain` (the text as it
    stands, with the special tokens that the tokenizer adds), `auto` (chat if the tokenizer has a
    chat template, as the study does for base models too). template_args: "name=value", handed to
    the chat template; values in JSON, else text. Each prompt is rendered once, so that a template
    that prints the date gives one prompt per run. Raises ValueError for a template that fails.
    """

    def __init__(self, tokenizer, template: str = "auto", template_args: Sequence[str] = ()):
        if template not in ("auto", "chat", "plain"):
            raise ValueError(f"template is auto, chat or plain, not {template!r}")
        if template == "chat" and not tokenizer.chat_template:
            raise ValueError("template is chat, and the tokenizer has no chat template: use plain")
        self.tokenizer = tokenizer
        self.chat = template != "plain" and bool(tokenizer.chat_template)
        self.template_args = dict(read_template_arg(text) for text in template_args)
        if self.template_args and not self.chat:
            raise ValueError("--template-args need a chat template, and prompts are rendered plain")
        self.cache: dict[tuple, array] = {}  # turns: token ids
        self.end_token: int | None = self.find_end_token() if self.chat else None

    def describe(self) -> str:
        """How prompts are rendered, for the first lines of a run."""
        if not self.chat:
            return "prompts are plain text; a completion ends with the model's end of text"
        if self.end_token is None:
            return "prompts follow the chat template, which names no token that ends a turn"
        end = self.tokenizer.decode([self.end_token])
        return f"prompts follow the chat template; a turn ends with {end}"

    def __call__(self, problem: Problem) -> list[int]:
        return self.render_all([problem])[0]

    def render_all(self, problems: Iterable[Problem]) -> list[list[int]]:
        """The token ids of each problem, rendered in batches; shows a bar if it takes long."""
        keys = [turns_of(problem) for problem in problems]
        new = [key for key in dict.fromkeys(keys) if key not in self.cache]
        hidden = True if os.environ.get("RANK", "0") != "0" else None  # None: without a terminal
        with tqdm(total=len(new), desc="rendering", delay=2, leave=False, disable=hidden) as bar:
            for start in range(0, len(new), BATCH):
                batch = new[start : start + BATCH]
                texts = self.apply_template(batch) if self.chat else list(map(join_turns, batch))
                rows = self.tokenizer(texts, add_special_tokens=not self.chat)["input_ids"]
                for key, ids in zip(batch, rows, strict=True):
                    self.cache[key] = array("i", ids)
                bar.update(len(batch))
        found = [self.cache[key].tolist() for key in keys]
        while len(self.cache) > CACHED:  # an endless stream must not fill the memory
            del self.cache[next(iter(self.cache))]
        return found

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def apply_template(self, conversations: list[tuple], open_turn: bool = True) -> list[str]:
        """The chat template's text for conversations of (role, content) pairs.

        open_turn: whether the text ends with the header of the model's turn.
        """
        chats = []
        for turns in conversations:
            chats.append([{"role": role, "content": content} for role, content in turns])
        message = f"it takes more than {TEMPLATE_SECONDS:g} s of computing"
        try:
            with processor_time_limit(TEMPLATE_SECONDS, message):
                return self.tokenizer.apply_chat_template(
                    chats, tokenize=False, add_generation_prompt=open_turn, **self.template_args
                )
        except Exception as error:  # a template raises whatever its author chose
            raise ValueError(
                f"the chat template of {self.tokenizer.name_or_path} fails on a prompt such as "
                f"{conversations[0][-1][1][:60]!r}: {error}. Mend it, or use --template plain."
            ) from error

    def find_end_token(self) -> int | None:
        """The special token that the template writes right after the model's turn, if any."""
        answer = "ANSWER"
        turns = (("user", "QUESTION"), ("assistant", answer))
        (text,) = self.apply_template([turns], open_turn=False)
        _, found, rest = text.rpartition(answer)
        ids = self.tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"]
        if found and ids and ids[0] in self.tokenizer.added_tokens_decoder:
            return ids[0]
        return None


def read_template_arg(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--template-args takes NAME=VALUE, for example a=true; got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def drop_long(
    problems: Sequence[Problem], renderer: Renderer, limit: int
) -> tuple[Sequence[Problem], int]:
    """-> (the problems whose prompts have at most `limit` tokens, how many were dropped).

    The endless stream is judged by one problem of each level and comes back whole. Raises
    ValueError when nothing is left, and when the tokenizer has no tokens for the text.
    """
    endless = isinstance(problems, Arithmetic)
    judged = problems[: WORLDS[problems.world][0]] if endless else problems
    if not judged:
        raise ValueError("there are no problems")
    asked = judged[0].prompt
    back = renderer.tokenizer.decode(renderer(judged[0]))
    if len(back) < 0.9 * len(asked):
        raise ValueError(
            f"this tokenizer cannot write the problems: {asked[:60]!r} comes back as "
            f"{back[:60]!r}. The tiny models read the notation of `arithmetic` alone: a file in it "
            "needs --prompt '{problem}', other problems need a real --model."
        )
    rendered = zip(judged, renderer.render_all(judged), strict=True)
    kept = [problem for problem, ids in rendered if len(ids) <= limit]
    dropped = len(judged) - len(kept)
    if not kept or (endless and dropped):
        raise ValueError(
            f"{dropped} of {len(judged)} prompts exceed {limit} tokens: raise --max-prompt"
        )
    return (problems if endless else kept), dropped
