"""Processes, sharding, loading and saving: what lets the model grow beyond one device, applied from outside."""

import json
import os
import shutil
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from model import Config, Model


def connect(name: str) -> tuple[torch.device, Path, Config]:
    """Joins the ranks that torchrun started (or makes the only one) -> (this rank's device, the model's files, its config)."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(minutes=30), **alone)
    source = locate(name)
    config = Config.read(source)
    if config.N < 1_000_000:  # a second thread saves less than it waits: with another program on the cores, 30 times slower
        torch.set_num_threads(1)
    return device, source, config


def check_team(t: int, world: int) -> None:
    """ValueError unless the ranks of every node can be cut into teams of t that each hold a copy of the model."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if t < 1 or here % t or world % t:
        raise ValueError(f"--sampler-tp {t} does not divide the ranks of a node, {here} of {world}; give a number that does")


def locate(name: str) -> Path:
    """A local directory as it is; anything else is a hub name ("Qwen/Qwen2.5-0.5B") and is downloaded."""
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.startswith("models/"):
        raise FileNotFoundError(f"--model {name}: no such directory, and not a hub name such as Qwen/Qwen2.5-0.5B")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]))
    except Exception as error:  # the hub client raises a family of its own, httpx's and OSError
        raise FileNotFoundError(f"--model {name}: no such directory here, and the model hub did not give it "
                                f"({type(error).__name__}: {error}); --model DIR takes a local checkpoint") from error


def load(model: Model, directory: str | Path) -> Model:
    """Fills the model's parameters, sharded or not, from DIR/*.safetensors; each rank reads only what it holds."""
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory}: no .safetensors file; convert other formats with transformers first")
    state = dict(model.named_parameters())
    reader = dcp.HuggingFaceStorageReader(str(directory))
    stored = reader.read_metadata().state_dict_metadata
    wrong = [f"{n}: missing" for n in state if n not in stored]
    wrong += [f"{n}: {list(stored[n].size)} in the file, {list(p.shape)} in the model" for n, p in state.items()
              if n in stored and stored[n].size != p.shape]
    wrong += [f"{n}: unknown" for n in stored if n not in state and not (model.config.tied and n == "lm_head.weight")
              and not n.endswith("rotary_emb.inv_freq")]
    if wrong:
        raise ValueError(f"{directory}: {len(wrong)} tensors do not fit its config.json: {'; '.join(wrong[:5])}")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process without a group is meant
        dcp.load({n: p.data for n, p in state.items()}, storage_reader=reader, no_dist=not dist.is_initialized())
    return model


def save(model: Model, source: str | Path, target: str | Path, dtype: torch.dtype, shard_gb: float = 4.0) -> None:
    """Writes a Hugging Face checkpoint: the weights in `dtype`, config and tokenizer files copied from `source`.

    Every rank calls it; rank 0 writes, a file of at most shard_gb at a time, so that no rank ever holds the whole model.
    """
    writes = not dist.is_initialized() or dist.get_rank() == 0
    target = Path(target)
    groups, room = [[]], shard_gb * 1e9
    for name, p in model.named_parameters():
        size = p.numel() * dtype.itemsize
        if groups[-1] and size > room:
            groups.append([])
            room = shard_gb * 1e9
        groups[-1].append((name, p))
        room -= size
    if writes:
        target.mkdir(parents=True, exist_ok=True)
        for f in Path(source).iterdir():
            if f.suffix in (".json", ".jinja", ".txt", ".model") and not f.name.endswith(".safetensors.index.json"):
                shutil.copy(f, target / f.name)
        config = json.loads((target / "config.json").read_text())
        config.pop("torch_dtype", None)
        (target / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).split(".")[1]}, indent=2) + "\n")
    place = {}
    for i, group in enumerate(groups):
        file = "model.safetensors" if len(groups) == 1 else f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name, p in group:
            whole, place[name] = full(p), file  # gathering needs every rank
            if writes:
                tensors[name] = whole.to("cpu", dtype).contiguous()
        if writes:
            save_file(tensors, target / file, metadata={"format": "pt"})
    if writes and len(groups) > 1:
        size = sum(p.numel() for p in model.parameters()) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": place}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def full(p: Tensor) -> Tensor:
    """The whole tensor behind a shard (a collective), or the tensor itself."""
    p = p.detach()
    return p.full_tensor() if isinstance(p, DTensor) else p


