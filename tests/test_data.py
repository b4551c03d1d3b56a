"""data.py: the tiny world and its held-out set, the layouts of files, templates, curriculum and reuse."""

import hashlib
import json
import os
import re
import string
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

import data
from data import Problem

SCALING_DATA = os.environ.get("SCALING_DATA")


# ---- The tiny world -----------------------------------------------------------------------------------------------


def test_solutions_of_the_documented_example():
    assert data.solve("a6b-4c+1?") == r"b6-4=2;c2+1=3;\boxed{3}"
    assert data.solve("a6b-4c+1?", style="terse") == r"b2;c3;\boxed{3}"
    assert data.solve("a6b-4c+1?", style="jump") == r"\boxed{3}"
    assert data.solve("a6b-4c+1?", values=2) == r"b6-4=2;c2+1=3;\boxed{23}"
    assert data.solve("x6y-4?", style="jump", values=2) == r"\boxed{62}"  # the start is the value before the first step


def test_a_slip_is_written_and_carried_on():
    # Breaks if the working goes on from the true value, or if a slip reaches only what is boxed.
    assert data.solve("a6b-4c+1?", slip=lambda result: result + 3) == r"b6-4=5;c5+1=9;\boxed{9}"
    asked = []
    data.solve("a1b+2c+3d-5?", slip=lambda result: asked.append(result) or 9)
    assert asked == [3, 9, 4]  # once a step; 9+3 does not fit in one digit
    assert data.solve("a9b-8c-1?", slip=lambda result: 0, style="terse") == r"b0;c0;\boxed{0}"


@pytest.mark.parametrize(("world", "levels", "values"), [("arithmetic", 5, 1), ("arithmetic-hard", 10, 2)])
def test_every_chain_obeys_the_grammar(world, levels, values):
    """Each prompt is read again by a plain loop of its own: labels in sequence, values in 0..9, the answer."""
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
        assert problem.difficulty == len(steps) == 1 + index % levels and problem.source == world
        assert data.solve(problem.prompt, values=values).endswith(f"\\boxed{{{problem.answer}}}")


def test_the_stream_is_a_function_of_seed_and_index():
    stream = data.load("arithmetic", seed=7)[0]
    assert stream[40] == data.arithmetic_problem(7, 40) == stream[38:42][2]
    assert stream[40] != data.load("arithmetic", seed=8)[0][40]
    # Pinned: a change of the draw makes committed models and recorded runs unrepeatable.
    assert [problem.prompt for problem in data.load("arithmetic")[0][:3]] == ["h9i-3?", "v6w-4x+2?", "i0j+8k+1l-8?"]
    with pytest.raises(TypeError, match="endless"):  # else a list comprehension over the stream never ends
        list(stream)


def test_chains_are_drawn_uniformly():
    """First letters, starts and first steps of level 1, before the hold-out: each within 5 standard deviations."""
    prompts = [data.draw_chain(f"uniform/{i}", 1) for i in range(25 * 2000)]
    for cut, kinds in ((slice(0, 1), 25), (slice(1, 2), 10), (slice(3, 5), 18)):
        counts = Counter(prompt[cut] for prompt in prompts)
        assert len(counts) == kinds
    for counts, kinds in ((Counter(p[0] for p in prompts), 25), (Counter(p[1] + p[3:5] for p in prompts), 90)):
        mean = len(prompts) / kinds
        assert len(counts) == kinds and all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


def test_two_values_lower_the_floor():
    """Guessing one digit is right about one time in ten, guessing the commonest pair about one time in 90."""
    for world, most in (("arithmetic", 0.12), ("arithmetic-hard", 0.02)):
        answers = Counter(p.answer for p in data.load(world)[0][:10000] if p.difficulty > 1)
        assert max(answers.values()) / answers.total() < most


def unlabelled(prompt):
    return re.sub("[a-z]", "", prompt)


