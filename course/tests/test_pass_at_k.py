"""pass_at_k: the estimate of pass@k of one problem, and the standard error over problems."""

from evaluate import mean_se, pass_at_k


def answer(draws=(), x_P=None):
    """draws: [[n, c, k], ..]. x_P: values of which the mean and its standard error are asked."""
    if x_P is None:
        return [float(pass_at_k(n, c, k)) for n, c, k in draws]
    return list(mean_se(x_P))


def test_pass_at_k(check):
    check(answer)
