"""law: K and E, and the slope of each size, by weighted least squares."""

from types import SimpleNamespace

import numpy as np

from fit_scaling import fit_lines


def answer(shape, N_n, x_nT, w_nT, y_nT):
    problem = SimpleNamespace(shape=shape, N_n=np.array(N_n), x_nT=np.array(x_nT))
    found = fit_lines(problem, np.array([y_nT]), np.array([w_nT]))
    numbers = {"k": found.k[0].tolist(), "E": found.E[0].tolist()}
    if shape != "free":
        numbers["K"] = float(found.K[0])
    if shape == "saturating":
        numbers["ln N0"] = float(found.theta[0])
    return numbers


def test_law(check):
    check(answer)