@pytest.mark.parametrize(("world", "levels"), [("arithmetic", 5), ("arithmetic-hard", 10)])
def test_held_out_problems_are_out_of_every_stream(world, levels):
    # Breaks if the bucket is taken from the whole prompt (other labels, same sum), or from the seed.
    test, _ = data.load(world, "test")
    assert test == data.load(f"{world}:test", seed=5)[0]
    assert len({problem.prompt for problem in test}) == 500 and all(data.held_out(p.prompt) for p in test)
    assert Counter(problem.difficulty for problem in test) == {level: 500 / levels for level in range(1, levels + 1)}
    chains = {unlabelled(problem.prompt) for problem in test}
    for seed in (0, 1, "pretraining"):
        assert not any(unlabelled(data.arithmetic_problem(seed, i, world).prompt) in chains for i in range(4000))


def test_both_sides_have_enough_short_chains():
    chains = [f"{start}{end - start:+d}?" for start in range(10) for end in range(10) if start != end]
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
    # With this file AutoTokenizer rebuilds any tokenizer as a Qwen2Tokenizer; a WordLevel model came back as garbage.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(ours) == len(loaded) == 45
    for tokenizer in (ours, loaded):
        assert (tokenizer.bos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, 0, 0)
        for problem in data.load("arithmetic-hard")[0][:200]:
            text = problem.prompt + data.solve(problem.prompt, values=2)
            ids = tokenizer(text)["input_ids"]
            assert ids == ours(text)["input_ids"] and max(ids) < 45 and 0 not in ids
            assert len(ids) == len(text) - len("boxed")  # one token a character, one for \boxed
            assert tokenizer.decode(ids) == tokenizer.decode([*ids, 0], skip_special_tokens=True) == text


# ---- Files and the hub --------------------------------------------------------------------------------------------

ASKED = (
    "You are a knowledgeable math assistant. Answer the following questions and think step by step. 1 + {1}?"
    " Please output the final answer within \\boxed{}."
)
TURN = [{"role": "user", "content": "1 + {1}?"}]
ROWS = {
    "verl": ({"prompt": TURN, "reward_model": {"ground_truth": "2"}}, "1 + {1}?"),
    "svamp": ({"Body": "1 +", "Question": "{1}?", "Answer": 2.0}, ASKED),
    "asdiv": ({"body": "1 +", "question": "{1}?", "answer": "2 (apples)"}, ASKED),
    "mawps": ({"input": "1 + {1}?", "target": 2.0}, ASKED),
    "math-500": ({"problem": "1 + {1}?", "solution": "It is \\boxed{3}.", "answer": "2"}, ASKED),
    "math": ({"problem": "1 + {1}?", "solution": "Not \\boxed{3} but \\boxed{2}."}, ASKED),
    "gsm8k": ({"question": "1 + {1}?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}, ASKED),
    "plain": ({"prompt": "1 + {1}?", "answer": 2}, "1 + {1}?"),
}


def write(path, rows):
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("layout", ROWS)
def test_layouts(tmp_path, layout, suffix):
    row, prompt = ROWS[layout]
    problems = data.load(write(tmp_path / f"toy{suffix}", [row, row]))
    assert problems == [Problem(index, prompt, "2", None, "toy") for index in (0, 1)]


def test_difficulty_and_source(tmp_path):
    base = {"prompt": "?", "answer": "1"}
    rows = [
        {**base, "extra_info": {"qwen2.5_7b_pass_rate": 0.25}, "data_source": "guru"},
        {**base, "qwen2.5_7b_pass_rate": 1.0},
        {**base, "difficulty": 3},
        {**base, "difficulty": "hard", "extra_info": {"qwen2.5_7b_pass_rate": None}},
        {**base, "qwen2.5_7b_pass_rate": float("nan")},
    ]
    problems = data.load(write(tmp_path / "toy.jsonl", rows))
    assert [p.difficulty for p in problems] == [0.75, 0.0, 3.0, None, None]  # breaks if a pass rate is taken as it is
    assert [p.source for p in problems] == ["guru", *["toy"] * 4]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (145.0, "145"), (-3.0, "-3"), (1.84, "1.84"), (0.5, "0.5"), (7, "7"), ("1,080", "1,080"), (" 12 ", "12"),
        (0.6666666667, "2/3"), (10.3333333333, "31/3"), (0.9166666667, "11/12"),
        (3.14159265358979, "3.14159265358979"),  # rounded, but no simple fraction: 355/113 is 3e-7 away
        ("so\n#### 1,080", "1,080"), ("\\(\\boxed{\\frac{1}{2}}\\)", "\\frac{1}{2}"),
        ("\\\\frac{\\\\sqrt{5}-1}{2}", "\\frac{\\sqrt{5}-1}{2}"), ("\\\\{1, 2\\\\}", "\\{1, 2\\}"),
        # A matrix has line breaks beside single backslashes: nothing was escaped twice.
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("x \\equiv 3 (mod 7)", "x \\equiv 3 (mod 7)"), ("9 (apples)", "9 (apples)"), ("f(2)", "f(2)"),
        (None, ""), (float("nan"), ""), (float("inf"), ""), ("", ""), ("no number ####", ""),
    ],
)  # fmt: skip
def test_answers(value, text):
    assert data.read_answer(value) == text


