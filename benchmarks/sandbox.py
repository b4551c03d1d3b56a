"""Run a Python program that nobody has read: in namespaces of its own, under limits, or not at all.

    run("print(1 / 0)")  ->  Result(passed=False, reason="ZeroDivisionError: division by zero")

What holds it: it sees a read-only interpreter and an empty /tmp in memory, and no other file, process, network, /proc or /dev;
it has no capability, and limits (`Limits`); it ends with its first process. Three ways are tried: bubblewrap; as root, plain
namespaces and a user of its own (root is exempt from the limit on processes); else a user namespace. A way is used only after
`probe` has tried to break out of it, here and now, and could not. If none holds, nothing is run.

What does not hold it: a hole in the kernel. On a machine where that matters, put the whole evaluation into a virtual one.
"""

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path


class Refused(OSError):
    """No way to contain a program works here; the message says what was tried, and what came of it."""


@dataclass(frozen=True)
class Limits:
    seconds: float = 10.0  # by the clock
    memory_mb: int = 512  # address space of one process, so that all of them have at most processes * memory_mb
    processes: int = 8  # threads count, and up to three processes that hold the program
    file_mb: int = 16  # a file, the output, and all of /tmp


@dataclass(frozen=True)
class Result:
    passed: bool  # it ran to its last line
    reason: str  # if not: the last line it wrote, or what ended it
    output: str  # the last 64 kB that it wrote


# Process 1 of the namespace. It mounts over /dev, which every machine has and no interpreter lives in. From a chroot nobody
# without capabilities comes back, and the kernel gives none: it lets nobody make a user namespace inside a chroot.
SETUP = """
set -e; umask 022
mount -t tmpfs -o size=$1m,nr_inodes=1k,mode=755 tmpfs /dev; shift
cd /dev; mkdir -m 1777 tmp
while [ "$1" != -- ]; do mkdir -p ".$1"; mount --bind "$1" ".$1"; mount -o remount,bind,ro,nosuid,nodev ".$1"; shift; done
shift; status=0; chroot . "$@" || status=$?
exit $status
"""
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}


