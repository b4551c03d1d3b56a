"""Loading and saving: what is read, what is refused in which words, what a full disk leaves.

Tensor parallelism and copy_weights are tested with the sampler (test_rollout.py), gradients of
sharded models with training (test_scale.py).
"""

import gc
import json
import os
import re
import resource
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import ranks
import torch
from safetensors.torch import load_file, save_file

from model import Config, Model, packed_attention
from runtime import parallel
from runtime.parallel import (
    check_tokenizer,
    find_weights,
    load,
    locate,
    make_mesh,
    read_tokenizer,
    save,
    shard,
)

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "models" / "tiny"
TOKEN_T = torch.randint(1, 97, (30,), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(TOKEN_T, torch.arange(30), packed_attention([30], "cpu"))


def theirs(directory):
    """The logits of transformers."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(directory)(TOKEN_T[None]).logits[0].float()


def read(directory):
    return load(Model(Config.read(directory)), directory)


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def single(checkpoint, tmp_path):
    """A copy of a tied checkpoint in one file."""
    return Path(shutil.copytree(checkpoint("qwen2", True)[0], tmp_path / "single"))


@pytest.fixture
def several(checkpoint, ours, tmp_path):
    """The same model in several files with an index."""
    save(ours(), checkpoint()[0], tmp_path / "several", torch.float32, shard_gb=8e-6)
    return tmp_path / "several"


# ---- Which files, which tensors ------------------------------------------------------------------


def test_files_outside_the_index_are_ignored_and_named(ours, several, single):
    # The leftover shard holds other weights under the right names, and comes last by name.
    state = {name: p + 1 for name, p in load_file(single / "model.safetensors").items()}
    save_file(state, several / "model-99999-of-99999.safetensors")
    with pytest.warns(UserWarning, match=r"several: model-99999-of-99999\.safetensors ignored"):
        assert equal(read(several), ours())
    save_file(state, single / "consolidated.safetensors")
    with pytest.warns(UserWarning, match=r"consolidated\.safetensors ignored; the model is mod"):
        assert equal(read(single), ours())


def test_a_model_can_be_refused_before_its_weights_are_read(single, monkeypatch):
    monkeypatch.setattr(parallel.dcp, "load", None)
    assert find_weights(single, Config.read(single)) == [single / "model.safetensors"]
    (single / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        find_weights(single, Config.read(single))


def test_a_checkpoint_without_strangers_warns_of_nothing(several, single):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(several), read(single)


def test_missing_files_are_named(several):
    file = sorted(several.glob("model-*"))[1]
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"index.json names 1 files .*{file.name}"):
        read(several)
    (several / parallel.INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor .*model-00001-of"):
        read(several)
    for file in several.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file\); convert other formats"):
        read(several)


@pytest.mark.parametrize("text,message", [
    ('{"weight_map": {"a', r"index\.json: not valid JSON"),
    ('{"metadata": {}}', r"index\.json: holds no weight_map"),
])
def test_a_broken_index_is_named(several, text, message):
    (several / parallel.INDEX).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(several)


def test_tensors_that_do_not_fit_are_named(checkpoint, several, single, tmp_path):
    # Other shapes, with both of them; one too few, one too many, one in two files.
    edit(single / "config.json", vocab_size=11)
    with pytest.raises(ValueError, match=r"embed_tok.*\[97, 32\] in the file, \[11, 32\] in"):
        read(single)
    edit(single / "config.json", vocab_size=97)
    state = load_file(single / "model.safetensors")
    state["model.norm.scale"] = state.pop("model.norm.weight")
    save_file(state, single / "model.safetensors")
    with pytest.raises(ValueError, match=r"2 tensors .*norm\.weight: missing; .*scale: unknown"):
        read(single)
    first, second = sorted(several.glob("model-*"))[:2]
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(ValueError, match=f"in {first.name} and in {second.name}"):
        read(several)


def test_a_stored_head_of_a_tied_model_is_never_dropped(single):
    # transformers uses a stored head that differs; here it is refused with the way to do the same.
    file = single / "model.safetensors"
    state = load_file(file)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, file, metadata={"format": "pt"})
    torch.testing.assert_close(logits(read(single)), theirs(single), atol=1e-4, rtol=1e-4)
    state["lm_head.weight"] = state["lm_head.weight"].flip(0).contiguous()
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r'head\.weight differs .*"tie_word_embeddings": false'):
        read(single)
    expected = theirs(single)  # with the config as it was
    edit(single / "config.json", tie_word_embeddings=False)
    torch.testing.assert_close(logits(read(single)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change,message", [
    (lambda content: content[:-10], r"not a whole safetensors file \([\d,]+ bytes; .*download it"),
    (lambda content: content[:20], "not a whole safetensors file"),
    (lambda content: b"", r"not a whole safetensors file \(0 bytes"),
    (lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
     "a Git LFS pointer of 66 bytes, not the content; fetch it with: git lfs pull"),
])
def test_a_file_that_is_not_whole_is_named(single, change, message):
    file = single / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=r"single/model\.safetensors: " + message):
        read(single)


def test_a_file_with_sharding_metadata_is_refused(single):
    # torch's reader believes the metadata, which may place tensors anywhere.
    file = single / "model.safetensors"
    state = load_file(file)
    offsets = {name: {"saved_offsets": [0] * p.dim()} for name, p in state.items()}
    save_file(state, file, metadata={"DCP_SHARDING_INFO": json.dumps(offsets)})
    with pytest.raises(ValueError, match=r"model\.safetensors: holds one rank's part"):
        read(single)


def load_sharded(directory):
    with torch.device("meta"):
        model = Model(Config.read(directory))
    model = shard(model, make_mesh("cpu"), torch.float32).to_empty(device="cpu")
    try:
        load(model, directory)
    except ValueError as error:
        return str(error)


def test_weights_that_are_nan_are_named_on_every_rank(single):
    # The NaN lies in the part of the last rank alone. Caught: ranks that wait for one that failed.
    file = single / "model.safetensors"
    state = load_file(file)
    state["model.layers.1.mlp.up_proj.weight"][-1, -1] = torch.nan
    save_file(state, file)
    for said in ranks.run(2, load_sharded, single):
        assert re.search(r"NaN or infinity in the weights \(model\.layers\.1\.mlp\.up_proj", said)


# ---- Tokenizers ----------------------------------------------------------------------------------


def test_a_directory_without_a_tokenizer_is_refused(single, tmp_path):
    # transformers makes a tokenizer of one token there, and every prompt is empty.
    with pytest.raises(FileNotFoundError, match=r"single: no tokenizer \(tokenizer\.json"):
        read_tokenizer(single)
    assert len(read_tokenizer(TINY)) == Config.read(TINY).V


@pytest.mark.parametrize("name,text,message", [
    ("tokenizer.json", '{"a": ', r"tokenizer\.json: not valid JSON"),
    ("tokenizer.json", '{"a": 1}', r"cannot read the tokenizer \(KeyError"),
    ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", r"tokenizer\.json: a Git LFS"),
    ("tokenizer_config.json", "{", r"tokenizer_config\.json: not valid JSON"),
])
def test_a_broken_tokenizer_is_named(tmp_path, name, text, message):
    directory = Path(shutil.copytree(TINY, tmp_path / "model"))
    (directory / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_tokenizer(directory)


def test_tokens_without_a_row_in_the_embedding_are_named(checkpoint):
    tokenizer = read_tokenizer(TINY)
    check_tokenizer(tokenizer, Config.read(TINY))
    tokenizer.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match=r"ids up to 45 \('<extra>'\), .* has 45 rows"):
        check_tokenizer(tokenizer, Config.read(TINY))


# ---- Where a model is ----------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The names that the hub was asked for; it gives nothing."""
    import huggingface_hub

    names = []

    def fail(name, **_):
        names.append(name)
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    return names


def test_the_hub_is_never_asked_for_what_is_local(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "b").write_text("")
    assert locate("runs/a") == Path("runs/a")
    assert locate(str(tmp_path / "runs")) == tmp_path / "runs"
    for name, message in {
        "runs/b": "a file; give the directory",
        "runs/c": "runs is a directory here, but has no c in it",
        "models/nowhere": "no such directory, and not a hub name",
        "./a/b": "not a hub name",
        "/a/b": "not a hub name",
        "~/a": "not a hub name",
        "a/b/c": "not a hub name",
    }.items():
        with pytest.raises(FileNotFoundError, match=f"--model {name}: .*{message}"):
            locate(name)
    assert asked == []


def test_hub_without_network(asked):
    # The error must say what else can be done.
    message = r"hub did not give it .*no route.*--model DIR takes a local checkpoint"
    with pytest.raises(FileNotFoundError, match=message):
        locate("Qwen/Qwen2.5-0.5B")
    assert asked == ["Qwen/Qwen2.5-0.5B"]


# ---- Saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_saved_checkpoint_loads_in_transformers(checkpoint, ours, tmp_path, tied):
    # With 8 kB files there are several and an index. Caught: a tied head saved twice.
    model, target = ours("qwen2", tied), tmp_path / "saved"
    save(model, checkpoint("qwen2", tied)[0], target, torch.float32, shard_gb=8e-6)
    assert len(list(target.glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(logits(model), theirs(target), atol=1e-4, rtol=1e-4)
    assert equal(model, read(target))


def test_an_export_holds_known_files_only_and_no_links(ours, single, tmp_path):
    # A link named like a tokenizer must not bring a private file into what is published.
    (tmp_path / "secret").write_text("secret")
    (single / "tokenizer.json").symlink_to(tmp_path / "secret")
    for name in ("merges.txt", "notes.txt", "trainer_state.json", "pytorch_model.bin.index.json"):
        (single / name).write_text(name)
    with pytest.warns(UserWarning, match=r"tokenizer\.json is a link and is not copied"):
        save(ours(), single, tmp_path / "out", torch.float32)
    found = {p.name for p in (tmp_path / "out").iterdir()}
    assert found == {"config.json", "generation_config.json", "merges.txt", "model.safetensors"}


def test_links_of_the_hubs_cache_are_copied_as_files(ours, single, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "77").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/77")
    shutil.copy(single / "config.json", snapshot)
    save(ours(), snapshot, tmp_path / "out", torch.float32)
    file = tmp_path / "out" / "tokenizer.json"
    assert file.read_text() == "{}" and not file.is_symlink()


@pytest.mark.parametrize("umask,mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_leaves(ours, single, tmp_path, umask, mode):
    (single / "merges.txt").write_text("")
    (single / "merges.txt").chmod(0o444)
    before = os.umask(umask)
    try:
        save(ours(), single, tmp_path / "out", torch.float32, shard_gb=8e-6)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {mode}


def save_on_a_full_disk(source, target, limit):
    """What save says on this rank, where no file may grow beyond `limit` bytes."""
    model = shard(read(source), make_mesh("cpu"), torch.float32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        save(model, source, target, torch.float32, shard_gb=8e-6)
    except OSError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("limit", [100, 10_000, 13_000])
def test_a_full_disk_leaves_nothing_that_looks_whole(single, tmp_path, n, limit):
    # No room for config.json, for the second shard, for the first one. The files have 12,400 bytes
    # (embedding), 8,300 and more. Caught: ranks that wait for the one that failed.
    target = tmp_path / "final"
    for said in ranks.run(n, save_on_a_full_disk, single, target, limit):
        if limit < 13_000:
            assert re.search(r"final could not be written: .*File too large", said)
        else:
            assert said is None
    left = {p.name for p in tmp_path.iterdir()} - {"single"}
    assert left == (set() if limit < 13_000 else {"final"})


def test_a_failed_save_keeps_what_was_there_and_a_good_one_replaces_it(ours, single, tmp_path):
    target, link = tmp_path / "final", tmp_path / "link"
    target.mkdir()
    (target / "old").write_text("old")
    link.symlink_to(target)
    with pytest.raises(OSError, match=r"link could not be written: it is a link"):
        save(ours(), single, link, torch.float32)
    (said,) = ranks.run(1, save_on_a_full_disk, single, target, 10_000)
    assert "could not be written" in said and [p.name for p in target.iterdir()] == ["old"]
    (tmp_path / "final.partial").mkdir()  # of a run that was killed
    (tmp_path / "final.partial" / "stale.json").write_text("")
    save(ours(), single, target, torch.float32)
    assert equal(read(target), ours()) and not (target / "old").exists()
    assert not (target / "stale.json").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"single", "final", "link"}


# ---- Memory --------------------------------------------------------------------------------------


def resident():
    """Bytes of this process's own memory, without mapped files, which the system can take back."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def loading_peak(source, other):
    """(peak of this process's own memory while a model is loaded, bytes of its shard)."""
    load_sharded(other)  # imports and buffers of the libraries
    gc.collect()
    before, peak, loaded = resident(), [0], threading.Event()

    def watch():
        while not loaded.wait(0.001):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    with torch.device("meta"):
        model = Model(Config.read(source))
    model = shard(model, make_mesh("cpu"), torch.float32).to_empty(device="cpu")
    load(model, source)
    loaded.set()
    thread.join()
    part = sum(p.to_local().nbytes for p in model.parameters())
    return max(peak[0], resident()) - before, part


def write_random_model(directory, **changes):
    """A float32 model in Hugging Face layout: (its directory, its bytes)."""
    config = {
        "model_type": "qwen2",
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    (directory / "source").mkdir()
    (directory / "source" / "config.json").write_text(json.dumps(config | changes))
    model = Model(Config.read(directory / "source"))
    save(model, directory / "source", directory / "model", torch.float32)
    return directory / "model", sum(p.nbytes for p in model.parameters())


SMALL = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=8, vocab_size=4096)
LARGE = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, vocab_size=6000)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("n,shape,size", [
    (2, SMALL, 40e6),
    pytest.param(4, LARGE, 200e6, marks=pytest.mark.slow),
])
def test_a_rank_loads_its_shard_and_hardly_more(checkpoint, tmp_path, n, shape, size):
    # Caught: every rank reading the whole file before it cuts its part out (1 + n times the shard).
    source, total = write_random_model(tmp_path, **shape)
    assert total > 0.95 * size
    for peak, part in ranks.run(n, loading_peak, source, checkpoint()[0]):
        print(f"{n} ranks, {total / 1e6:.0f} MB: shard {part / 1e6:.1f}, peak {peak / 1e6:.1f} MB")
        assert total / n * 0.99 < part < total / n * 1.1
        assert 0.5 * part < peak < 1.5 * part