def test_answers_with_a_unit_or_at_the_end_of_working():
    for value, text in (("14  (seats)", "14"), ("0.46 (dollars)", "0.46"), ("36 (sq. inches)", "36"), ("5:6", "5:6"),
                        ("-(1/3)", "-(1/3)"), ("Mrs. Hilt", "Mrs. Hilt"), ("3:30 p.m.", "3:30 p.m.")):
        assert data.read_answer(value, "unit") == text
    assert data.read_answer("Therefore 1 + 1 is even.", "working") == ""  # a proof is no answer to be compared with
    with pytest.raises(ValueError, match="type dict"):
        data.read_answer({"header": []})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"text": "1", "label": "2"}], r"\['label', 'text'\].*Body \+ Question -> Answer.*question -> answer"),
        ([{"question": "1", "answer": None}], r"\['question'\]"),
        ([{"question": "1", "answer": a} for a in ("1", "", *[None] * 6)],
         "7 of 8 rows have no answer .column answer.: rows 1, 2, 3, 4, 5, ..., counted from 0"),
        ([{"question": "1", "answer": "1"}, {"question": " ", "answer": "1"}], "1 of 2 rows have no prompt"),
        ([{"prompt": TURN * 2, "answer": "1"}], "row 0.*single turn of the user"),
        ([{"question": "1", "answer": ["1"]}], "row 0.*type list"),
        ([{"question": "1", "answer": "1", "qwen2.5_7b_pass_rate": "high"}], "row 0.*'high'"),
    ],
)  # fmt: skip
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(tmp_path / "bad.jsonl", rows))


