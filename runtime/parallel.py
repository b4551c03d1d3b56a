"""Processes, sharding, loading and saving: what lets the model grow beyond one device.

All of it is applied to the model from outside. Training shards the model with FSDP2 (`shard`).
`copy_weights` brings the weights to the sampler's copy, which is whole on each rank or split over a
few neighbours (`tensor_parallel`). `load` and `save` read and write the layout of Hugging Face.
A function that says "collective" must be called by all ranks.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from model import Config, Model, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# A tokenizer can be read where one of these is. Without them transformers makes an empty one.
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
# What belongs to a model beside its weights and config.json. Nothing else is copied into an export.
COMPANIONS = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
MODEL_FILES = ["*.safetensors", INDEX, "config.json", *COMPANIONS]


# ---- Processes -----------------------------------------------------------------------------------


def connect(
    name: str, patience: timedelta = timedelta(minutes=30)
) -> tuple[torch.device, Path, Config]:
    """Joins the ranks that torchrun started, or makes the only one (a collective).

    name: of the model. patience: how long a collective waits for other ranks before it fails.
    Returns this rank's device, the directory of the model, and its config.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    alone = {}
    if "RANK" not in os.environ:
        alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=patience, **alone)
    directory = locate(name)
    config = Config.read(directory)
    if config.N < 1_000_000:
        # A second thread saves less than it waits; where cores are shared it waits 30 times longer.
        torch.set_num_threads(1)
    return device, directory, config


def is_first_rank() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def agree(error: str) -> str:
    """The first message that any rank passes, "" if none passes one (a collective)."""
    if not dist.is_initialized():
        return error
    errors = [""] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next(filter(None, errors), "")


def check_team(t: int, world: int) -> None:
    """ValueError unless each node's ranks divide into teams of t that share one copy of a model."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if here % t:
        raise ValueError(f"--sampler-tp {t} does not divide the ranks of a node, {here} of "
                         f"{world}; give a number that does")


# ---- Reading a model -----------------------------------------------------------------------------


def locate(name: str, wanted: list[str] = MODEL_FILES) -> Path:
    """The directory of a model: a local one, or where the hub's client puts Qwen/Qwen2.5-0.5B.

    wanted: the files that the hub is asked for.
    FileNotFoundError if there is no such directory, and the hub does not give the model.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"--model {name}: a file; give the directory that holds the model")
    hub_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)
    if not hub_name or name.startswith("models/"):
        raise FileNotFoundError(f"--model {name}: no such directory, and not a hub name such as "
                                "Qwen/Qwen2.5-0.5B")
    if path.parent.is_dir():
        raise FileNotFoundError(f"--model {name}: {path.parent} is a directory here, but has no "
                                f"{path.name} in it; the hub is asked only where it is not")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # the hub's client raises errors of its own, of httpx, and OSError
        raise FileNotFoundError(
            f"--model {name}: no such directory here, and the model hub did not give it "
            f"({type(error).__name__}: {error}); --model DIR takes a local checkpoint"
        ) from error


def refuse_pointer(file: Path) -> None:
    """ValueError if the file is a pointer of Git LFS in place of the content."""
    with open(file, "rb") as content:
        start = content.read(40)
    if start.startswith(b"version https://git-lfs.github.com/spec"):
        raise ValueError(f"{file}: a Git LFS pointer of {file.stat().st_size} bytes, not the "
                         "content; fetch it with: git lfs pull")


