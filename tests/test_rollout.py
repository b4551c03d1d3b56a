"""rollout.py: the sampler draws what the trainer's forward says, whatever the batch, the pages and the order."""

import pytest
import torch

from model import packed_attention
from rollout import Pages, Sampler, copy_weights, stop_tokens

PROMPTS = [[5, 6, 7], [8] * 16, [9, 10] * 12, [11], [12, 13, 14, 15, 16, 17, 18]]  # one fills its page exactly
END = 3  # drawn often enough by the random models that some sequences end and others run out


def draw(model, prompts=PROMPTS, G=4, max_new=24, temperature=1.0, seed=0, problems=None, **options):
    options = {"slots": 32, "max_len": 64, "page": 8, "look_every": 1} | options
    sampler = Sampler(model, [END], **options)
    return sampler.generate(prompts, G, max_new, temperature, seed, problems=problems), sampler


def texts(samples):
    return {(s.prompt, s.sample): s.ids for s in samples}


def test_log_probs_are_the_trainers(ours):
    # Caught: positions off by one in decode, logp of the logits without temperature, keys written to the wrong page.
    model = ours()
    samples, _ = draw(model, temperature=0.8)
    assert {s.finished for s in samples} == {True, False}
    for s in samples:
        assert s.finished == (s.ids[-1] == END) and (s.finished or len(s.ids) == 24) and END not in s.ids[:-1]
        token_T = torch.tensor(PROMPTS[s.prompt] + s.ids)
        row_R = torch.arange(len(PROMPTS[s.prompt]) - 1, len(token_T) - 1)
        with torch.no_grad():
            logp_R, _ = model(token_T, torch.arange(len(token_T)), packed_attention([len(token_T)], "cpu"), row_R,
                              token_T[row_R + 1], 0.8)
        torch.testing.assert_close(torch.tensor(s.logp), logp_R, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_greedy_tokens_are_those_of_transformers(checkpoint, ours, family):
    samples, _ = draw(ours(family), G=1, temperature=0.0)
    oracle = checkpoint(family)[1]
    for s in samples:
        prompt = torch.tensor([PROMPTS[s.prompt]])
        expected = oracle.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=24,
                                   eos_token_id=END, pad_token_id=0)
        assert s.ids == expected[0, prompt.shape[1] :].tolist()


def test_samples_depend_on_nothing_but_their_key(ours):
    # Caught: noise from the slot's number instead of the problem's, a shared last page, a slot's table not moved with it.
    model = ours()
    expected, _ = draw(model)
    for options in ({"slots": 1}, {"slots": 3}, {"page": 4}, {"page": 64}, {"look_every": 5}, {"prefill_tokens": 1}):
        assert texts(draw(model, **options)[0]) == texts(expected), options
    order = [4, 2, 0, 1, 3]
    shuffled, _ = draw(model, [PROMPTS[p] for p in order], problems=order)
    assert {(order[p], g): ids for (p, g), ids in texts(shuffled).items()} == texts(expected)
    assert texts(draw(model, seed=1)[0]) != texts(expected)
    assert len({tuple(s.ids) for s in expected}) == len(expected)  # the G samples of a prompt differ


def test_sequences_set_back_for_want_of_pages_lose_nothing(ours):
    # 10 pages of 8 for sequences of up to 48 tokens. Caught: tokens drawn before being set back forgotten or drawn twice.
    model = ours()
    page_bytes = 2 * 2 * 8 * 2 * 8 * 4
    samples, sampler = draw(model, kv_gb=10 * page_bytes / 1e9, max_len=48)
    assert sampler.N == 10 and sampler.set_back > 0
    expected, roomy = draw(model, max_len=48)
    assert roomy.set_back == 0 and texts(samples) == texts(expected)
    for s, e in zip(samples, expected, strict=True):
        torch.testing.assert_close(torch.tensor(s.logp), torch.tensor(e.logp), atol=1e-5, rtol=0)
    assert sorted(sampler.pages.free) == list(range(10))  # every page came back


def test_finished_samples_are_handed_out_once_and_complete(ours):
    handed = []
    sampler = Sampler(ours(), [END], slots=2, max_len=64, page=8)
    samples = sampler.generate(PROMPTS, 3, 24, 1.0, 0, on_finish=lambda s: handed.append(
        (s.prompt, s.sample, len(s.ids), s.finished)))
    assert sorted(handed) == [(s.prompt, s.sample, len(s.ids), s.finished) for s in samples]


def test_pages_are_counted():
    pages = Pages(3)
    a = pages.take(2)
    pages.share(a[:1])
    pages.release(a)
    assert len(pages.free) == 2  # a[0] is still used
    pages.release(a[:1])
    assert sorted(pages.free) == [0, 1, 2]


def test_weights_are_copied_in_place(ours):
    source, target = ours(), ours("qwen2", True)
    with torch.no_grad():
        for p in source.parameters():
            p.add_(1)
    addresses = [p.data_ptr() for p in target.parameters()]
    copy_weights(source, target)
    assert addresses == [p.data_ptr() for p in target.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(source.parameters(), target.parameters(), strict=True))


def test_what_cannot_fit_is_refused_with_the_sizes(ours, tmp_path):
    with pytest.raises(ValueError, match=r"cache of 1e-05 GB holds 32 tokens, but one sequence of 64 needs .*; raise --kv-gb"):
        draw(ours(), kv_gb=1e-5)
    with pytest.raises(ValueError, match=r"prompt 1 has 50 tokens and may draw 24: .* together at most this sampler's 64"):
        draw(ours(), [[1], [2] * 50])
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        draw(ours(), [[1], []])


def test_every_prompt_can_have_its_own_limit(ours):
    # Caught: the largest limit used for all; a longer limit must only add tokens.
    model = ours()
    limited, _ = draw(model, max_new=[1, 5, 24, 9, 3])
    for s, full in zip(limited, draw(model)[0], strict=True):
        assert s.ids == full.ids[: [1, 5, 24, 9, 3][s.prompt]] and s.finished == (s.ids[-1] == END)


def test_stop_tokens_come_from_every_source(tmp_path):
    class Tokenizer:
        eos_token_id = 7

    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert stop_tokens(tmp_path, Tokenizer) == [1, 2, 7]
    Tokenizer.eos_token_id = None
    assert stop_tokens(tmp_path, Tokenizer) == [1, 2]
    with pytest.raises(ValueError, match="end-of-text"):
        stop_tokens(tmp_path / "nothing", Tokenizer)
