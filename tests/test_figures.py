"""Words, tables and files of the figures; whether they are good to look at is for eyes."""
import numpy as np
import pytest

import figures


@pytest.mark.parametrize(("N", "text"), [
    (72, "72B"), (0.5, "0.5B"), (8.4e-5, "84k"), (3.2e-3, "3.2M"), (3e-4, "300k"), (5e-8, "50"), (0.0, "0")])
def test_sizes_read_as_people_write_them(N, text):
    assert figures.label(N) == text


def test_table_aligns_and_shows_intervals():
    text = figures.table("Title", ["N", "L", "name"], [{"N": 72, "L": 0.5, "L_ci": [0.4, 0.61]}, {"N": 8.4e-5, "name": "x"}])
    assert text == "Title\n  N    L                name\n  72B  0.5 [0.4, 0.61]  -\n  84k  -                x"


def test_palette_goes_from_light_to_dark_and_never_fades_into_paper():
    colours = figures.palette([72.0, 0.5, 7.0, 7.0])
    light = [np.dot(rgba[:3], (0.2126, 0.7152, 0.0722)) for rgba in colours.values()]
    assert [*colours] == [0.5, 7.0, 72.0] and light == sorted(light, reverse=True) and light[0] < 0.7


def test_same_drawing_same_files(tmp_path):
    # fails when the PDF keeps its date: then every refit of the same points would change the committed figures
    for name in "ab":
        figures.draw(tmp_path / name, [[(1,), (2,)], [(3,)]], lambda axis, y: axis.plot([0, y]), ["up", "down"], (2, 1), 0)
    for kind in ("png", "pdf"):
        a, b = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
        assert a == b and len(a) > 1000