def test_bad_files(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "1", "answer": "1"}\n\n{"question": \n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 3: not JSON"):
        data.load(str(path))
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="expected objects"):
        data.load(str(path))
    (tmp_path / "bad.json").write_text('[{"question": "1",\n "answer": }]')
    with pytest.raises(ValueError, match=r"bad.json, line 2: not JSON"):
        data.load(str(tmp_path / "bad.json"))
    (tmp_path / "bad.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"end in .jsonl, .json or .parquet, not '.csv'"):
        data.load(str(tmp_path / "bad.csv"))
    with pytest.raises(FileNotFoundError, match=r"no file nowhere.jsonl"):
        data.load("nowhere.jsonl")
    with pytest.raises(ValueError, match="not 'validation'"):
        data.load("arithmetic:validation")


def test_line_separators_inside_a_string_do_not_end_a_row(tmp_path):
    # Breaks with str.splitlines(), which also cuts at U+2028 and U+0085.
    rows = [{"question": "1\u20281\u0085?", "answer": "2"}]
    assert len(data.load(write(tmp_path / "toy.jsonl", rows))) == 1


def test_hub_names(monkeypatch):
    """The package datasets is replaced by a fake with its signature, which knows one set with two configurations."""
    asked = []

    def load_dataset(path, name=None, *, split=None):
        asked.append((path, name, split))
        if path != "openai/gsm8k":
            raise ConnectionError("could not reach the hub")
        if name is None:
            raise ValueError("Config name is missing")
        return SimpleNamespace(to_list=lambda: [{"question": "?", "answer": "#### 2"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert data.load("openai/gsm8k", "test")[0].answer == "2"
    assert data.load("openai/gsm8k/socratic:train", "test")[0].source == "openai/gsm8k/socratic"
    assert asked == [("openai/gsm8k", None, "test"), ("openai/gsm8k", "main", "test"),
                     ("openai/gsm8k", "socratic", "train")]
    with pytest.raises(FileNotFoundError, match=r"no-such .split train.*could not reach(?s:.)*`arithmetic`"):
        data.load("no-such")


@pytest.mark.skipif(not SCALING_DATA, reason="SCALING_DATA names no folder of problem sets")
def test_published_files():
    folder = Path(SCALING_DATA) / "data"
    sizes = {"svamp.jsonl": 1000, "mawps.jsonl": 2065, "asdiv.jsonl": 2215, "gsm8k_train.jsonl": 7473}
    sizes |= {f"eval/{name}.parquet": n
              for name, n in (("aime2024", 30), ("amc2023", 40), ("gsm8k", 1319), ("math__math_500", 500))}
    sizes |= {f"guru/math__sampled_1_{tau}_{n}.parquet": n
              for tau, n in ((5, 10240), (10, 5120), (20, 2560), (25, 2048), (50, 1024), (100, 512))}
    sizes["guru/math__full_difficulty_ordered_test_500.parquet"] = 500
    start, end = data.PROMPT.format("\n").split("\n")
    pairs_only = 0
    for name, size in sizes.items():
        problems = data.load(str(folder / name))
        assert len(problems) == size, name
        assert all(p.prompt.startswith(start) and p.prompt.endswith("within \\boxed{}.") for p in problems), name
        if name.startswith("guru"):
            assert all(0 <= p.difficulty <= 1 and p.prompt.endswith(end) for p in problems)
            assert data.order(problems) == problems  # the study's files are in curriculum order already
        elif "/" not in name and name != "asdiv.jsonl":
            assert all(re.fullmatch(r"-?\d[\d,]*(\.\d+|/\d+)?", p.answer) for p in problems), name
        else:
            assert all(p.difficulty is None for p in problems)
        runs = [re.findall(r"\\+", p.answer) for p in problems]
        pairs_only += sum(bool(found) and all(len(run) % 2 == 0 for run in found) for found in runs)
        assert not any("(" in p.answer and p.answer[0].isdigit() for p in problems if name == "asdiv.jsonl")
    assert pairs_only == 0  # 1,174 of the 10,240 references of tau = 5 are escaped twice in the file
    assert data.load(str(folder / "svamp.jsonl"))[0].answer == "145"


# ---- From problems to a run ---------------------------------------------------------------------------------------


def byte_tokenizer(chat_template=None):
    """One token a byte, and a bos that the tokenizer itself puts before every text, as Llama 3's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(["<s>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    tokenizer.chat_template = chat_template
    return tokenizer


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_render():
    problem = Problem(0, "1 + 1?", "2")
    chat, plain = byte_tokenizer(TEMPLATE), byte_tokenizer()
    for tokenizer, template, text in (
        (chat, "auto", "<s>[user]1 + 1?[assistant]"),  # breaks without the generation prompt, or with a second <s>
        (chat, "chat", "<s>[user]1 + 1?[assistant]"),
        (chat, "plain", "<s>1 + 1?"),
        (plain, "auto", "<s>1 + 1?"),
    ):
        ids = data.render(problem, tokenizer, template)
        assert type(ids) is list and all(type(i) is int for i in ids)  # transformers 5 would give a BatchEncoding
        assert tokenizer.decode(ids) == text
    tiny = data.make_tokenizer()
    assert tiny.decode(data.render(Problem(0, "a6b-4?", "2"), tiny)) == "a6b-4?"
    with pytest.raises(ValueError, match="auto, chat or plain, not 'chatml'"):
        data.render(problem, chat, "chatml")


def test_long_prompts_are_dropped_and_counted():
    problems = [Problem(i, "x" * n, "1") for i, n in enumerate((3, 9, 8, 30))]
    kept, dropped = data.drop_long(problems, byte_tokenizer(), 9)  # 8 and a bos just fit
    assert [p.index for p in kept] == [0, 2] and dropped == 2  # the index stays, it keys the noise
    with pytest.raises(ValueError, match="4 of 4 prompts exceed 2 tokens"):
        data.drop_long(problems, byte_tokenizer(), 2)
    stream, tiny = data.load("arithmetic"), data.make_tokenizer()
    assert data.drop_long(stream, tiny, 18) == (stream, 0)  # a start, five steps of three characters, and ?
    with pytest.raises(ValueError, match="1 of 5 prompts"):
        data.drop_long(stream, tiny, 17)
    with pytest.raises(ValueError, match="cannot write the problems: 'Two apples"):
        data.drop_long([Problem(0, "Two apples and TWO pears", "4")], tiny, 100)


def test_curriculum():
    # Breaks if hard comes first, if equals change places, or if an unknown difficulty counts as easy.
    given = [0.5, None, 0.0, 0.5, 1.0, None, 0.0]
    problems = [Problem(i, "?", "1", d) for i, d in enumerate(given)]
    assert [p.index for p in data.order(problems)] == [2, 6, 0, 3, 4, 1, 5]
    unknown = [Problem(i, "?", "1") for i in range(4)]
    assert data.order(unknown) == unknown


def test_batches_are_a_function_of_the_step():
    problems = [Problem(i, "?", "1") for i in range(10)]
    run = [p.index for step in range(5) for p in data.pick(problems, step, 4)]
    assert run == [*range(10), *range(10)]  # breaks if an epoch's remainder is dropped
    assert [p.index for p in data.pick(problems, 3, 4)] == run[12:16]  # resumed at step 3
    with pytest.raises(ValueError, match="a step of 11 prompts cannot be filled from 10"):
        data.pick(problems, 0, 11)
    stream = data.load("arithmetic")
    assert data.pick(stream, 1000, 32) == stream[32000:32032]


@pytest.mark.parametrize("tau", [2, 5, 25])
def test_reuse(tau):
    """400 steps' worth of prompts from total / tau problems: each seen tau times, in order, classes in proportion."""
    problems = [Problem(i, "?", "1", d) for i, d in enumerate([0.0] * 1200 + [0.5] * 600 + [1.0] * 1200)]
    steps, P = 50, 40
    epoch = data.order(problems, tau, steps * P)
    assert len(epoch) == steps * P // tau
    shares = Counter(p.difficulty for p in epoch)
    for difficulty, share in ((0.0, 0.4), (0.5, 0.2), (1.0, 0.4)):  # breaks if the easiest are kept
        assert abs(shares[difficulty] - share * len(epoch)) <= 1
    assert all(a.difficulty <= b.difficulty for a, b in pairwise(epoch))
    seen = [p.index for step in range(steps) for p in data.pick(epoch, step, P)]
    assert seen == [p.index for p in epoch] * tau and len(set(seen)) == len(epoch)


def test_reuse_of_the_tiny_world_is_stratified_too():
    epoch = data.order(data.load("arithmetic"), 4, 1000)
    assert epoch == data.load("arithmetic")[:250] and set(Counter(p.difficulty for p in epoch).values()) == {50}


def test_reuse_that_cannot_be_had():
    problems = [Problem(i, "?", "1") for i in range(10)]
    assert len(data.order(problems, 3, 10)) == 4  # rounded up, so that no problem is seen more than tau times
    for reuse, total in ((2, 30), (0, 30), (2, 0), (-1, 5)):
        with pytest.raises(ValueError, match="a reuse of"):
            data.order(problems, reuse, total)


def test_import_is_light():
    """Pretraining and planning tools import data.py for the tiny world alone, on machines without the rest."""
    heavy = ("torch", "transformers", "datasets", "pyarrow", "sympy")
    code = f"import sys, data; data.load('arithmetic')[:9]; print([m for m in {heavy} if m in sys.modules])"
    root = Path(data.__file__).parent
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr
