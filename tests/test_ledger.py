"""ledger.py: what goes to a logger, and what a user is told of an error."""

import json
import warnings

import pytest

from runtime.flags import ROOT
from runtime.ledger import explain, numbers, open_log, show_warning

ROW = {"kind": "train", "step": 3, "reward": 0.5, "grad_norm": None, "source": "toy",
       "verdicts": {"right": 2, "wrong": 6}}  # fmt: skip


def test_loggers_get_numbers_under_one_name():
    # Caught: a None or a text, which loggers refuse; a training reward beside an evaluation's.
    assert numbers(ROW) == {"train/step": 3, "train/reward": 0.5, "train/verdicts/right": 2,
                            "train/verdicts/wrong": 6}  # fmt: skip


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = open_log("tensorboard", tmp_path, {})
    log(ROW)
    log(ROW | {"step": 4, "reward": 0.75})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/reward")]
    assert found == [(3, 0.5), (4, 0.75)] and "train/verdicts/wrong" in events.Tags()["scalars"]


@pytest.fixture(autouse=True)
def own_warnings():
    """explain() chooses how warnings are shown, which must not outlive a test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unable to enable fault handler")
        yield


def failing(error):
    def run():
        raise error

    return run


def test_an_error_of_the_user_is_one_line_and_torchruns_last(tmp_path, monkeypatch, capsys):
    # Caught: a traceback for a wrong flag; torchrun's own block without the message.
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit) as ended:
        explain(failing(ValueError("--lr -1: must be a finite number, at least 0")))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "--lr -1: must be" in said
    told = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert told == said.strip()


def test_a_wrong_flag_is_the_last_word_of_torchrun_too(tmp_path, monkeypatch):
    # Caught: "To enable traceback see" as the last line, with the reason far above it.
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        explain(failing(SystemExit(2)))
    assert "wrong flags: the message above" in (tmp_path / "error.json").read_text()


def test_our_warnings_are_one_line(capsys):
    # Caught: the place in the code and the code itself around the name of an ignored file.
    show_warning("b.safetensors ignored", UserWarning, str(ROOT / "runtime" / "parallel.py"), 7)
    show_warning("theirs", UserWarning, "/usr/lib/python3/theirs.py", 9)
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first == "warning: b.safetensors ignored"
    assert second == "/usr/lib/python3/theirs.py:9: UserWarning: theirs"


def test_a_bug_shows_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(ZeroDivisionError):
        explain(failing(ZeroDivisionError("a bug")))
    mistake = ValueError("in the middle of a phase")
    mistake.add_note("rank 0, in the phase train, after 4 whole steps")
    with pytest.raises(ValueError, match="in the middle of a phase"):
        explain(failing(mistake))