def weight_files(directory: Path) -> list[Path]:
    """The weight files of a checkpoint: those that its index names, else model.safetensors alone.

    Others are ignored with a warning: a shard left by an interrupted download is not the model.
    """
    names = [SINGLE]
    if (directory / INDEX).is_file():
        places = read_json(directory / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ValueError(f"{directory / INDEX}: holds no weight_map; download it again")
        names = sorted(set(map(str, places.values())))
    present = sorted(file.name for file in directory.glob("*.safetensors"))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing and names == [SINGLE]:
        found = ", ".join(present) or "no .safetensors file"
        raise FileNotFoundError(f"{directory}: neither {SINGLE} nor {INDEX} ({found}); convert "
                                "other formats with transformers' save_pretrained")
    if missing:
        raise FileNotFoundError(f"{directory}: {INDEX} names {len(missing)} files that are not "
                                f"there ({', '.join(missing[:3])}); download them")
    strangers = [name for name in present if name not in names]
    if strangers and is_first_rank():
        known = SINGLE if names == [SINGLE] else f"the files that {INDEX} names"
        warnings.warn(f"{directory}: {', '.join(strangers)} ignored; the model is {known}",
                      stacklevel=2)
    return [directory / name for name in names]


def read_shapes(file: Path) -> dict[str, list[int]]:
    """Name and shape of each tensor in a safetensors file; ValueError if it is not a whole one."""
    refuse_pointer(file)
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            shapes = {name: content.get_slice(name).get_shape() for name in content.keys()}
    except SafetensorError as error:
        size = file.stat().st_size
        raise ValueError(f"{file}: not a whole safetensors file ({size:,} bytes; {error}); "
                         "download it again") from error
    # torch would place the tensors of such a file where its metadata says.
    if "DCP_SHARDING_INFO" in metadata:
        raise ValueError(f"{file}: holds one rank's part of each tensor (DCP_SHARDING_INFO); merge "
                         "the parts with torch's consolidate_safetensors_files")
    return shapes


def find_weights(directory: Path, config: Config) -> list[Path]:
    """The weight files of a checkpoint; together they hold each parameter of the model once.

    Reads headers only, so that a run can be refused before it has made anything. FileNotFoundError
    or ValueError for files that are missing, not whole, or of another model.
    """
    files = weight_files(directory)
    with torch.device("meta"):
        parameters = Model(config).named_parameters()
    expected = {name: list(p.shape) for name, p in parameters}
    place: dict[str, Path] = {}
    wrong = []
    for file in files:
        for name, shape in read_shapes(file).items():
            if name in place:
                wrong.append(f"{name}: in {place[name].name} and in {file.name}")
            elif name in expected and shape != expected[name]:
                wrong.append(f"{name}: {shape} in the file, {expected[name]} in the model")
            place[name] = file
    wrong += [f"{name}: missing" for name in expected if name not in place]
    unknown = place.keys() - expected.keys()
    if config.tied and "lm_head.weight" in unknown and not wrong:
        unknown.remove("lm_head.weight")
        check_tied_head(place)
    # Old checkpoints store the frequencies of RoPE, which follow from the config.
    for name in sorted(unknown):
        if not name.endswith("inv_freq"):
            wrong.append(f"{name}: unknown")
    if wrong:
        raise ValueError(f"{directory}: {len(wrong)} tensors do not fit its config.json: "
                         f"{'; '.join(wrong[:5])}")
    return files


def check_tied_head(place: dict[str, Path]) -> None:
    """ValueError where a tied model stores a head that differs from its embedding.

    transformers does not tie the two then (5.24: "so we will NOT tie them").
    """
    values = []
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        with safe_open(place[name], "pt") as content:
            values.append(content.get_tensor(name))
    if not torch.equal(*values):
        head = place["lm_head.weight"]
        raise ValueError(f"{head}: its lm_head.weight differs from the embedding, but config.json "
                         'ties the two; write "tie_word_embeddings": false there to use the stored '
                         "head, as transformers does")


def load(model: Model, directory: str | Path) -> Model:
    """Fills the parameters, sharded or not; each rank reads what it holds (a collective).

    Values are converted to the dtype of the parameters. Errors are those of find_weights, and
    ValueError for NaN or infinity in the weights.
    """
    directory = Path(directory)
    files = find_weights(directory, model.config)
    reader = dcp.HuggingFaceStorageReader(str(directory))
    reader.fs.ls = lambda _: [str(file) for file in files]  # it would read all of the directory
    parameters = {name: p.data for name, p in model.named_parameters()}
    with torch.no_grad(), warnings.catch_warnings():
        # One process without a group is meant.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(parameters, storage_reader=reader, no_dist=not dist.is_initialized())
    broken = agree(", ".join(not_finite(parameters)[:5]))
    if broken:
        raise ValueError(f"{directory}: NaN or infinity in the weights ({broken}); download the "
                         "model again, or take an earlier checkpoint of the run that made it")
    return model


def not_finite(parameters: dict[str, Tensor]) -> list[str]:
    """Names of the parameters that hold NaN or infinity in this rank's part of them."""
    names = []
    for name, p in parameters.items():
        local = p.to_local() if isinstance(p, DTensor) else p
        if not local.isfinite().all():
            names.append(name)
    return names


def read_tokenizer(directory: str | Path):
    """The tokenizer of a model; FileNotFoundError without one, ValueError if it cannot be read."""
    from transformers import AutoTokenizer

    directory = Path(directory)
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise FileNotFoundError(f"{directory}: no tokenizer ({', '.join(VOCABULARIES)}); copy the "
                                "files of the model that this one was trained from")
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # of json, of tokenizers, KeyError: transformers names no file
        for name in COMPANIONS:
            if (directory / name).is_file():
                refuse_pointer(directory / name)
                if name.endswith(".json"):
                    read_json(directory / name)
        raise ValueError(f"{directory}: transformers cannot read the tokenizer "
                         f"({type(error).__name__}: {error}); download its files again") from error


def check_tokenizer(tokenizer, config: Config) -> None:
    """ValueError if the tokenizer has a token without a row in the embedding."""
    vocabulary = tokenizer.get_vocab()
    token = max(vocabulary, key=vocabulary.get)
    if vocabulary[token] >= config.V:
        raise ValueError(f"the tokenizer has ids up to {vocabulary[token]:,} ({token!r}), but the "
                         f"embedding has {config.V:,} rows; use the tokenizer files of this model, "
                         "or enlarge its embedding with transformers' resize_token_embeddings")


def read_model(directory: Path, config: Config, device: torch.device, t: int) -> Model:
    """The model to sample from, whole or one part of it on each of t ranks (a collective).

    bfloat16 on a GPU, float32 elsewhere. A rank never holds more than its shard and its part.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    check_team(t, dist.get_world_size())
    with torch.device("meta"):
        model = Model(config).to(dtype)
        sharded = Model(config).to(dtype)
    if t == 1:
        return load(model.to_empty(device=device), directory)
    group, _ = dist.new_subgroups(t)
    model = tensor_parallel(model, group).to_empty(device=device)
    sharded = shard(sharded, make_mesh(device.type), dtype).to_empty(device=device)
    copy_weights(load(sharded, directory), model)
    return model


# ---- Writing a model -----------------------------------------------------------------------------


def save(
    model: Model,
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype,
    shard_gb: float = 4.0,
) -> None:
    """Writes a checkpoint in Hugging Face layout, in `dtype` (a collective).

    config.json and COMPANIONS come from the directory `source`. Rank 0 writes, one file of at most
    shard_gb (1e9 bytes) at a time, so that no rank ever holds the whole model. The files grow in
    TARGET.partial, which takes the place of TARGET after the last byte. OSError, on all ranks, if
    they cannot be written; TARGET is then as it was before.
    """
    source, target = Path(source), Path(target)
    partial = target.with_name(target.name + ".partial")
    stream = gather_files(model, dtype, shard_gb)
    error = ""
    if is_first_rank():
        try:
            if target.is_symlink():
                raise OSError("it is a link, and nothing is written through links; remove it")
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            copy_companions(source, partial, dtype)
            write_weights(stream, partial)
            replace(partial, target)
        except (OSError, ValueError, SafetensorError) as failure:
            shutil.rmtree(partial, ignore_errors=True)
            error = f"{target} could not be written: {failure}; mend this and save again"
    for _ in stream:  # gathering needs every rank, even if rank 0 cannot write
        pass
    error = agree(error)
    if error:
        raise OSError(error)


def gather_files(
    model: Model, dtype: torch.dtype, shard_gb: float
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(file name, tensors on the CPU) for each file to write; no tensors on other ranks than 0."""
    files = [[]]
    room = shard_gb * 1e9
    for name, p in model.named_parameters():
        size = p.numel() * dtype.itemsize
        if files[-1] and size > room:
            files.append([])
            room = shard_gb * 1e9
        files[-1].append((name, p))
        room -= size
    for i, parameters in enumerate(files, 1):
        tensors = {}
        for name, p in parameters:
            whole = full(p)
            if is_first_rank():
                tensors[name] = whole.to("cpu", dtype).contiguous()
        several = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        yield SINGLE if len(files) == 1 else several, tensors
        tensors.clear()  # before the next file is gathered


def write_weights(stream: Iterator[tuple[str, dict[str, Tensor]]], directory: Path) -> None:
    """Writes the files, and the index where there are several."""
    # safetensors makes files that only their owner can read; config.json has what the umask allows.
    mode = (directory / "config.json").stat().st_mode
    place = {}
    total = 0
    for file, tensors in stream:
        save_file(tensors, directory / file, metadata={"format": "pt"})
        os.chmod(directory / file, mode)
        for name, tensor in tensors.items():
            place[name] = file
            total += tensor.nbytes
    if len(set(place.values())) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": place}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def copy_companions(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Writes config.json with the dtype, and copies COMPANIONS.

    A link is copied only within the hub's cache, whose files are links into ../../blobs: in a model
    from elsewhere a link named tokenizer.json could bring any file of this machine into the export.
    """
    config = read_json(source / "config.json")
    config.pop("torch_dtype", None)  # the name in transformers 4
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    blobs = source.resolve().parent.parent / "blobs"
    for name in COMPANIONS:
        file = source / name
        if file.is_symlink() and file.resolve().parent != blobs:
            warnings.warn(f"{file} is a link and is not copied to {target.parent}", stacklevel=2)
        elif file.is_file():
            shutil.copyfile(file, target / name)


def replace(partial: Path, target: Path) -> None:
    """Gives a whole directory its name, in place of an older one, once its bytes are on disk."""
    for path in (*partial.iterdir(), partial):
        sync(path)
    old = target.with_name(target.name + ".replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    partial.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Makes a file or directory survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full(p: Tensor) -> Tensor:
    """The whole tensor behind a shard (a collective), or the tensor itself."""
    p = p.detach()
    return p.full_tensor() if isinstance(p, DTensor) else p


# ---- FSDP2, for training -------------------------------------------------------------------------


def make_mesh(device_type: str, replicas: int = 1) -> DeviceMesh:
    """All ranks in a row to shard over, or `replicas` such rows of neighbours (hybrid sharding)."""
    world = dist.get_world_size()
    if replicas == 1:
        return init_device_mesh(device_type, (world,), mesh_dim_names=("shard",))
    shape = (replicas, world // replicas)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def shard(model: Model, mesh: DeviceMesh, dtype: torch.dtype, offload: bool = False) -> Model:
    """FSDP2 with a unit for each layer and one for the rest.

    Computes in `dtype`, reduces gradients in float32: backward leaves their mean over all ranks,
    replicas included. offload: shards live in CPU memory.
    """
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    offloading = OffloadPolicy()
    if offload:
        offloading = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    options = {"mesh": mesh, "mp_policy": precision, "offload_policy": offloading}
    for layer in model.model["layers"]:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


# ---- Tensor parallelism, for sampling ------------------------------------------------------------

ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
COLUMNS = ("o_proj", "down_proj")


def check_heads(c: Config, t: int) -> None:
    """ValueError where tensor_parallel cannot split such a model into t parts."""
    if c.H % t or c.J % t or c.F % t:
        raise ValueError(f"{t} ranks cannot share a model with {c.H} query heads, {c.J} key-value "
                         f"heads and {c.F} features: give a --sampler-tp that divides all three")


def cut(name: str, whole: Tensor, group) -> Tensor:
    """This rank's part of a parameter, a view.

    q/k/v, gate/up and the head are split by rows, o/down by columns, the rest is replicated. A head
    is also replicated where the group's size does not divide the vocabulary.
    """
    module = name.split(".")[-2]
    if group is None or module not in ROWS + COLUMNS:
        return whole
    dim = 0 if module in ROWS else 1
    if whole.shape[dim] % group.size():
        return whole
    return whole.chunk(group.size(), dim)[group.rank()]


@torch.no_grad()
def tensor_parallel(model: Model, group) -> Model:
    """Leaves this rank its part of the heads, features and logits (Megatron-LM, arXiv 1909.08053).

    The group sums the partial outputs of o and down, and gathers the logits. The embedding stays
    whole, and so does a tied head. For a model without gradients, on any device; on the meta device
    before its memory is allocated.
    """
    check_heads(model.config, group.size())

    def add(_module, _args, x_TD: Tensor) -> Tensor:
        dist.all_reduce(x_TD, group=group)
        return x_TD

    def gather(_module, _args, part_RV: Tensor) -> Tensor:
        R, V = part_RV.shape
        parts_RV = part_RV.new_empty(group.size() * R, V)
        dist.all_gather_into_tensor(parts_RV, part_RV.contiguous(), group=group)
        return parts_RV.unflatten(0, (-1, R)).transpose(0, 1).flatten(1)

    for name, p in model.named_parameters():
        p.data = cut(name, p.data, group).clone()
    for layer in model.model["layers"]:
        layer.self_attn.o_proj.register_forward_hook(add)
        layer.mlp.down_proj.register_forward_hook(add)
    if not model.config.tied and len(model.lm_head.weight) < model.config.V:
        model.register_forward_hook(gather)
    model.group = group
    return model


@torch.no_grad()
def copy_weights(sharded: Model, sampler_model: Model) -> None:
    """Overwrites the sampler's parameters, or its part of them, in place (a collective).

    Each FSDP unit is gathered in the dtype it computes in, while the one before it is copied.
    """
    target = dict(sampler_model.named_parameters())
    modules = sharded.named_modules()
    units = [(name, module) for name, module in modules if isinstance(module, FSDPModule)]
    for i, (prefix, unit) in enumerate(units):
        unit.unshard()  # waits for what the turn before began
        if i + 1 < len(units):
            _, following = units[i + 1]
            following.unshard(async_op=True)
        for name, p in unit.named_parameters(prefix):
            if not isinstance(p, DTensor):  # a DTensor belongs to another unit
                target[name].copy_(cut(name, p, sampler_model.group))
        unit.reshard()
