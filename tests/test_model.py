"""model.py against transformers, on random models; each test names the mutations that it caught."""

import json

import pytest
import torch

from model import Config, packed_attention
from rollout import fuse

# One token alone, and one sequence longer than the "original" context of Llama 3 in the fixture.
LENGTHS = [7, 1, 19, 90]
FAMILIES = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("llama", False)]


def packed(lengths=LENGTHS, seed=0):
    """(token_T, position_T) of random sequences laid end to end."""
    token_T = torch.randint(1, 97, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    return token_T, torch.cat([torch.arange(n) for n in lengths])


@pytest.mark.parametrize("family,tied", FAMILIES)
def test_packed_logits_are_those_of_transformers(checkpoint, ours, family, tied):
    # Caught: a dropped q/k/v bias, no q/k norm, unscaled Llama 3 frequencies, swapped halves in
    # rotate, eps outside the root.
    token_T, position_T = packed()
    with torch.no_grad():
        logits_TV = ours(family, tied)(token_T, position_T, packed_attention(LENGTHS, "cpu"))
        oracle = checkpoint(family, tied)[1]
        expected_TV = torch.cat([oracle(part[None]).logits[0] for part in token_T.split(LENGTHS)])
    logp_TV, expected_TV = logits_TV.log_softmax(-1), expected_TV.log_softmax(-1)
    torch.testing.assert_close(logp_TV, expected_TV, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6]])
def test_sequences_do_not_see_each_other(ours, lengths):
    # Changing every token of the other sequences changes nothing; without the boundaries (one long
    # sequence) it does.
    token_T, position_T = packed(lengths)
    other_T = (token_T + 1) % 97
    start, end = sum(lengths[:-1]), sum(lengths)
    other_T[start:end] = token_T[start:end]
    model = ours()

    def last(tokens, lengths):
        with torch.no_grad():
            return model(tokens, position_T, packed_attention(lengths, "cpu"))[start:end]

    torch.testing.assert_close(last(token_T, lengths), last(other_T, lengths), atol=1e-5, rtol=0)
    assert (last(token_T, [sum(lengths)]) - last(other_T, [sum(lengths)])).abs().max() > 0.1


def test_gradients_are_those_of_transformers_and_survive_recomputation(checkpoint, ours):
    # Caught: a detached k, recomputation without the layer's input.
    token_T, position_T = packed([12])
    oracle, model = checkpoint()[1], ours()
    oracle.zero_grad()
    oracle(token_T[None], labels=token_T[None]).loss.backward()
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        rows_R = torch.arange(11)
        logp_R, _ = model(token_T, position_T, packed_attention([12], "cpu"), rows_R, token_T[1:])
        (-logp_R.mean()).backward()
        for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-3,
                                       msg=lambda m, name=name: f"{name}: {m}")


def test_rows_and_temperature(ours):
    # Caught: temperature multiplied instead of divided, rows shifted by one.
    token_T, position_T = packed()
    row_R = torch.tensor([3, 20, 116])
    target_R = token_T[row_R]
    attend = packed_attention(LENGTHS, "cpu")
    with torch.no_grad():
        logits_TV = ours()(token_T, position_T, attend)
        logp_R, entropy_R = ours()(token_T, position_T, attend, row_R, target_R, 0.7)
    expected_RV = (logits_TV[row_R].double() / 0.7).log_softmax(-1)
    expected_R = expected_RV.gather(1, target_R[:, None])[:, 0]
    torch.testing.assert_close(logp_R.double(), expected_R, atol=1e-5, rtol=0)
    expected_R = -(expected_RV.exp() * expected_RV).sum(1)
    torch.testing.assert_close(entropy_R.double(), expected_R, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_fused_weights_are_the_parameters_themselves(ours, family):
    # Caught: v before k, a bias left out, weights that are copies and not views, a gradient that
    # the parameters do not get.
    plain, fused = ours(family), fuse(ours(family))
    token_T, position_T = packed()

    def logits(model):
        with torch.no_grad():
            return model(token_T, position_T, packed_attention(LENGTHS, "cpu"))

    torch.testing.assert_close(logits(fused), logits(plain), atol=1e-5, rtol=0)
    weights = plain.state_dict()
    assert weights.keys() == fused.state_dict().keys()
    assert all(torch.equal(p, weights[name]) for name, p in fused.state_dict().items())
    with torch.no_grad():
        for model in (plain, fused):
            for p in model.parameters():
                p.mul_(1.1).add_(0.01)
    torch.testing.assert_close(logits(fused), logits(plain), atol=1e-4, rtol=0)
    fused(token_T, position_T, packed_attention(LENGTHS, "cpu")).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in fused.parameters())


def test_parameters_and_flops_are_counted(checkpoint, ours):
    # The oracles: transformers' parameter count, and torch's counter of matrix products, which
    # leaves out norms and biases.
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for family, tied in (("qwen2", True), ("qwen3", True), ("llama", False)):
        assert ours(family, tied).config.N_total == checkpoint(family, tied)[1].num_parameters()
    token_T, position_T = packed([64])
    model = ours()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(token_T, position_T, packed_attention([64], "cpu"))
    counted = counter.get_total_flops()  # here of the whole square of queries and keys
    assert counted <= model.config.flops(64, 64 * 64, 64) < 1.02 * counted


def write_config(directory, drop="", **changes):
    base = {
        "model_type": "qwen2",
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "vocab_size": 11,
        "rms_norm_eps": 1e-6,
    }
    base.pop(drop, None)
    (directory / "config.json").write_text(json.dumps(base | changes))
    return directory


def test_configs_of_other_models_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: not found"):
        Config.read(tmp_path)
    for changes, message in [
        ({"model_type": "gpt2"}, "'gpt2' is not supported, only qwen2, qwen3, llama; to add it"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"attention_bias": False}, "attention_bias other than True"),
    ]:
        with pytest.raises(ValueError, match=message):
            Config.read(write_config(tmp_path, **changes))


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "rms_norm_eps", "num_hidden_layers"])
def test_a_missing_key_is_named_with_its_file(tmp_path, key):
    with pytest.raises(ValueError, match=rf"config\.json: the key '{key}' is missing; .*card"):
        Config.read(write_config(tmp_path, drop=key))


@pytest.mark.parametrize("text", ['{"model_type": ', "[1, 2]", "version https://git-lfs", "\udcff"])
def test_a_broken_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json: (not valid JSON|a JSON object is exp)"):
        Config.read(tmp_path)


def test_the_longest_position_is_read_and_may_be_absent(tmp_path):
    assert Config.read(write_config(tmp_path)).max_position is None
    assert Config.read(write_config(tmp_path, max_position_embeddings=512)).max_position == 512