def command(way: str, limits: Limits) -> list[str]:
    """The command that runs the program on its input: `way` is bubblewrap, root or user."""
    python, home = os.path.realpath(sys._base_executable), os.path.realpath(sys.base_prefix)
    seen = [d for d in ("/usr", "/lib", "/lib64", "/bin") if os.path.isdir(d)]
    seen += [home] if not f"{home}/".startswith("/usr/") else []
    uid = random.SystemRandom().randrange(20_000, 60_000)  # one for each run: the limit on processes counts by user
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    inner = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    # `timeout` is for the case that this process dies before it can end the program.
    inner = ["timeout", "-s", "KILL", f"{limits.seconds + 1:g}", *(drop if way == "root" else []), *inner,
             "prlimit", f"--as={limits.memory_mb << 20}", f"--nproc={limits.processes}", f"--fsize={limits.file_mb << 20}",
             f"--cpu={int(limits.seconds) + 1}", "--nofile=64", "--core=0", python, "-s", "-S", "-B", "-"]
    drop = drop if os.geteuid() == 0 and way != "root" else []
    if way == "bubblewrap":
        binds = [part for d in seen for part in ("--ro-bind", d, d)]
        return [*drop, "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", *binds,
                "--size", str(limits.file_mb << 20), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", *inner]
    user = ["--user", "--map-root-user"] if way == "user" else []
    return [*drop, "unshare", *user, "--net", "--pid", "--ipc", "--uts", "--mount", "--fork", "sh", "-c", SETUP, "sh",
            str(limits.file_mb), *seen, "--", *inner]


def execute(way: str, program: str, limits: Limits) -> tuple[bool, Result]:
    """-> (whether the program was begun at all, its result)."""
    begun, ended = secrets.token_hex(16), secrets.token_hex(16)
    # Having ended well is not proof: sys.exit() does that before any test has run. The last line must have been reached.
    text = (f"import os\nos.chdir('/tmp')\nprint({begun!r}, flush=True)\n"
            f"exec(compile({program!r}, 'program', 'exec'), {{'__name__': '__main__'}})\n"
            f"print('\\n' + {ended!r}, flush=True)\n")
    # A file takes what it writes: the limit on files holds for it, and a pipe would have none.
    with tempfile.TemporaryFile() as written:
        process = subprocess.Popen(command(way, limits), stdin=subprocess.PIPE, stdout=written, stderr=subprocess.STDOUT,
                                   env=ENVIRONMENT, cwd="/", start_new_session=True)
        try:
            process.communicate(text.encode("utf-8", "replace"), timeout=limits.seconds)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with process 1 of its namespace, everything in it
                process.wait()
        size = written.seek(0, os.SEEK_END)
        written.seek(0)
        started = written.read(len(begun)) == begun.encode()
        written.seek(max(len(begun) * started, size - 65536))
        output = written.read().decode("utf-8", "replace").strip()
    passed = not late and process.returncode == 0 and output.endswith(ended)
    output = output.removesuffix(ended).strip()
    last = output.rpartition("\n")[2][:200]
    reason = "" if passed else f"not done in {limits.seconds:g} s" if late else last or f"ended early, {process.returncode}"
    return started, Result(passed, reason, output)


PROBE = """
import json, os, pathlib, socket, time
leaks, memory, processes, size, port, outside = [], *{values}
def attempt(name, action):
    try:
        action()
        leaks.append(name)
    except (OSError, MemoryError):
        pass
def write(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").write("changed")
def fork():
    children = []
    try:
        for _ in range(processes + 1):
            if not (child := os.fork()):
                time.sleep(100)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
attempt("read a file outside", lambda: open(outside))
attempt("write into /usr", lambda: (write("/usr/grpo-ladder-probe"), os.remove("/usr/grpo-ladder-probe")))
attempt("connect to this machine", lambda: socket.create_connection(("127.0.0.1", port), 1))
attempt("send to the network", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9)))
attempt("allocate more memory", lambda: bytearray(memory + 1))
attempt("write a larger file", lambda: pathlib.Path("large").write_bytes(bytes(size + 1)))
attempt("start more processes", fork)
try:
    write(outside)  # into a directory of the same name at most: the outside is looked at from outside
except OSError:
    pass
open("allowed", "w").write("a file in the current directory must work")
attempt("become root", lambda: os.setuid(0) if os.getuid() else os.chroot("/tmp"))
print(json.dumps(leaks))
"""


def probe(way: str, limits: Limits) -> str:
    """Tries to break out. -> "" if `way` holds, else what went wrong."""
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as server:
        outside = Path(directory) / "outside"
        outside.write_text("unchanged")
        values = limits.memory_mb << 20, limits.processes, limits.file_mb << 20, server.getsockname()[1], str(outside)
        try:
            started, result = execute(way, PROBE.replace("{values}", repr(values)), limits)
        except OSError as error:  # a command is missing
            return str(error)
        if not started:
            return " ".join(result.output.split())[:300] or result.reason
        leaks = json.loads(result.output) if result.passed else [result.reason]
        leaks += ["change a file outside"] if outside.read_text() != "unchanged" else []
    return f"a program could: {', '.join(leaks)}" if leaks else ""


@cache
def holding(limits: Limits) -> str:
    """The first way that holds a program here. Refused if there is none."""
    if sys.platform != "linux":
        raise Refused(f"programs of a model are not run: they are contained by namespaces of Linux, and this is {sys.platform}")
    ways = ["bubblewrap"] if shutil.which("bwrap", path=ENVIRONMENT["PATH"]) else []
    ways += ["root", "user"] if os.geteuid() == 0 else ["user"]
    tried = {}
    for way in ways:
        if not (failed := probe(way, limits)):
            return way
        tried[way] = failed
    raise Refused("programs of a model are not run, for nothing here contains them: "
                  + "; ".join(f"{way}: {failed}" for way, failed in tried.items())
                  + ". Install bubblewrap, allow user namespaces (a container may need --privileged), or leave programs out")


def run(program: str, limits: Limits = Limits()) -> Result:
    """Runs the text of a Python program, standard library only. Refused if it cannot be contained. Any thread may call it."""
    way = holding(limits)
    started, result = execute(way, program, limits)
    if not started and (failed := probe(way, limits)):  # a program can also hide that it was begun
        raise Refused(f"programs could be contained ({way}), and no longer can: {failed}")
    return result
