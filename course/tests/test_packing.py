"""packing: sequences dealt to ranks and micro-batches, and the tensors of a micro-batch."""

from types import SimpleNamespace

from runtime.batch import make_batch, pack


def answer(deal=None, completions=None, places=()):
    """deal: the arguments of pack. completions: [[prompt, ids, logp], ..], for make_batch."""
    if deal is not None:
        return pack(*deal)
    graded = []
    for prompt, ids, logp in completions:
        graded.append(SimpleNamespace(prompt=prompt, ids=ids, logp=logp))
    b = make_batch(graded, places, "cpu")
    names = ("token_T", "position_T", "row_R", "target_R", "sampler_R")
    fields = {name: getattr(b, name).tolist() for name in names}
    return fields | {"length_B": list(b.length_B), "new_B": list(b.new_B)}


def test_packing(check):
    check(answer)
