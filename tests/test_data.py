"""data.py: the tiny world, layouts of files, bad rows, held-out problems, curriculum, rendering."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import string
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

import data
from data import Problem, Renderer

SCALING_DATA = os.environ.get("SCALING_DATA")


# ---- The tiny world -------------------------------------------------------------------------


def test_solutions_of_the_documented_example():
    assert data.solve("a6b-4c+1?") == r"b6-4=2;c2+1=3;\boxed{3}"
    assert data.solve("a6b-4c+1?", style="terse") == r"b2;c3;\boxed{3}"
    assert data.solve("a6b-4c+1?", style="jump") == r"\boxed{3}"
    assert data.solve("a6b-4c+1?", values=2) == r"b6-4=2;c2+1=3;\boxed{23}"
    # The start is the value before the first step.
    assert data.solve("x6y-4?", style="jump", values=2) == r"\boxed{62}"


def test_a_slip_is_written_and_carried_on():
    # Breaks if the working goes on from the true value, or if a slip reaches only what is boxed.
    wrong = data.solve("a6b-4c+1?", slip=lambda result: result + 3)
    assert wrong == r"b6-4=5;c5+1=9;\boxed{9}"
    asked = []
    data.solve("a1b+2c+3d-5?", slip=lambda result: asked.append(result) or 9)
    assert asked == [3, 9, 4]  # once a step; 9+3 does not fit in one digit
    wrong = data.solve("a9b-8c-1?", slip=lambda result: 0, style="terse")
    assert wrong == r"b0;c0;\boxed{0}"


WORLDS = [("arithmetic", 5, 1), ("arithmetic-hard", 10, 2)]


@pytest.mark.parametrize(("world", "levels", "values"), WORLDS)
def test_every_chain_obeys_the_grammar(world, levels, values):
    """A plain loop reads each prompt again: labels in sequence, values in 0..9, the answer."""
    for index in range(2000):
        problem = data.arithmetic_problem(3, index, world)
        assert re.fullmatch(r"[a-z]\d([a-z][+-][1-9])+\?", problem.prompt), problem
        labels = "".join(c for c in problem.prompt if c.isalpha())
        assert labels in string.ascii_lowercase
        start, *steps = re.findall(r"[+-]?\d", problem.prompt)
        running = [int(start)]
        for step in steps:
            running.append(running[-1] + int(step))
        assert 0 <= min(running) and max(running) <= 9, problem
        assert problem.answer == "".join(str(value) for value in running[-values:])
        assert problem.difficulty == len(steps) == 1 + index % levels
        assert problem.source == world
        solution = data.solve(problem.prompt, values=values)
        assert solution.endswith(f"\\boxed{{{problem.answer}}}")


def test_the_stream_is_a_function_of_seed_and_index():
    stream, notes = data.load("arithmetic", seed=7)
    assert notes == []
    assert stream[40] == data.arithmetic_problem(7, 40) == stream[38:42][2]
    assert stream[40] != data.load("arithmetic", seed=8)[0][40]
    with pytest.raises(TypeError, match="endless"):  # else a loop over the stream never ends
        list(stream)


def test_the_stream_is_fixed_for_ever():
    # A change of the draw makes committed models and recorded runs unrepeatable.
    prompts = [problem.prompt for problem in data.load("arithmetic")[0][:3]]
    assert prompts == ["h9i-3?", "v6w-4x+2?", "i0j+8k+1l-8?"]
    text = ""
    for world, _, values in WORLDS:
        for seed in (0, 1, "corpus/0", "tuning/1"):
            for problem in data.Arithmetic(seed, world)[:500]:
                fields = dataclasses.astuple(problem)[:6]
                text += f"{fields} {data.solve(problem.prompt, values=values)}\n"
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "41e43f8821cbe838"


def test_chains_are_drawn_uniformly():
    """Labels, starts and first steps of level 1, before the hold-out: within 5 deviations each."""
    prompts = [data.draw_chain(f"uniform/{i}", 1) for i in range(25 * 2000)]
    for cut, kinds in ((slice(0, 1), 25), (slice(1, 2), 10), (slice(3, 5), 18)):
        assert len(Counter(prompt[cut] for prompt in prompts)) == kinds
    labels = Counter(prompt[0] for prompt in prompts)
    chains = Counter(prompt[1] + prompt[3:5] for prompt in prompts)
    for counts, kinds in ((labels, 25), (chains, 90)):
        mean = len(prompts) / kinds
        assert len(counts) == kinds
        assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


def test_two_values_lower_the_floor():
    """Guessing one digit is right one time in ten, guessing the commonest pair one in 90."""
    for world, most in (("arithmetic", 0.12), ("arithmetic-hard", 0.02)):
        answers = Counter(p.answer for p in data.load(world)[0][:10000] if p.difficulty > 1)
        assert max(answers.values()) / answers.total() < most


def unlabelled(prompt):
    return re.sub("[a-z]", "", prompt)


@pytest.mark.parametrize(("world", "levels", "_"), WORLDS)
def test_held_out_problems_are_out_of_every_stream(world, levels, _):
    # Breaks if the hash is of the whole prompt (other labels, same sum), or depends on the seed.
    test, _ = data.load(world, "test")
    assert test == data.load(f"{world}:test", seed=5)[0]
    assert len({problem.prompt for problem in test}) == 500
    assert all(data.held_out(problem.prompt) for problem in test)
    counts = Counter(problem.difficulty for problem in test)
    assert counts == {level: 500 / levels for level in range(1, levels + 1)}
    chains = {unlabelled(problem.prompt) for problem in test}
    for seed in (0, 1, "pretraining"):
        stream = data.Arithmetic(seed, world)[:4000]
        assert not chains & {unlabelled(problem.prompt) for problem in stream}


def test_both_sides_have_enough_short_chains():
    digits = range(10)
    chains = [f"{start}{end - start:+d}?" for start in digits for end in digits if start != end]
    out = {chain for chain in chains if data.held_out(chain)}
    assert (len(chains), len(out)) == (90, 27)
    train = {unlabelled(data.arithmetic_problem(0, i).prompt) for i in range(0, 10000, 5)}
    test = {unlabelled(p.prompt) for p in data.load("arithmetic:test")[0] if p.difficulty == 1}
    assert train == set(chains) - out and test == out


def test_the_held_out_set_is_fixed_for_ever():
    # Scores of different days are comparable only while this digest stands.
    text = "\n".join(problem.prompt for problem in data.load("arithmetic:test")[0])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "6191707c4c7d0563"


def test_tokenizer_survives_a_checkpoint(tmp_path):
    from transformers import AutoTokenizer

    ours = data.make_tokenizer()
    ours.save_pretrained(tmp_path)
    # Beside this file AutoTokenizer rebuilds any tokenizer as a Qwen2Tokenizer.
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(ours) == len(loaded) == 45
    for tokenizer in (ours, loaded):
        special = (tokenizer.bos_token, tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert special == (None, 0, 0)
        for problem in data.load("arithmetic-hard")[0][:200]:
            text = problem.prompt + data.solve(problem.prompt, values=2)
            ids = tokenizer(text)["input_ids"]
            assert ids == ours(text)["input_ids"] and max(ids) < 45 and 0 not in ids
            assert len(ids) == len(text) - len("boxed")  # one token a character, one for \boxed
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode([*ids, 0], skip_special_tokens=True) == text


# ---- Files, directories, the hub ------------------------------------------------------------

ASKED = (
    "You are a knowledgeable math assistant. Answer the following questions and think step by step."
    " 1 + {1}? Please output the final answer within \\boxed{}."
)
TURN = {"role": "user", "content": "1 + {1}?"}
ORZ = [
    {"from": "human", "value": "1 + {1}?"},
    {"from": "assistant", "ground_truth": {"value": "2"}},
]
ROWS = {
    "verl": ({"prompt": [TURN], "reward_model": {"ground_truth": "2"}}, "1 + {1}?"),
    "svamp": ({"Body": "1 +", "Question": "{1}?", "Answer": 2.0}, ASKED),
    "asdiv": ({"body": "1 +", "question": "{1}?", "answer": "2 (apples)"}, ASKED),
    "mawps": ({"input": "1 + {1}?", "target": 2.0}, ASKED),
    "math-500": ({"problem": "1 + {1}?", "solution": "It is \\boxed{3}.", "answer": "2"}, ASKED),
    "math": ({"problem": "1 + {1}?", "solution": "Not \\boxed{3} but \\boxed{2}."}, ASKED),
    "gsm8k": ({"question": "1 + {1}?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}, ASKED),
    "plain": ({"prompt": "1 + {1}?", "answer": 2}, "1 + {1}?"),
    "answer as solution": ({"prompt": "1 + {1}?", "solution": "2"}, "1 + {1}?"),
    "working": ({"prompt": [TURN], "solution": "I say " * 50 + "\\boxed{2}"}, "1 + {1}?"),
    "open-reasoner-zero on the hub": ({"0": ORZ[0], "1": ORZ[1]}, ASKED),
    "one form": ({"problem": "1 + {1}?", "answer": ["2"]}, ASKED),
    "skywork": ({"prompt": [TURN], "reward_model": {"ground_truth": '["2"]'}}, "1 + {1}?"),
}


def write(path, rows):
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def numbered(row, count, column="question"):
    """Copies of a row whose questions differ, so that none is dropped as a repeat."""
    return [row | {column: f"question {i}"} for i in range(count)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("layout", ROWS)
def test_layouts(tmp_path, layout, suffix):
    row, prompt = ROWS[layout]
    problems, notes = data.load(write(tmp_path / f"toy{suffix}", [row]))
    assert problems == [Problem(0, prompt, "2", None, "toy")]
    assert notes == []


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_rows_that_are_lists_of_turns(tmp_path, suffix):
    problems, _ = data.load(write(tmp_path / f"orz{suffix}", [ORZ]))
    assert problems == [Problem(0, ASKED, "2", None, "orz")]


DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    "%s\n\nRemember to put your answer on its own line after \"Answer:\"."
)


def test_dapo_with_its_hundred_copies(tmp_path):
    rows = []
    for question in ("What is 1 + 1?", "What is 2 + 2?"):
        prompt = [{"role": "user", "content": DAPO % question}]
        truth = {"ground_truth": str(2 * int(question[8])), "style": "rule-lighteval/MATH_v2"}
        row = {"data_source": "math_dapo", "prompt": prompt, "ability": "MATH"}
        rows += [row | {"reward_model": truth, "extra_info": {"index": "x"}}] * 100
    problems, notes = data.load(write(tmp_path / "dapo.parquet", rows))
    assert [(p.index, p.answer, p.source) for p in problems] == [
        (0, "2", "math_dapo"),
        (100, "4", "math_dapo"),
    ]
    assert notes == [f"{tmp_path / 'dapo.parquet'}: 198 repeated prompts dropped"]


def test_several_turns(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, TURN]
    (problem,), _ = data.load(write(tmp_path / "toy.jsonl", [{"prompt": turns, "answer": "2"}]))
    assert problem.turns == (("system", "Be brief."), ("user", "1 + {1}?"))
    assert problem.prompt == "1 + {1}?"


def test_answers_in_several_forms(tmp_path):
    rows = [
        {"problem": "a", "answer": ["1/2", "0.5", "1/2", ""]},
        {"problem": "b", "answer": '["x = \\\\frac{1}{2}", "0.5"]'},
        {"problem": "c", "answer": '["a" < "b"]'},  # only looks like JSON
    ]
    problems, notes = data.load(write(tmp_path / "toy.jsonl", rows))
    assert [(p.answer, p.alternatives) for p in problems] == [
        ("1/2", ("0.5",)),
        ("x = \\frac{1}{2}", ("0.5",)),
        ('["a" < "b"]', ()),
    ]
    assert notes == [f"{tmp_path / 'toy.jsonl'}: 2 answers are lists; each entry counts as right"]


def test_prompt_of_the_user(tmp_path):
    path = write(tmp_path / "toy.jsonl", [{"question": "1 + {1}?", "answer": "2"}])
    (problem,), notes = data.load(path, prompt="Q: {problem}\nWithin \\boxed{}.")
    assert problem.prompt == "Q: 1 + {1}?\nWithin \\boxed{}." and notes == []
    with pytest.raises(ValueError, match=r"--prompt must hold \{problem\}.*'Think.'"):
        data.load(path, prompt="Think.")
    # A prompt that would be ignored silently is named.
    path = write(tmp_path / "asked.jsonl", [{"prompt": "1 + 1?", "answer": "2"}])
    (problem,), notes = data.load(path, prompt="Q: {problem}")
    assert problem.prompt == "1 + 1?" and "--prompt is not used" in notes[0]
    assert "--prompt is not used" in data.load("arithmetic", prompt="Q: {problem}")[1][0]


def test_difficulty_and_source(tmp_path):
    rows = numbered({"answer": "1"}, 5)
    rows[0] |= {"extra_info": {"qwen2.5_7b_pass_rate": 0.25}, "data_source": "guru"}
    rows[1] |= {"qwen2.5_7b_pass_rate": 1.0}
    rows[2] |= {"difficulty": 3}
    rows[3] |= {"difficulty": "hard", "extra_info": {"qwen2.5_7b_pass_rate": None}}
    rows[4] |= {"qwen2.5_7b_pass_rate": float("nan")}
    problems, _ = data.load(write(tmp_path / "toy.jsonl", rows))
    # Breaks if a pass rate is taken as it is.
    assert [p.difficulty for p in problems] == [0.75, 0.0, 3.0, None, None]
    assert [p.source for p in problems] == ["guru", *["toy"] * 4]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (145.0, "145"), (-3.0, "-3"), (1.84, "1.84"), (0.5, "0.5"), (7, "7"), ("1,080", "1,080"),
        (" 12 ", "12"), (0.6666666667, "2/3"), (10.3333333333, "31/3"), (0.9166666667, "11/12"),
        # Rounded, but no simple fraction: 355/113 is 3e-7 away.
        (3.14159265358979, "3.14159265358979"),
        ("so\n#### 1,080", "1,080"), ("\\(\\boxed{\\frac{1}{2}}\\)", "\\frac{1}{2}"),
        ("\\\\frac{\\\\sqrt{5}-1}{2}", "\\frac{\\sqrt{5}-1}{2}"), ("\\\\{1, 2\\\\}", "\\{1, 2\\}"),
        # A matrix has line breaks beside single backslashes: nothing was escaped twice.
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("x \\equiv 3 (mod 7)", "x \\equiv 3 (mod 7)"), ("9 (apples)", "9 (apples)"),
        ("f(2)", "f(2)"), (None, ""), (float("nan"), ""), (float("inf"), ""), ("", ""),
        ("no number ####", ""),
    ],
)  # fmt: skip
def test_answers(value, text):
    assert data.read_answer(value) == text


def test_answers_with_a_unit_or_at_the_end_of_working():
    for value, text in (
        ("14  (seats)", "14"),
        ("0.46 (dollars)", "0.46"),
        ("36 (sq. inches)", "36"),
        ("5:6", "5:6"),
        ("-(1/3)", "-(1/3)"),
        ("Mrs. Hilt", "Mrs. Hilt"),
        ("3:30 p.m.", "3:30 p.m."),
    ):
        assert data.read_answer(value, "unit") == text
    # A proof is no answer to be compared with.
    assert data.read_answer("Therefore 1 + 1 is even.", "working") == ""
    assert data.read_answer("Therefore it is even. " * 9, "either") == ""


# ---- Rows and files that are no good --------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"answer": "proof"}, "no answer"),
        ({"answer": "\\boxed{notfound}"}, "no answer"),
        ({"answer": "NotFound"}, "no answer"),
        ({"answer": ""}, "no answer"),
        ({"answer": None}, "no answer"),
        ({"answer": float("nan")}, "no answer"),
        ({"answer": []}, "no answer"),
        ({"answer": ["", "proof"]}, "no answer"),
        ({"answer": {"value": 2}}, "the answer is a list or an object"),
        ({"answer": [["2"]]}, "the answer is a list or an object"),
        ({"answer": [1, 2]}, "the answer is a list of things that are not text"),
        ({"question": " "}, "no question"),
        ({"question": ["1 + 1?"]}, "the question is not text"),
        ({"question": {"text": "1 + 1?"}}, "the question is not text"),
    ],
)
def test_rows_that_are_no_problems(tmp_path, bad, reason):
    """Dropped and counted. Today's Python repr of a list was asked, and `proof` could be scored."""
    rows = numbered({"answer": "1"}, 40)
    for place in (3, 8, 20, 30):
        rows[place] = rows[place] | bad
    path = write(tmp_path / "toy.jsonl", rows)
    problems, notes = data.load(path)
    assert [p.index for p in problems] == [i for i in range(40) if i not in (3, 8, 20, 30)]
    assert notes == [f"{path}: 4 of 40 rows dropped, {reason} (rows 3, 8, 20, .., counted from 0)"]
    # A tenth may go, more may not.
    rows[35] = rows[35] | bad
    with pytest.raises(ValueError, match=rf"toy.jsonl: 5 of 40 rows dropped, {reason}.*a tenth"):
        data.load(write(tmp_path / "toy.jsonl", rows))


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([{"role": "user", "content": ["1 + 1?"]}], "not a role and a text"),
        ([{"role": "system", "content": "1 + 1?"}], "not end with a turn of the user"),
        ([TURN, {"role": "assistant", "content": "2"}], "not end with a turn of the user"),
        ([], "no question"),
        ({"text": "1 + 1?"}, "no question"),
        ("[{'content': 'x', 'role': 'user'}, print(1)]", "inside the prompt cannot be read"),
        ("[{'content':", "inside the prompt cannot be read"),
    ],
)
def test_prompts_that_are_no_turns(tmp_path, prompt, reason):
    rows = numbered({"answer": "1"}, 20, "prompt")
    rows[7]["prompt"] = prompt
    problems, notes = data.load(write(tmp_path / "toy.jsonl", rows))
    assert len(problems) == 19 and reason in notes[0] and "rows 7," in notes[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "bad.jsonl: no rows"),
        ([{"text": "1", "label": "2"}], r"\['label', 'text'\].*Body \+ Question -> Answer"),
        ([{"question": "1", "answer": None}], r"\['question'\]"),
        ([["1", "2"]], r"\['0', '1'\]"),
        ([{"question": "1", "answer": "1", "qwen2.5_7b_pass_rate": "high"}], "row 0.*'high'"),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(tmp_path / "bad.jsonl", rows))


