"""sandbox.py: programs that try to get out; and that nothing runs where nothing holds them."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import indent

import pytest

from benchmarks import sandbox
from benchmarks.sandbox import Limits, Refused, execute, holding, probe, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces of Linux")
ROOT = Path(__file__).parent.parent
SMALL = Limits(seconds=20, memory_mb=256, processes=6, file_mb=8)


def skip_or_fail(way: str) -> None:
    """Skip a way that the machine does not allow. A way that it allows and that leaks is a bug."""
    if way == "root" and os.geteuid() != 0:
        pytest.skip("way root: this is not root")
    if failed := probe(way, SMALL):
        assert "a program could" not in failed, failed
        pytest.skip(f"way {way}: {failed}")


@pytest.fixture(params=["root", "user"], scope="module")
def way(request):
    skip_or_fail(request.param)
    return request.param


@pytest.fixture(scope="module")
def attack(way):
    """attack(body) runs lines in a function of a program. It passed: they ran to their end."""

    def run_body(body: str, limits: Limits = SMALL) -> sandbox.Result:
        program = f"def attack():\n{indent(body, '    ')}\n    return 'done'"
        tests = {"question": "", "tests": "assert attack() == 'done'", "names": ["attack"]}
        return execute(way, {"program": program, "names": ["attack"]}, tests, limits)

    return run_body


# ---- Getting out --------------------------------------------------------------------------------


def test_what_ran_to_its_end_passed_and_nothing_else_did(attack):
    assert attack("import math, random, json\nassert math.comb(4, 2) == 6").passed
    assert attack("assert 1 == 2, 'one is not two'").reason == "AssertionError: one is not two"
    for leaving in (
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "while True print(1)",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.kill(-1, 9)",
        "import os; os.closerange(0, 64)",
        "\0",
        "'\ud800'",
        "import numpy",
    ):
        result = attack(leaving)
        assert not result.passed and not result.late and result.reason, leaving


def test_files_outside_are_out_of_reach(attack, tmp_path):
    # Caught: a bind that is not read-only, a root that is the machine's, /proc or /dev given, an
    # environment handed down, a file of an earlier program, open files of this process.
    mine = tmp_path / "mine"
    mine.write_text("unchanged")
    os.environ["A_SECRET"] = "not to be read"
    result = attack(f"""
import os
def is_open(descriptor):
    try:
        return bool(os.fstat(descriptor))
    except OSError:
        return False
for path in ({str(mine)!r}, "/etc/passwd", "/proc/self", "/dev/mem", {__file__!r}, "/home", "/var"):
    assert not os.path.exists(path), path
assert "A_SECRET" not in os.environ
for directory in ("/usr", "/usr/bin", "/lib", {sys.base_prefix!r}, os.path.dirname(os.__file__)):
    assert os.statvfs(directory).f_flag & os.ST_RDONLY, directory
    try:
        open(directory + "/written", "w")
    except OSError:
        continue
    raise SystemExit("wrote into " + directory)
assert os.listdir('.') == [], 'files of an earlier program'
for descriptor in (1, 2):
    assert os.fstat(descriptor).st_dev == os.stat('/tmp').st_dev
