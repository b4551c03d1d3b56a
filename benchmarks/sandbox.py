"""Run a program that nobody has read against its tests: contained, under limits, or not at all.

    run("def double(x): return x + x", "assert double(3) == 6", ["double"])  ->  Result(True, "")

The program and the tests run in two sandboxes that are joined by two pipes (inside.py says what
crosses them). A sandbox is a Python interpreter

- in namespaces of its own: it sees no other process, no network, no System V memory;
- with a root of its own: a read-only Python, an empty /tmp in memory, no other file, no /proc;
- without capabilities, under limits (`Limits`), and under a filter of system calls.

It ends with its first process, which ends with this one. Two ways to make it are tried: as root,
namespaces and a user of the sandbox's own; else a user namespace. `probe` tries to break out before
a way is used. If no way holds, nothing is run.

What does not hold a program: a hole in the kernel. Where that matters, evaluate in a virtual machine.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

from benchmarks import inside


class Refused(OSError):
    """Programs cannot be contained here. The message says what was tried, and how it failed."""


@dataclass(frozen=True)
class Limits:
    """Of each of the two sandboxes."""

    seconds: float = 10.0  # wall clock, from the moment at which both sandboxes stand
    memory_mb: int = 512  # address space of one process; together at most processes * memory_mb
    processes: int = 8  # threads count, and up to two processes that hold the sandbox
    file_mb: int = 16  # one file, and all of /tmp


@dataclass(frozen=True)
class Result:
    passed: bool  # every test was run, and none failed
    reason: str  # why not, in one line; "" if passed
    late: bool = False  # the reason is that time was up


SOURCE = Path(inside.__file__).read_text()
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
PATIENCE = (20, 60, 180)  # seconds for a sandbox to stand, and for the probe; a busy machine gets three tries

# The first process of a sandbox. $1 is the size of /tmp in MB, then come the directories to show,
# then the command. The new root is mounted over /dev: every machine has it, and no Python lives in it.
# Nobody leaves a chroot without capabilities, and the kernel gives none: it makes no user namespace
# for a process in a chroot.
SETUP = """
set -e
umask 022
mount -t tmpfs -o size=$1m,nr_inodes=1k,mode=755 tmpfs /dev
shift
cd /dev
mkdir -m 1777 tmp
while [ "$1" != -- ]; do
    mkdir -p ".$1"
    mount --bind "$1" ".$1"
    mount -o remount,bind,ro,nosuid,nodev ".$1"
    shift
done
shift
status=0
chroot . "$@" || status=$?
exit $status
"""


# ---- One sandbox ------------------------------------------------------------------------------


def spare_user() -> int:
    """A user id that no person and no service has, another one for each sandbox.

    The kernel counts processes by user. The ranges are unused by systemd (UIDS-GIDS.md); a container
    may have the first 65,536 ids only.
    """
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    known = sum(int(line.split()[2]) for line in lines)
    ids = range(0x7000_0000, 0x7FFD_0000)
    if known <= ids[-1]:
        ids = range(60_578, 61_184)
    return random.SystemRandom().choice(ids)


def command(way: str, limits: Limits) -> list[str]:
    """The command that starts Python in a sandbox, without Python's arguments. way: root or user."""
    python = os.path.realpath(sys._base_executable)
    home = os.path.realpath(sys.base_prefix)
    shown = [d for d in ("/usr", "/lib", "/lib64", "/bin") if os.path.isdir(d)]
    if not home.startswith("/usr/"):
        shown.append(home)
    user = spare_user()
    change_user = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    outer = ["setpriv", "--pdeathsig", "KILL"]
    inner = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    unshare = ["unshare", "--net", "--pid", "--ipc", "--uts", "--mount", "--kill-child"]
    if way == "root":
        inner += change_user
    else:
        unshare += ["--user", "--map-root-user"]
        outer += change_user if os.geteuid() == 0 else []
    setup = ["sh", "-c", SETUP, "sh", str(limits.file_mb), *shown, "--"]
    return [*outer, *unshare, *setup, *inner, python, "-I", "-S", "-B"]


