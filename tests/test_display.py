"""display.py: rows that fit a terminal, progress inside long steps, text that cannot harm it."""

import io
import sys

import pytest

from reward import Verdict
from rollout import Completion
from runtime import display
from runtime.display import WIDTH, Display, printable, show

LINE = {
    "step": 123_456, "reward": -1.234, "length": 4095.9, "loss": -1.23e-10, "sampler_gap": 1.2e-10,
    "equal_groups": 1.0, "tokens": 12_345_678, "seconds": {"generation": 1234.5},
}  # fmt: skip


def test_rows_fit_80_columns_and_say_how_many_groups_are_equal():
    # Caught: a column more, or numbers that run into each other.
    said = []
    shown = Display(steps=999_999, done=0, completions=32, say=said.append)
    shown.row(LINE | {"step": 1}, None)
    shown.row(LINE | {"step": 150}, 0.956)
    head, first, second = said
    assert head.split() == list(WIDTH) and len(first.split()) == len(WIDTH) == len(second.split())
    assert max(map(len, said)) <= 80 and "100%" in second and "0.956" in second


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_person_sees_rows_and_a_bar_below_them(monkeypatch):
    # Caught: all columns behind the bar, where a terminal of 80 columns cuts most of them off.
    monkeypatch.setattr(sys, "stderr", Terminal())
    said = []
    shown = Display(steps=3, done=0, completions=32, say=said.append)
    shown.row(LINE | {"step": 1}, 0.5)
    shown.close()
    assert len(said) == 2 and "1/3" in said[1] and "1/3" in sys.stderr.getvalue()
    assert "loss" not in sys.stderr.getvalue()


@pytest.mark.parametrize("a_person_looks_on", [False, True])
def test_a_long_step_says_how_far_it_is(monkeypatch, a_person_looks_on):
    # Caught: nothing for minutes; a line for every micro-batch; progress of a step that is short.
    now = [1000.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    if a_person_looks_on:
        monkeypatch.setattr(sys, "stderr", Terminal())
    said = []
    shown = Display(steps=3, done=0, completions=32, say=said.append)
    told = said if not a_person_looks_on else []
    if a_person_looks_on:
        monkeypatch.setattr(shown.bar, "set_postfix_str", told.append)
    shown.begin(2)
    for _ in range(9):
        now[0] += 1
        shown.completions(3)
    assert told == []
    for done in range(1, 41):
        now[0] += 1
        shown.micro_batches(done, 40)
    assert "micro-batches" in told[0] and len(told) == (40 if a_person_looks_on else 2)
    if not a_person_looks_on:
        assert told[0] == "  step 2 after 10 s: 1 of 40 micro-batches of an update"
    shown.begin(3)
    told.clear()
    shown.completions(1)
    assert told == []


def test_completions_cannot_move_the_cursor():
    # Caught: escape sequences of a completion, which can hide what was printed before.
    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            return "What\x1b[2J is 1 + 1?"

    text = "\x1b[1A\x1b[2Kright\r\x07\u202e 2\nnext"
    verdict = Verdict(1.0, "right", "2", "")
    completion = Completion(0, 0, [1], [2], [0.0], False, text, verdict)
    shown = show([completion], Tokenizer())
    assert not any(ch in shown for ch in "\x1b\r\x07\u202e")
    assert "next [truncated]" in shown and "✓" in shown
    assert printable("é 木 \\boxed{2}\n") == "é 木 \\boxed{2}\n"