kept = [d for d in range(3, 64) if is_open(d)]
assert len(kept) <= 3, kept  # two pipes, and what is printed
open('file', 'w').write('a program may write here')
""")
    assert result.passed, result.reason
    for directory in ("/usr", "/usr/bin", "/lib", sys.base_prefix):
        assert not Path(directory, "written").exists()
    assert mine.read_text() == "unchanged"
    assert attack("import os\nassert os.listdir('.') == []").passed


def test_memory_and_files_are_bounded(attack):
    # Caught: a limit left out; a million empty files, which no limit on sizes counts.
    assert attack("x = bytearray(512 << 20)").reason.startswith("MemoryError")
    assert attack("x = bytearray(100 << 20)").passed
    large = attack("with open('f', 'wb') as f: f.write(bytes(9 << 20))")
    assert "File too large" in large.reason
    many = "for i in range(9):\n    with open(str(i), 'wb') as f: f.write(bytes(2 << 20))"
    assert "No space left" in attack(many).reason
    assert "No space left" in attack("for i in range(2000): open(str(i), 'w').close()").reason
    assert not attack("import os\nwhile True: os.write(1, bytes(1 << 20))").passed


@pytest.mark.parametrize(
    "call",
    [
        "shmget(0, 4096, 0o1600)",
        "semget(0, 1, 0o1600)",
        "msgget(0, 0o1600)",
        "mq_open(b'/queue', 0o102, 0o600, None)",
        "memfd_create(b'memory', 0)",
        "ptrace(0, 0, 0, 0)",
        "process_vm_readv(1, None, 0, None, 0, 0)",
        "process_vm_writev(1, None, 0, None, 0, 0)",
        "unshare(0x10000000)",
        "setns(0, 0)",
    ],
)
def test_the_kernel_refuses_what_no_limit_counts(attack, call):
    # Caught: the filter left out, or a wrong number in it: a process of 256 MB then had 3 GB.
    result = attack(f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.{call} == -1
assert ctypes.get_errno() == 1, ctypes.get_errno()
""")
    assert result.passed, result.reason


def test_the_kernel_refuses_what_has_no_function_in_the_c_library(attack):
    # The numbers of x86-64 and arm64, written down apart from those of inside.py.
    numbers = {
        "x86_64": [248, 249, 250, 298, 321, 323, 425, 438, 447],
        "aarch64": [217, 218, 219, 241, 280, 282, 425, 438, 447],
    }
    clone_into_user_namespace = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    result = attack(f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number in {numbers[os.uname().machine]}:
    assert libc.syscall(number, 0, 0, 0, 0, 0) == -1
    assert ctypes.get_errno() == 1, (number, ctypes.get_errno())
assert libc.syscall({clone_into_user_namespace}, 0x10000011, 0, 0, 0, 0) == -1
assert ctypes.get_errno() == 1, ctypes.get_errno()
""")
    assert result.passed, result.reason


def test_threads_and_loops_work_under_the_filter(attack):
    # Caught: clone refused as a whole, or the pairs of sockets of asyncio.
    thread = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    assert attack(thread).passed
    assert attack("import asyncio\nasyncio.run(asyncio.sleep(0))").passed


def test_time_is_bounded(attack):
    for waiting in (
        "import time; time.sleep(1000)",
        "while True: pass",
        "import os, signal\nfor s in (1, 2, 3, 13, 14, 15, 24): signal.signal(s, signal.SIG_IGN)\n"
        "os.setsid()\nwhile True: pass",
    ):
        result = attack(waiting, Limits(seconds=0.5))
        assert (result.passed, result.late, result.reason) == (False, True, "not done in 0.5 s")


@pytest.fixture
def token(monkeypatch) -> str:
    """A word in the command of every process of this test's sandboxes."""
    word = f"token-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setattr(sandbox, "SOURCE", f"{sandbox.SOURCE}\n# {word}\n")
    return word


def count_processes(token: str) -> int:
    count = 0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            count += token.encode() in (directory / "cmdline").read_bytes()
        except OSError:
            pass  # it has just ended
    return count


def all_end(token: str) -> bool:
    """Whether no process is left, once the kernel has had time to end them."""
    for _ in range(600):
        if not count_processes(token):
            return True
        time.sleep(0.1)
    return False


def test_a_fork_bomb_ends_at_the_limit_and_with_its_time(attack, token):
    # Caught: no limit on processes; as root, no user of its own, since root is exempt; killing the
    # first process alone.
    bomb = """
import os
while True:
    try:
        os.fork()
    except OSError as error:
        last = error
"""
    assert attack(bomb, Limits(seconds=1, processes=6)).late
    counted = attack("""
import os, time
n = 0
try:
    while n < 100:
        if not os.fork():
            time.sleep(60)
        n += 1
except OSError:
    pass
assert n < 6, n
""")
    assert counted.passed, counted.reason
    assert all_end(token)


def test_there_is_no_network_and_no_other_process(attack):
    # Caught: --net or --pid left out; a family of sockets that has no namespace.
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = ("127.0.0.1", server.getsockname()[1])
        result = attack(f"import socket; socket.create_connection({address}, 1)")
        assert not result.passed and "Error" in result.reason
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    with socket.socket(socket.AF_UNIX) as abstract:  # a name in no file belongs to the network
        name = f"\0grpo-ladder-test-{os.getpid()}"
        abstract.bind(name)
        abstract.listen()
        reach = f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})"
        assert "refused" in attack(reach).reason
    assert attack("import os\nassert (os.getsid(0), os.getppid()) == (0, 1)").passed
    assert "Error" in attack("import socket; socket.socket(socket.AF_VSOCK)").reason
    assert "Error" in attack("import os; os.setuid(1)").reason  # no capability is left
    assert "Error" in attack("import os; os.chroot('/tmp')").reason


def test_a_program_ends_when_this_process_is_killed(way, token):
    # Caught: a program left behind by a killed evaluation, asleep, which no limit on time ends.
    starter = f"""
from benchmarks import sandbox
sandbox.SOURCE += "# {token}"
tests = {{"question": "", "tests": "f()", "names": ["f"]}}
code = "import os, time\\ndef f():\\n    os.fork()\\n    os.fork()\\n    time.sleep(200)"
program = {{"program": code, "names": ["f"]}}
sandbox.execute({way!r}, program, tests, sandbox.Limits(seconds=1000))
"""
    parent = subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT)
    # The starter, two of unshare, sh and Python, and three that the program has started: it runs.
    while count_processes(token) < 10:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert all_end(token)


def test_many_threads_may_run_programs(attack):
    # Caught: one user for all programs, so that they take each other's processes; pipes inherited
    # by another thread's sandbox, which then keeps them open.
    results = []
    body = """
import threading, time
for _ in range(2):
    threading.Thread(target=time.sleep, args=(0.2,)).start()
"""
    threads = [threading.Thread(target=lambda: results.append(attack(body))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.passed for r in results] == [True] * 4, results


def test_every_namespace_is_left():
    # Caught: --ipc left out, which the filter hides from the probe.
    for way_, user in (("root", False), ("user", True)):
        words = sandbox.command(way_, SMALL)
        assert {"--net", "--pid", "--ipc", "--uts", "--mount", "--kill-child"} <= set(words)
        assert ("--user" in words) is user


def test_sandboxes_have_users_that_nobody_has(monkeypatch):
    # Caught: the id of a person; one id for all; an id that a container does not map.
    users = {sandbox.spare_user() for _ in range(20)}
    assert len(users) > 10
    assert all(0x70000000 <= u < 0x7FFE0000 or 60_578 <= u < 61_184 for u in users)
    monkeypatch.setattr(Path, "read_text", lambda path: "0 100000 65536\n")
    assert all(60_578 <= sandbox.spare_user() < 61_184 for _ in range(20))


# ---- Nothing runs where nothing holds it --------------------------------------------------------


@pytest.fixture
def forget():
    """The way that holds is found anew, in this test and after it."""
    holding.cache_clear()
    yield
    holding.cache_clear()


def leave_out(monkeypatch, *words: str) -> None:
    """Start sandboxes without these words of the command."""
    whole = sandbox.command

    def shortened(way: str, limits: Limits) -> list[str]:
        return [word for word in whole(way, limits) if word not in words]

    monkeypatch.setattr(sandbox, "command", shortened)


def test_without_isolation_nothing_is_run(monkeypatch, tmp_path, forget):
    # Caught: falling back on limits alone; accepting a way without trying it.
    ran = tmp_path / "ran"
    program = f"open({str(ran)!r}, 'w')\ndef f(): pass"
    for words, message in [
        (["false"], "ended without a message.*Allow user namespaces"),
        (["/no/such/command"], "nothing here contains them: .*No such file"),
    ]:
        monkeypatch.setattr(sandbox, "command", lambda way, limits, words=words: words)
        with pytest.raises(Refused, match=message):
            run(program, "f()", ["f"])
    monkeypatch.setattr(sandbox, "probe", lambda way, limits: "a program could read a file outside")
    with pytest.raises(Refused, match="a program could read a file outside"):
        run(program, "f()", ["f"])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Refused, match="namespaces of Linux, and this is darwin"):
        run(program, "f()", ["f"])
    assert not ran.exists()


@pytest.mark.parametrize(
    "word, leak",
    [
        ("--net", "connect to this machine, send to the network"),
        ("--pid", "see a process outside"),
        ("--bounding-set=-all", "change its root directory"),
    ],
)
def test_the_probe_finds_what_the_command_lacks(way, monkeypatch, word, leak):
    # Caught: an attempt of the probe that fails whatever the sandbox does.
    if word.startswith("--bounding") and way == "root":
        pytest.skip("as root, the change of user drops the capabilities too")
    leave_out(monkeypatch, word)
    assert leak in probe(way, SMALL)


def test_the_probe_finds_files_that_are_not_hidden(way, monkeypatch):
    # Caught: a probe that reads and writes nothing outside, or does not look at it afterwards.
    shared = sandbox.SETUP.replace("mkdir -m 1777 tmp\n", "mkdir tmp\nmount --bind /tmp tmp\n")
    monkeypatch.setattr(sandbox, "SETUP", shared)
    attempts = sandbox.SOURCE.replace("write_files, 2000", "write_files, 0")
    monkeypatch.setattr(sandbox, "SOURCE", attempts.replace('"large"', '"/dev/full"'))
    found = probe(way, SMALL)
    Path("/tmp/allowed").unlink()
    assert "read a file outside" in found and "change a file outside" in found


def test_the_probe_finds_what_the_limits_prevent(way, monkeypatch):
    without = sandbox.SOURCE.replace("    set_limits(*limits)\n", "")
    monkeypatch.setattr(sandbox, "SOURCE", without)
    found = probe(way, SMALL)
    assert "allocate more memory" in found and "start more processes" in found


def test_the_probe_finds_what_the_filter_prevents(way, monkeypatch):
    without = sandbox.SOURCE.replace("    deny_system_calls()\n", "")
    monkeypatch.setattr(sandbox, "SOURCE", without)
    found = probe(way, SMALL)
    assert "make a file in memory" in found and "make System V shared memory" in found
    assert "read the session keyring" in found


def test_a_late_probe_is_tried_again(way, monkeypatch, forget):
    # Caught: an evaluation that ends because the machine was busy for a moment.
    honest, calls = sandbox.command, []

    def late_once(way, limits):
        calls.append(way)
        return ["sh", "-c", "sleep 1000"] if len(calls) in (1, 3) else honest(way, limits)

    monkeypatch.setattr(sandbox, "command", late_once)
    monkeypatch.setattr(sandbox, "PATIENCE", (0.1, 120, 120))
    assert probe(way, SMALL) == "" and len(calls) == 2
    monkeypatch.setattr(sandbox, "holding", lambda limits: way)
    assert run("def f(): return 1", "assert f() == 1", ["f"]).passed  # its first sandbox was late
    assert len(calls) == 6
    monkeypatch.setattr(sandbox, "command", lambda way, limits: ["false"])
    with pytest.raises(Refused, match="could be contained before"):
        run("def f(): return 1", "assert f() == 1", ["f"])
