"""checker: the boxes of a completion, and when a number rounds to the truth."""

from reward import Numbers, boxes, clean, read


def answer(text=None, pairs=()):
    """text: of a completion. pairs: [[answer, truth], ..], compared by rule 4 alone."""
    if text is not None:
        return [list(box) for box in boxes(text)]
    return [bool(Numbers().rounds(read(clean(a)), read(clean(t)))) for a, t in pairs]


def test_checker(check):
    check(answer)