def make_mesh(device_type: str, replicas: int = 1) -> DeviceMesh:
    """All ranks in a row to shard over, or `replicas` rows of neighbours: shard within a row, replicate across rows."""
    world = dist.get_world_size()
    if replicas == 1:
        return init_device_mesh(device_type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (replicas, world // replicas), mesh_dim_names=("replicate", "shard"))


def shard(model: Model, mesh: DeviceMesh, dtype: torch.dtype, offload: bool = False) -> Model:
    """FSDP2 over the mesh (of two dimensions: replicate, shard): a unit per layer, one for the rest; compute in `dtype`,
    gradients reduced in float32."""
    options = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy(),
    }
    for layer in model.model["layers"]:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def check_heads(c: Config, t: int) -> None:
    """ValueError where tensor_parallel cannot cut such a model into t parts."""
    if c.H % t or c.J % t or c.F % t:
        raise ValueError(f"{t} ranks cannot share a model with {c.H} query heads, {c.J} key-value heads and {c.F} features: "
                         "give a --sampler-tp that divides all three")


def cut(name: str, whole: Tensor, group) -> Tensor:
    """What a rank of the group holds of a parameter (a view): rows of what makes heads, features and logits, columns of what
    sums over them, all of the others. A vocabulary that the ranks do not divide stays whole."""
    maker = name.split(".")[-2]
    dim = {"o_proj": 1, "down_proj": 1}.get(maker, 0 if maker.endswith("_proj") or maker == "lm_head" else None)
    if group is None or dim is None or whole.shape[dim] % group.size():
        return whole
    return whole.chunk(group.size(), dim)[group.rank()]


@torch.no_grad()
def tensor_parallel(model: Model, group) -> Model:
    """Leaves this rank its part of the heads, features and logits (Megatron-LM, arXiv 1909.08053, section 3): the partial
    outputs of o and down are summed over the group, the logits gathered. For a model without gradients, on any device; on
    the meta device before it is allocated. The embedding stays whole, and so does a tied head."""
    check_heads(model.config, group.size())

    def add(_module, _args, x_TD):
        dist.all_reduce(x_TD, group=group)
        return x_TD

    def gather(_module, _args, logits_RV):
        R, part = logits_RV.shape
        parts = logits_RV.new_empty(group.size() * R, part)
        dist.all_gather_into_tensor(parts, logits_RV.contiguous(), group=group)
        return parts.unflatten(0, (-1, R)).transpose(0, 1).flatten(1)

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
def copy_weights(src: Model, dst: Model) -> None:
    """Overwrites dst's parameters, or the part of them that this rank has, in place with those of src, a model in shards (a
    collective). Each unit of FSDP is gathered at once, in the dtype it computes in, while the one before it is copied."""
    target = dict(dst.named_parameters())
    units = [(prefix, unit) for prefix, unit in src.named_modules() if isinstance(unit, FSDPModule)]
    for (prefix, unit), (_, following) in zip(units, [*units[1:], (None, None)], strict=True):
        unit.unshard()  # waits for what was begun below
        if following is not None:
            following.unshard(async_op=True)
        for name, p in unit.named_parameters(prefix):
            if not isinstance(p, DTensor):  # nor are those of other units
                target[name].copy_(cut(name, p, dst.group))
        unit.reshard()


def read_model(directory: Path, config: Config, device: torch.device, t: int) -> Model:
    """The model to sample from, whole, or a part of it on each of t ranks; no rank ever holds more than its share of both."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    check_team(t, dist.get_world_size())
    with torch.device("meta"):
        model, whole = Model(config).to(dtype), Model(config).to(dtype)
    if t == 1:
        return load(model.to_empty(device=device), directory)
    tensor_parallel(model, dist.new_subgroups(t)[0])
    whole = load(shard(whole, make_mesh(device.type), dtype).to_empty(device=device), directory)
    copy_weights(whole, model.to_empty(device=device))
    return model



def read_tokenizer(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)