def test_half_of_a_surrogate_pair(tmp_path):
    """It would fail later, in the tokenizer, without the file's name."""
    path = tmp_path / "bad.jsonl"
    broken_question = r'{"question": "\ud800 + 1?", "answer": "1"}'
    broken_answer = r'{"question": "1", "answer": "\udc00"}'
    for row in (broken_question, broken_answer):
        path.write_text('{"question": "0", "answer": "1"}\n' + row)
        with pytest.raises(ValueError, match=r"bad.jsonl, row 1.*half of a surrogate pair.*remove"):
            data.load(str(path))
    path.write_text(r'{"question": "\ud83d\ude00 + 1?", "answer": "1"}')  # a whole pair
    assert "\U0001f600" in data.load(str(path))[0][0].prompt


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("latin-1", "LATIN1"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16")],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_other_encodings(tmp_path, encoding, named, suffix):
    path = tmp_path / f"bad{suffix}"
    text = json.dumps({"question": "Wie groß ist 1 + 1?", "answer": "2"}, ensure_ascii=False)
    path.write_bytes((f"[{text}]" if suffix == ".json" else text).encode(encoding))
    with pytest.raises(ValueError, match=rf"bad{suffix} is not UTF-8.*iconv -f {named} -t UTF-8"):
        data.load(str(path))
    path.write_bytes((f"[{text}]" if suffix == ".json" else text).encode("utf-8-sig"))
    assert "groß" in data.load(str(path))[0][0].prompt


def test_bad_files(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "1", "answer": "1"}\n\n{"question": \n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 3: not JSON"):
        data.load(str(path))
    path.write_text("1\n")
    with pytest.raises(ValueError, match="expected objects"):
        data.load(str(path))
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: not JSON"):
        data.load(str(path))
    (tmp_path / "bad.json").write_text('[{"question": "1",\n "answer": }]')
    with pytest.raises(ValueError, match=r"bad.json, line 2: not JSON"):
        data.load(str(tmp_path / "bad.json"))
    (tmp_path / "bad.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"end in .jsonl, .json, .parquet, not '.csv'"):
        data.load(str(tmp_path / "bad.csv"))
    (tmp_path / "bad.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"bad.parquet is no whole Parquet file.*Fetch it again"):
        data.load(str(tmp_path / "bad.parquet"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl"):
        data.load("nowhere.jsonl")
    with pytest.raises(ValueError, match="not 'validation'"):
        data.load("arithmetic:validation")
    with pytest.raises(ValueError, match=r"one split; give it as .*bad.jsonl$"):
        data.load(f"{path}:test")


def test_line_separators_inside_a_string_do_not_end_a_row(tmp_path):
    # Breaks with str.splitlines(), which also cuts at U+2028 and U+0085.
    rows = [{"question": "1\u20281\u0085?", "answer": "2"}]
    assert len(data.load(write(tmp_path / "toy.jsonl", rows))[0]) == 1


@pytest.fixture
def hub(monkeypatch):
    """A fake of the package datasets, which knows one set with two configurations."""
    asked = []

    def load_dataset(path, name=None, *, split=None):
        asked.append((path, name, split))
        if path != "openai/gsm8k":
            raise ConnectionError("could not reach the hub")
        if name is None:
            raise ValueError("Config name is missing")
        return SimpleNamespace(to_list=lambda: [{"question": "?", "answer": "#### 2"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_hub_names(hub):
    assert data.load("openai/gsm8k", "test")[0][0].answer == "2"
    (problem,), _ = data.load("openai/gsm8k/socratic:train[:100]", "test")
    assert problem.source == "openai/gsm8k/socratic"
    assert hub == [
        ("openai/gsm8k", None, "test"),
        ("openai/gsm8k", "main", "test"),
        ("openai/gsm8k", "socratic", "train[:100]"),
    ]
    message = r"no-such .split train.*could not reach(?s:.)*`arithmetic`"
    with pytest.raises(FileNotFoundError, match=message):
        data.load("no-such")


def test_a_local_path_is_never_a_hub_name(hub, tmp_path, monkeypatch):
    """/abs/dir was read as the set /abs of the hub, which datasets takes for a directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets" / "toy").mkdir(parents=True)
    for name in ("/no/such/dir", "./no/such", "../no", "~/no", "sets/toy/none", "/no/such:test"):
        with pytest.raises(FileNotFoundError, match=f"no file or directory {name.split(':')[0]}"):
            data.load(name)
    assert hub == []


@pytest.mark.parametrize("relative", [True, False])
def test_directories_in_data_set_layout(tmp_path, monkeypatch, relative):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sets" / "toy"
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", 5), ("test", 3)):
        rows = numbered({"answer": split}, count)
        write(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
    name = "sets/toy" if relative else str(folder)
    problems, _ = data.load(name)
    assert [p.answer for p in problems] == ["train"] * 5 and problems[0].source == "toy"
    assert [p.answer for p in data.load(f"{name}:test")[0]] == ["test"] * 3
    with pytest.raises(ValueError, match=r"toy \(split validation\) is no data set"):
        data.load(name, "validation")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty \(split train\) is no data set"):
        data.load("empty" if relative else str(tmp_path / "empty"))


def test_a_directory_of_everything_is_no_data_set(monkeypatch, tmp_path):
    """--data /tmp walked the whole folder until it was killed."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it was searched"))
    monkeypatch.setattr(data, "MOST_FILES", 5)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for i in range(6):
        (tmp_path / "a" / "b" / f"{i}.txt").touch()
    with pytest.raises(ValueError, match=r"more than 5 files, so this is no data set; give the"):
        data.load(str(tmp_path))


@pytest.mark.skipif(not SCALING_DATA, reason="SCALING_DATA names no folder of problem sets")
def test_published_files():
    folder = Path(SCALING_DATA) / "data"
    # file: (rows, repeated prompts)
    sizes = {
        "svamp.jsonl": (1000, 0),
        "mawps.jsonl": (2065, 87),
        "asdiv.jsonl": (2215, 1),
        "gsm8k_train.jsonl": (7473, 0),
        "eval/aime2024.parquet": (30, 0),
        "eval/amc2023.parquet": (40, 0),
        "eval/gsm8k.parquet": (1319, 0),
        "eval/math__math_500.parquet": (500, 0),
        "guru/math__full_difficulty_ordered_test_500.parquet": (500, 0),
        "guru/math__sampled_1_5_10240.parquet": (10240, 16),
        "guru/math__sampled_1_10_5120.parquet": (5120, 2),
        "guru/math__sampled_1_20_2560.parquet": (2560, 0),
        "guru/math__sampled_1_25_2048.parquet": (2048, 0),
        "guru/math__sampled_1_50_1024.parquet": (1024, 0),
        "guru/math__sampled_1_100_512.parquet": (512, 0),
    }
    start, end = data.PROMPT.split("{problem}")
    number = re.compile(r"-?\d[\d,]*(\.\d+|/\d+)?")
    pairs_only = 0
    for name, (rows, repeats) in sizes.items():
        problems, notes = data.load(str(folder / name))
        assert len(problems) == rows - repeats, name
        expected = [f"{folder / name}: {repeats} repeated prompts dropped"] if repeats else []
        assert notes == expected
        assert data.unread_format(problems) == ""
        for problem in problems:
            assert problem.prompt.startswith(start), name
            assert problem.prompt.endswith("within \\boxed{}."), name
            runs = re.findall(r"\\+", problem.answer)
            pairs_only += bool(runs) and all(len(run) % 2 == 0 for run in runs)
            if name == "asdiv.jsonl":
                assert not ("(" in problem.answer and problem.answer[0].isdigit())
            elif "/" not in name:
                assert number.fullmatch(problem.answer), name
        if name.startswith("guru"):
            assert all(0 <= p.difficulty <= 1 and p.prompt.endswith(end) for p in problems)
            assert data.order(problems) == problems  # in curriculum order already
        else:
            assert all(p.difficulty is None for p in problems)
    # 1,174 of the 10,240 references of tau = 5 are escaped twice in the file.
    assert pairs_only == 0
    assert data.load(str(folder / "svamp.jsonl"))[0][0].answer == "145"


@pytest.mark.skipif(not SCALING_DATA, reason="SCALING_DATA names no folder of problem sets")
def test_published_files_of_other_kinds():
    folder = Path(SCALING_DATA) / "data" / "eval"
    for name, kind, count in (
        ("codegen__humaneval_164", "code", 164),
        ("logic__zebra_puzzle_dataset_200", "grid", 200),
        ("stem__supergpqa_200", "choice", 200),
    ):
        problems, notes = data.load(str(folder / f"{name}.parquet"))
        assert {p.kind for p in problems} == {kind} and len(problems) == count and not notes
        assert not any(p.prompt.startswith("[{") for p in problems)


# ---- From problems to a run -----------------------------------------------------------------


def test_held_out_by_content(tmp_path):
    """Breaks if rows are split: 240 of 240 held-out prompts were also trained on."""
    rows = []
    for copy in range(10):
        space = " " * (1 + copy % 3)  # the same question in other spacing
        rows += [{"question": f"What{space}is {i} + 1?", "answer": str(i + 1)} for i in range(120)]
    problems, notes = data.load(write(tmp_path / "toy.jsonl", rows))
    assert len(problems) == 120 and "1,080 repeated prompts dropped" in notes[0]
    repeated = [Problem(i, row["question"], row["answer"]) for i, row in enumerate(rows)]
    for given in (problems, repeated):
        training, held_out = data.split_held_out(given, 20)
        texts = {data.content(p) for p in held_out}
        assert len(held_out) == len(texts) == 20
        assert not texts & {data.content(p) for p in training}
        assert len({data.content(p) for p in training}) == 100


def test_held_out_is_evenly_spaced_and_at_most_a_fifth():
    problems = [Problem(i, str(i), "1") for i in range(100)]
    training, held_out = data.split_held_out(problems, 10)
    assert [p.index for p in held_out] == list(range(5, 100, 10))
    assert len(training) == 90 and not set(training) & set(held_out)
    assert data.split_held_out(problems, 10) == (training, held_out)
    assert len(data.split_held_out(problems, 500)[1]) == 20
    assert [len(part) for part in data.split_held_out(problems[:2], 500)] == [1, 1]


def test_turns_count_as_content():
    asked = (("user", "1 + 1?"),)
    brief = (("system", "Be brief."), *asked)
    problems = [Problem(0, "1 + 1?", "2", turns=brief), Problem(1, "1 + 1?", "2")]
    assert data.drop_repeats(problems) == problems
    assert data.drop_repeats([*problems, Problem(2, "1  + 1?\n", "2")]) == problems


def test_held_out_of_one_problem(tmp_path):
    problems, _ = data.load(write(tmp_path / "lonely.jsonl", [{"question": "?", "answer": "1"}]))
    with pytest.raises(ValueError, match=r"lonely has 1 problem.*Give a file with more"):
        data.split_held_out(problems, 10)


def test_held_out_of_the_tiny_world():
    stream, _ = data.load("arithmetic-hard")
    training, held_out = data.split_held_out(stream, 60)
    assert training is stream and held_out == data.load("arithmetic-hard:test")[0][:60]


def test_curriculum():
    # Breaks if hard comes first, if equals change places, or if an unknown difficulty is easy.
    given = [0.5, None, 0.0, 0.5, 1.0, None, 0.0]
    problems = [Problem(i, "?", "1", d) for i, d in enumerate(given)]
    assert [p.index for p in data.order(problems)] == [2, 6, 0, 3, 4, 1, 5]
    unknown = [Problem(i, "?", "1") for i in range(4)]
    assert data.order(unknown) == unknown


@pytest.mark.parametrize("tau", [2, 5, 25])
def test_reuse(tau):
    """total / tau problems, in order, classes of difficulty in proportion."""
    difficulties = [0.0] * 1200 + [0.5] * 600 + [1.0] * 1200
    problems = [Problem(i, "?", "1", d) for i, d in enumerate(difficulties)]
    total = 2000
    epoch = data.order(problems, tau, total)
    assert len(set(epoch)) == len(epoch) == total // tau
    shares = Counter(p.difficulty for p in epoch)
    for difficulty, share in ((0.0, 0.4), (0.5, 0.2), (1.0, 0.4)):  # breaks if the easiest are kept
        assert abs(shares[difficulty] - share * len(epoch)) <= 1
    assert all(a.difficulty <= b.difficulty for a, b in pairwise(epoch))


def test_reuse_of_the_tiny_world_is_stratified_too():
    stream, _ = data.load("arithmetic")
    epoch = data.order(stream, 4, 1000)
    assert epoch == stream[:250]
    assert set(Counter(p.difficulty for p in epoch).values()) == {50}


def test_reuse_that_cannot_be_had():
    problems = [Problem(i, "?", "1") for i in range(10)]
    # Rounded up, so that no problem is seen more than tau times.
    assert len(data.order(problems, 3, 10)) == 4
    for reuse, total in ((2, 30), (0, 30), (2, 0), (-1, 5)):
        with pytest.raises(ValueError, match="a reuse of"):
            data.order(problems, reuse, total)


def test_digest():
    """Every part that a run learns from changes it, and another process finds the same."""
    base = Problem(0, "1 + 1?", "2")
    others = [
        Problem(0, "1 + 2?", "2"),
        Problem(0, "1 + 1?", "3"),
        Problem(0, "1 + 1?", "2", turns=(("system", "x"), ("user", "1 + 1?"))),
        Problem(0, "1 + 1?", "2", alternatives=("two",)),
    ]
    digests = {data.digest([problem]) for problem in (base, *others)}
    digests |= {data.digest([base, base]), data.digest([])}
    digests |= {data.digest([base, others[0]]), data.digest([others[0], base])}
    assert len(digests) == 9 and all(re.fullmatch(r"[0-9a-f]{32}", d) for d in digests)
    streams = [data.Arithmetic(seed, world) for seed in (0, 1) for world in data.WORLDS]
    assert len({data.digest(stream) for stream in streams}) == 4
    assert data.digest(data.Arithmetic(1)) == data.digest(data.Arithmetic(1))


def asked(prompt, count=30):
    return [Problem(i, prompt % f"What is {i} + 1?", str(i + 1), None, "toy") for i in range(count)]


def test_unread_format(monkeypatch):
    """A format that the grader does not read gave every right answer 0."""
    import reward

    def boxes_only(text):
        return text[len("\\boxed{") : -1] if text.startswith("\\boxed{") else None

    monkeypatch.setattr(reward, "extract", boxes_only)
    assert data.unread_format(asked("%s Within \\boxed{}.")) == ""
    for prompt in (DAPO, "%s", "%s Answer in <answer> </answer>."):
        warning = data.unread_format(asked(prompt))
        assert warning.startswith("20 of 20 prompts ask for no form") and "of toy" in warning
        assert "its answer is '" in warning and "\\boxed{}" in warning
    # It is the grader that decides, here and when completions are graded.
    monkeypatch.setattr(reward, "extract", lambda text: text.partition("Answer: ")[2] or None)
    assert data.unread_format(asked(DAPO)) == ""
    assert data.unread_format(asked("%s Within \\boxed{}.")) != ""


def test_unread_format_of_what_needs_none():
    assert data.unread_format(data.load("arithmetic")[0]) == ""
    assert data.unread_format(data.load("arithmetic:test")[0]) == ""
    assert data.unread_format([Problem(0, "def f():", "assert f()", kind="code")]) == ""
    assert data.unread_format([]) == ""
    assert data.unread_format(asked("%s")) != ""  # with the real grader


# ---- Tokens ---------------------------------------------------------------------------------


def byte_tokenizer(chat_template=None, special=()):
    """One token a byte, and a bos that the tokenizer itself adds to a text, as Llama 3's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(["<s>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = chat_template
    return tokenizer


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if add_generation_prompt and thinking is defined %}{{ thinking }}{% endif %}"
)
MARKS = ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("chat_template", "template", "text"),
    [
        # Breaks without the generation prompt, or with a second <s>.
        (TEMPLATE, "auto", "<s>[user]1 + 1?[assistant]"),
        (TEMPLATE, "chat", "<s>[user]1 + 1?[assistant]"),
        (TEMPLATE, "plain", "<s>1 + 1?"),
        (None, "auto", "<s>1 + 1?"),
        (None, "plain", "<s>1 + 1?"),
    ],
)
def test_renderer(chat_template, template, text):
    tokenizer = byte_tokenizer(chat_template)
    renderer = Renderer(tokenizer, template)
    ids = renderer(Problem(0, "1 + 1?", "2"))
    assert tokenizer.decode(ids) == text and ids.count(0) == 1
    assert type(ids) is list and type(ids[0]) is int and renderer.tokenizer is tokenizer
    assert renderer.text(ids) == text.replace("<s>", "")


def test_renderer_of_the_tiny_world():
    renderer = Renderer(data.make_tokenizer())
    assert renderer.text([*renderer(Problem(0, "a6b-4?", "2")), 0]) == "a6b-4?"
    assert renderer.end_token is None


def test_renderer_of_several_turns():
    turns = (("system", "Be brief."), ("user", "2?"), ("assistant", "2"), ("user", "1 + 1?"))
    problem = Problem(0, "1 + 1?", "2", turns=turns)
    chat = Renderer(byte_tokenizer(TEMPLATE))
    text = "<s>[system]Be brief.[user]2?[assistant]2[user]1 + 1?[assistant]"
    assert chat.tokenizer.decode(chat(problem)) == text
    plain = Renderer(byte_tokenizer())
    assert plain.text(plain(problem)) == "Be brief.\n\n2?\n\n2\n\n1 + 1?"
    # Breaks if the prompt alone keys the cache.
    assert chat(Problem(1, "1 + 1?", "2")) != chat(problem)


@pytest.mark.parametrize("chat_template", [TEMPLATE, None])
def test_render_all_is_one_after_the_other(chat_template, monkeypatch):
    monkeypatch.setattr(data, "BATCH", 7)
    problems = [Problem(i, f"{i % 20} + {'x' * (i % 5)}?", "2") for i in range(50)]
    one_by_one = Renderer(byte_tokenizer(chat_template))
    ids = [one_by_one(problem) for problem in problems]
    renderer = Renderer(byte_tokenizer(chat_template))
    assert renderer.render_all(problems) == ids
    assert renderer.render_all(problems[::-1]) == ids[::-1]
    # A caller that changes its list changes nothing for the next one.
    renderer(problems[0]).append(5)
    assert renderer(problems[0]) == ids[0]
    assert renderer.render_all([]) == []


def test_render_all_keeps_a_bounded_number(monkeypatch):
    monkeypatch.setattr(data, "CACHED", 10)
    renderer = Renderer(byte_tokenizer())
    problems = [Problem(i, str(i), "2") for i in range(30)]
    assert len(renderer.render_all(problems)) == 30 and len(renderer.cache) == 10
    assert renderer(problems[0]) == Renderer(byte_tokenizer())(problems[0])


def test_a_template_with_a_date_renders_once():
    template = "{{ strftime_now('%f') }}" + TEMPLATE  # microseconds
    renderer = Renderer(byte_tokenizer(template))
    first = renderer(Problem(0, "1 + 1?", "2"))
    assert all(renderer(Problem(i, "1 + 1?", "2")) == first for i in range(20))


def test_template_args():
    tokenizer = byte_tokenizer(CHATML, MARKS)
    problem = Problem(0, "1?", "2")
    for value, text in (("off", "off"), ("false", "False"), ("3", "3")):
        argument = f"thinking={value}"
        renderer = Renderer(tokenizer, template_args=(argument,))
        assert renderer.text(renderer(problem)).endswith("assistant\n" + text)
    for argument in ("thinking", "=1", "a b=1"):
        with pytest.raises(ValueError, match=f"NAME=VALUE.*got {argument!r}"):
            Renderer(tokenizer, template_args=(argument,))
    with pytest.raises(ValueError, match="need a chat template"):
        Renderer(byte_tokenizer(), template_args=("thinking=off",))


@pytest.mark.parametrize(
    ("template", "special", "end"),
    [
        (CHATML, MARKS, "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }} </s> {% endfor %}", ("</s>",), "</s>"),
        ("Say ANSWER.{{ eos_token }}" + CHATML, MARKS, "<|im_end|>"),
        (TEMPLATE, (), None),  # nothing follows the model's turn
        (CHATML, (), None),  # the mark is no token
        ("{% for m in messages %}{{ m.role }}</s>{% endfor %}", ("</s>",), None),  # no content
    ],
)
def test_end_token(template, special, end):
    """A base model whose generation_config does not list <|im_end|> ran on and invented turns."""
    tokenizer = byte_tokenizer(template, special)
    expected = end and tokenizer.convert_tokens_to_ids(end)
    assert Renderer(tokenizer).end_token == expected
    assert Renderer(tokenizer, "plain").end_token is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{% for m in messages %}", "end of template"),
        ("{{ 1 + messages }}", "unsupported operand"),
    ],
)
def test_templates_that_fail(template, message):
    message = rf"chat template of .* fails.*{message}.*--template plain"
    with pytest.raises(ValueError, match=message):
        Renderer(byte_tokenizer(template))


def test_a_template_that_fails_on_one_prompt():
    template = "{% if 'x' in messages[0].content %}{{ raise_exception('x') }}{% endif %}" + TEMPLATE
    renderer = Renderer(byte_tokenizer(template))
    renderer(Problem(0, "1", "2"))
    with pytest.raises(ValueError, match=r"fails.*x"):
        renderer.render_all([Problem(0, "1", "2"), Problem(1, "x", "2")])


def test_a_template_that_never_ends(monkeypatch):
    """10 ** 20 rounds: without the bound this test does not end."""
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}"
    template = loop + loop + "{% set k = j %}" + "{% endfor %}" * 4 + TEMPLATE
    monkeypatch.setattr(data, "TEMPLATE_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(ValueError, match=r"more than 0.2 s of computing.*--template plain"):
        Renderer(byte_tokenizer(template))
    assert signal.getsignal(signal.SIGVTALRM) is before
    Renderer(byte_tokenizer(TEMPLATE))
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)  # nothing is left running
    assert signal.getsignal(signal.SIGVTALRM) is before


def test_renderer_in_another_thread():
    """Signals reach the main thread only; rendering must work elsewhere all the same."""
    with ThreadPoolExecutor(1) as pool:
        ids = pool.submit(lambda: Renderer(byte_tokenizer(TEMPLATE))(Problem(0, "1", "2"))).result()
    assert ids == Renderer(byte_tokenizer(TEMPLATE))(Problem(0, "1", "2"))


def test_template_choices():
    with pytest.raises(ValueError, match="auto, chat or plain, not 'chatml'"):
        Renderer(byte_tokenizer(), "chatml")
    with pytest.raises(ValueError, match="no chat template: use plain"):
        Renderer(byte_tokenizer(), "chat")


def test_drop_long():
    problems = [Problem(i, "x" * n, "1") for i, n in enumerate((3, 9, 8, 20))]
    renderer = Renderer(byte_tokenizer())
    kept, dropped = data.drop_long(problems, renderer, 9)  # 8 and a bos just fit
    assert [p.index for p in kept] == [0, 2] and dropped == 2  # the index stays, it keys the noise
    with pytest.raises(ValueError, match="4 of 4 prompts exceed 2 tokens"):
        data.drop_long(problems, renderer, 2)
    stream, tiny = data.Arithmetic(0), Renderer(data.make_tokenizer())
    # A start, five steps of three characters, and the question mark.
    assert data.drop_long(stream, tiny, 18) == (stream, 0)
    with pytest.raises(ValueError, match="1 of 5 prompts"):
        data.drop_long(stream, tiny, 17)
    with pytest.raises(ValueError, match="cannot write the problems: 'Two apples"):
        data.drop_long([Problem(0, "Two apples and TWO pears", "4")], tiny, 100)
    with pytest.raises(ValueError, match="no problems"):
        data.drop_long([], tiny, 100)


def test_import_is_light():
    """Pretraining imports data.py for the tiny world alone, on machines without the rest."""
    heavy = ("torch", "transformers", "datasets", "pyarrow", "sympy")
    code = (
        "import sys, data; data.load('arithmetic')[0][:9]; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    root = Path(data.__file__).parent
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr
