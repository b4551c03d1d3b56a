"""Run a program that nobody has read against its tests: contained, under limits, or not at all.

    run("def double(x): return x + x", "assert double(3) == 6", ["double"])  ->  Result(True, "")

The program and the tests run in two sandboxes that are joined by two pipes (inside.py says what
crosses them). A sandbox is a Python interpreter

- in namespaces of its own: it sees no other process, no network, no shared memory;
- with a root directory of its own: a read-only Python, an empty /tmp in memory, nothing else;
- without capabilities, under limits (`Limits`), and under a filter of system calls.

All processes of a sandbox end when its first one ends, and that one ends when this process does.

There are two ways to make a sandbox. "root" is for root: namespaces, and a user of the sandbox's
own. "user" is for everybody else: a user namespace, where the kernel allows one. Before a way is
used, `probe` tries to break out. If no way holds, nothing is run.

A hole in the kernel lets a program out. Where that matters, evaluate in a virtual machine.
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

    seconds: float = 10.0  # wall clock, counted from when both sandboxes have started
    memory_mb: int = 512  # address space of one process; together at most processes * memory_mb
    processes: int = 8  # threads count, and up to two processes that hold the sandbox
    file_mb: int = 16  # one file, and all of /tmp


@dataclass(frozen=True)
class Result:
    passed: bool  # every test was run, and none failed
    reason: str  # why not, in one line; "" if passed
    late: bool = False  # the reason is that time was up


SOURCE = Path(inside.__file__).read_text()
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONHASHSEED": "0",  # sets come in one order: the same program gets the same verdict
    "PYTHONUTF8": "1",
}
PATIENCE = (20, 60, 180)  # seconds for a sandbox to start and to be probed, in three tries

# The first process of a sandbox. $1 is the size of /tmp in MB, then come the directories to show,
# then the command. The new root is mounted over /dev, since every machine has that directory and no
# Python lives there. Leaving a chroot needs a capability, and the kernel gives none: it makes no
# user namespace for a process in a chroot.
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

    The kernel counts processes by user. systemd lists both ranges as unused (its UIDS-GIDS.md); the
    small one is for a container that has only the first 65,536 ids.
    """
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    known = sum(int(line.split()[2]) for line in lines)
    ids = range(0x7000_0000, 0x7FFD_0000)
    if known <= ids[-1]:
        ids = range(60_578, 61_184)
    return random.SystemRandom().choice(ids)


def command(way: str, limits: Limits) -> list[str]:
    """The command that starts Python in a sandbox. way: root or user."""
    python = os.path.realpath(sys._base_executable)
    home = os.path.realpath(sys.base_prefix)
    shown = [d for d in ("/usr", "/lib", "/lib64", "/bin") if os.path.isdir(d)]
    if not f"{home}/".startswith("/usr/"):
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
    return [*outer, *unshare, *setup, *inner, python, "-s", "-S", "-B"]


class Sandbox(AbstractContextManager):
    """One interpreter in a sandbox, in one role of inside.py. Leaving it ends all its processes.

    pipes: file descriptors to inherit, (to read from, to write to).
    """

    def __init__(self, way: str, role: str, limits: Limits, pipes: tuple[int, ...] = ()):
        arguments = ["-c", SOURCE, role, *map(str, astuple(limits))]
        self.pipes = pipes
        self.errors = tempfile.TemporaryFile()  # a file is bounded by file_mb, a pipe by nothing
        self.process = subprocess.Popen(
            [*command(way, limits), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,  # the probe looks for the leader of this session
            pass_fds=pipes,
        )

    def wait_ready(self) -> None:
        """ChildProcessError, with its message, if the sandbox does not start."""
        if self.process.stdout.readline() != b"ready\n":
            raise ChildProcessError(self.error_text())

    def error_text(self) -> str:
        """The end of standard error, in one line."""
        self.errors.seek(0)
        text = self.errors.read().decode("utf-8", "replace")
        return " ".join(text.split())[-300:] or "the sandbox ended without a message"

    def give(self, **job) -> None:
        """Hand over the job: from here on untrusted text is run."""
        try:
            self.process.stdin.write(json.dumps(job).encode())
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # the process has ended; then its report is missing

    def report(self) -> list | None:
        """The report of the process. None if the process ended before the report was complete."""
        try:
            return inside.receive(self.process.stdout)
        except (EOFError, ValueError):
            return None

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # the first process, hence all

    def __exit__(self, *_) -> None:
        self.kill()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # the process ended before it read its job


@contextmanager
def alarm(seconds: float, *sandboxes: Sandbox) -> Iterator[None]:
    """Kill the sandboxes after so many seconds, which ends every wait for them. TimeoutError."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        for sandbox in sandboxes:
            sandbox.kill()

    timer = threading.Timer(seconds, expire)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if expired.is_set():
            raise TimeoutError(f"not done in {seconds:g} s")


# ---- Does a way hold? -------------------------------------------------------------------------


def attempt(way: str, limits: Limits, patience: float) -> list[str]:
    """What a program could do and should not. OSError if the sandbox does not start."""
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
            sandbox.give(outside=str(outside), port=server.getsockname()[1])
            leaks = sandbox.report()
        if leaks is None:
            raise ChildProcessError(sandbox.error_text())
        if outside.read_text() != "unchanged":
            leaks.append("change a file outside")
        return leaks


def probe(way: str, limits: Limits) -> str:
    """What is wrong with a way; nothing, "", if it holds."""
    for patience in PATIENCE:
        try:
            leaks = attempt(way, limits, patience)
        except TimeoutError as error:
            failed = str(error)
            continue  # the machine is busy
        except OSError as error:
            return str(error)
        return f"a program could {', '.join(leaks)}" if leaks else ""
    return f"the probe was {failed}, {len(PATIENCE)} times"


@cache
def holding(limits: Limits) -> str:
    """The first way that holds a program here: root or user. Refused if there is none."""
    if sys.platform != "linux":
        raise Refused(
            "programs of a model are not run: they are contained by namespaces of Linux, "
            f"and this is {sys.platform}"
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
        + ". Allow user namespaces (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0; "
        "a container: --privileged), or leave programs out"
    )


# ---- A program and its tests ------------------------------------------------------------------


def execute(
    way: str, program_job: dict, tests_job: dict, limits: Limits, patience: float = PATIENCE[0]
) -> Result:
    """Run a program and its tests once. The jobs: arguments of inside.serve_program and run_tests.

    OSError (TimeoutError, ChildProcessError) if the sandboxes do not start; then nothing was run.
    """
    requests = os.pipe()
    answers = os.pipe()
    with ExitStack() as stack:
        try:
            tests = Sandbox(way, "tests", limits, (answers[0], requests[1]))
            stack.enter_context(tests)
            program = Sandbox(way, "program", limits, (requests[0], answers[1]))
            stack.enter_context(program)
        finally:
            for descriptor in (*requests, *answers):
                os.close(descriptor)  # the sandboxes have their own copies
        with alarm(patience, tests, program):
            tests.wait_ready()
            program.wait_ready()
        try:
            with alarm(limits.seconds, tests, program):
                tests.give(pipes=tests.pipes, **tests_job)
                program.give(pipes=program.pipes, **program_job)
                passed, reason = tests.report() or (False, "the tests ended early")
        except TimeoutError as error:
            return Result(False, str(error), late=True)
    printable = "".join(c if c.isprintable() else "?" for c in reason)
    return Result(passed, printable)


def run(
    program: str, tests: str, names: list[str], question: str = "", limits: Limits = Limits()
) -> Result:
    """Run a program (Python, standard library only) against its tests. Any thread may call it.

    names: the functions that the tests call and the program defines. question: code whose functions
    the tests may call too. Refused if nothing contains the program.
    """
    way = holding(limits)
    program_job = {"program": program, "names": names}
    tests_job = {"question": question, "tests": tests, "names": names}
    for patience in PATIENCE:
        try:
            return execute(way, program_job, tests_job, limits, patience)
        except OSError as error:  # the machine is busy, or short of processes or files
            failed = error
    raise Refused(f"programs could be contained before ({way}), and no longer can: {failed}")
