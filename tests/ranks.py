"""Processes that begin with everything imported: a test of several ranks takes a second, and can be
killed like any other."""

import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
context = multiprocessing.get_context("forkserver")
# Imported once, by the server that every process here is a fork of; the others are what grpo
# imports as it goes.
context.set_forkserver_preload(["grpo", "torch._dynamo", "matplotlib.pyplot"])


def begin(rank, world, port, output, function, arguments):
    if output:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout.reconfigure(line_buffering=True)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.chdir(ROOT)
    function(*arguments)


def start(n, function, *arguments, output=None):
    """n ranks that run function(*arguments); their output goes to a file if one is given."""
    # of the server, at its start
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = [
        context.Process(target=begin, args=(r, n, port, output, function, arguments))
        for r in range(n)
    ]
    for process in started:
        process.start()
    return started


def wait(started, seconds=600):
    """Their exit codes. The limit only ends a hang: what still runs then is killed, which gives
    -9."""
    for process in started:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in started]


def grouped(function, folder, *arguments):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        result = function(*arguments)
    except BaseException:
        result = traceback.format_exc()
        (Path(folder) / "failed").write_text(result)
        raise
    (Path(folder) / str(dist.get_rank())).write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def run(n, function, *arguments):
    """What function(*arguments) returns on each of n ranks joined by gloo; AssertionError with a
    failing rank's traceback."""
    with tempfile.TemporaryDirectory() as folder:
        codes = wait(start(n, grouped, function, folder, *arguments, output=f"{folder}/output"))
        failed = Path(folder) / ("failed" if Path(folder, "failed").exists() else "output")
        assert codes == [0] * n, f"exit codes {codes}: {failed.read_text()[-3000:]}"
        return [pickle.loads((Path(folder) / str(r)).read_bytes()) for r in range(n)]


def train(argv):
    """grpo.py with these arguments, as the command line runs it."""
    import torch.distributed as dist

    import grpo
    from runtime.ledger import explain

    assert not dist.is_initialized()
    sys.argv = ["grpo.py", *argv]
    explain(lambda: grpo.main(grpo.parse_flags(argv)))