class Sandbox(AbstractContextManager):
    """One interpreter in a sandbox, for one role of inside.py. Leaving it ends all of its processes.

    pipes: file descriptors to inherit, (to read from, to write to).
    """

    def __init__(self, way: str, role: str, limits: Limits, pipes: tuple[int, ...] = ()):
        arguments = ["-c", SOURCE, role, *map(str, astuple(limits))]
        self.pipes = pipes
        self.errors = tempfile.TemporaryFile()  # a file, since the limit on files holds for it
        self.process = subprocess.Popen(
            [*command(way, limits), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            pass_fds=pipes,
        )

    def wait_ready(self) -> None:
        """ChildProcessError with the last words of a sandbox that does not come to stand."""
        if self.process.stdout.readline() != b"ready\n":
            raise ChildProcessError(self.last_words())

    def last_words(self) -> str:
        """The end of what it wrote to standard error, in one line."""
        self.errors.seek(0)
        text = self.errors.read().decode("utf-8", "replace")
        return " ".join(text.split())[-300:] or "the sandbox ended without a word"

    def give(self, **job) -> None:
        """Hand over the job: from here on untrusted text is run."""
        try:
            self.process.stdin.write(json.dumps(job).encode())
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended; whoever reads its report sees that

    def report(self) -> list | None:
        """What it reports, None if it ends without a report."""
        try:
            return inside.receive(self.process.stdout)
        except EOFError:
            return None

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # the first process, and so everything in it

    def __exit__(self, *_) -> None:
        self.kill()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # what it never read


@contextmanager
def alarm(seconds: float, *sandboxes: Sandbox) -> Iterator[None]:
    """Kill the sandboxes after so long: who waits for them then reads the end of a pipe. TimeoutError."""
    rung = threading.Event()

    def ring() -> None:
        rung.set()
        for sandbox in sandboxes:
            sandbox.kill()

    timer = threading.Timer(seconds, ring)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if rung.is_set():
            raise TimeoutError(f"not done in {seconds:g} s")


# ---- Does a way hold? -------------------------------------------------------------------------


def attempt(way: str, limits: Limits, patience: float) -> list[str]:
    """What a program could do in a sandbox of this kind and should not. OSError if it does not stand."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        outside = Path(directory, "outside")
        outside.write_text("unchanged")
        os.chmod(directory, 0o755)  # only the sandbox may stand in the way
        outside.chmod(0o666)
        sandbox = stack.enter_context(Sandbox(way, "probe", limits))
        with alarm(patience, sandbox):
            sandbox.wait_ready()
            sandbox.give(outside=str(outside), port=server.getsockname()[1], pid=os.getpid())
            leaks = sandbox.report()
        if leaks is None:
            raise ChildProcessError(sandbox.last_words())
        if outside.read_text() != "unchanged":
            leaks.append("change a file outside")
        return leaks


def probe(way: str, limits: Limits) -> str:
    """"" if a way holds, else what is wrong with it."""
    for patience in PATIENCE:
        try:
            leaks = attempt(way, limits, patience)
        except TimeoutError as error:
            failed = str(error)
            continue  # a busy machine is no reason to end a run
        except OSError as error:
            return str(error)
        return f"a program could {', '.join(leaks)}" if leaks else ""
    return f"the probe was {failed}, {len(PATIENCE)} times"


@cache
def holding(limits: Limits) -> str:
    """The first way that holds a program here: root or user. Refused if there is none."""
    if sys.platform != "linux":
        raise Refused(
            f"programs of a model are not run: namespaces of Linux contain them, and this is {sys.platform}"
        )
    tried = []
    for way in ("root", "user") if os.geteuid() == 0 else ("user",):
        failed = probe(way, limits)
        if not failed:
            return way
        tried.append(f"{way}: {failed}")
    raise Refused(
        "programs of a model are not run, since nothing here contains them: "
        + "; ".join(tried)
        + ". Allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu, "
        "--privileged for a container), or leave programs out"
    )


# ---- A program and its tests ------------------------------------------------------------------


def execute(way: str, program: str, tests: str, names: list[str], question: str, limits: Limits, patience: float) -> Result:
    """Run once. TimeoutError or ChildProcessError if the sandboxes do not stand, before anything is run."""
    requests, answers = os.pipe(), os.pipe()
    with ExitStack() as stack:
        try:
            examiner = Sandbox(way, "tests", limits, (answers[0], requests[1]))
            stack.push(examiner)
            candidate = Sandbox(way, "program", limits, (requests[0], answers[1]))
            stack.push(candidate)
        finally:
            for descriptor in (*requests, *answers):
                os.close(descriptor)  # the sandboxes have their own
        with alarm(patience, examiner, candidate):
            examiner.wait_ready()
            candidate.wait_ready()
        try:
            with alarm(limits.seconds, examiner, candidate):
                examiner.give(pipes=examiner.pipes, question=question, tests=tests, names=names)
                candidate.give(pipes=candidate.pipes, program=program, names=names)
                passed, reason = examiner.report() or (False, "the tests ended early")
        except TimeoutError as error:
            return Result(False, str(error), late=True)
    printable = "".join(c if c.isprintable() else "?" for c in reason)
    return Result(passed, printable)


def run(program: str, tests: str, names: list[str], question: str = "", limits: Limits = Limits()) -> Result:
    """Run a program (Python, standard library only) against its tests. Any thread may call it.

    names: the functions that the tests call and the program defines. question: code whose functions
    the tests may call too. Refused if nothing contains the program.
    """
    way = holding(limits)
    for patience in PATIENCE:
        try:
            return execute(way, program, tests, names, question, limits, patience)
        except (TimeoutError, ChildProcessError) as error:
            failed = error
    raise Refused(f"programs could be contained before ({way}), and no longer can: {failed}")
