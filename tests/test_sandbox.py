"""sandbox.py: programs that try to get out, each by another way; and that nothing runs where nothing holds them."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks import sandbox
from benchmarks.sandbox import ENVIRONMENT, Limits, Refused, command, execute, probe, run

SMALL = Limits(seconds=5, memory_mb=256, processes=6, file_mb=8)
WAYS = [way for way in ("bubblewrap", "root", "user") if sys.platform == "linux" and (way != "root" or os.geteuid() == 0)]


@pytest.fixture(params=WAYS, scope="module")
def inside(request):
    """inside(program) runs it by one of the ways; skipped where that way cannot be had. One that is had and leaks is a bug."""
    if failed := probe(request.param, SMALL):
        assert "a program could" not in failed, failed
        pytest.skip(f"{request.param} is not to be had here: {failed}")
    return lambda program, limits=SMALL: execute(request.param, program, limits)[1]


def test_what_ran_to_its_end_passed_and_nothing_else_did(inside):
    # Caught: trusting the exit status, so that a program passes by leaving before the tests.
    assert inside("import math, random, json\nassert math.comb(4, 2) == 6").passed
    assert inside("assert 1 == 2, 'one is not two'").reason == "AssertionError: one is not two"
    for leaving in ("import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit", "while True print(1)",
                    "import os; os.kill(os.getpid(), 9)", "\0", "import numpy"):
        result = inside(leaving)
        assert not result.passed and result.reason, leaving
    assert not inside("import os; os.ftruncate(1, 0); os._exit(0)").passed  # hides even that it was begun


def test_files_outside_are_out_of_reach(inside, tmp_path):
    # Caught: a bind that is not read-only, a root that is the machine's, /proc or /dev given, an environment handed down.
    (tmp_path / "mine").write_text("unchanged")
    os.environ["A_SECRET"] = "not to be read"
    result = inside(f"""
import os
for path in ({str(tmp_path / 'mine')!r}, "/etc/passwd", "/proc/self/environ", "/dev/mem", {__file__!r}, "/home", "/var"):
    assert not os.path.exists(path), path
assert "A_SECRET" not in os.environ
for directory in ("/usr", "/usr/bin", "/lib", {sys.base_prefix!r}, os.path.dirname(os.__file__), "/tmp/../usr/lib"):
    assert os.statvfs(directory).f_flag & os.ST_RDONLY, directory  # even where its owner runs the program
    try:
        open(directory + "/written", "w")
    except OSError:
        continue
    raise SystemExit("wrote into " + directory)
os.makedirs({str(tmp_path)!r}, exist_ok=True)
open({str(tmp_path / 'mine')!r}, "w").write("changed")
""")
    assert (tmp_path / "mine").read_text() == "unchanged" and list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert result.passed or any(word in result.reason for word in ("Permission", "Read-only", "No such file")), result.reason
    assert not any(Path(d, "written").exists() for d in ("/usr", "/usr/bin", "/lib", sys.base_prefix))
    assert inside("import os; assert os.listdir('.') == [], 'files of an earlier program'").passed


def test_a_fork_bomb_ends_at_the_limit_and_with_its_time(inside):
    # Caught: no limit on processes; as root, no user of its own (root is exempt); killing the first process alone.
    start = time.monotonic()
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError as e:\n        last = e\n"
    assert "not done" in inside(bomb, Limits(seconds=1, processes=6)).reason
    assert time.monotonic() - start < 4
    counted = inside("""
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
    assert not processes("time.sleep(60)")


def processes(word: str) -> list[str]:
    """The processes of this machine whose command or input begins with what a program of ours runs as."""
    time.sleep(0.1)
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            line = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if line[-5:-1] == [b"-s", b"-S", b"-B", b"-"]:
            found.append(" ".join(map(bytes.decode, line)))
    return found


def test_memory_files_and_output_are_bounded(inside):
    # Caught: a limit left out; output held in a pipe's buffer, which has no bound.
    assert inside("x = bytearray(512 << 20)").reason == "MemoryError"
    assert inside("x = bytearray(100 << 20)").passed
    assert "OSError" in inside("with open('f', 'wb') as f: f.write(bytes(9 << 20))").reason
    full = inside("for i in range(9):\n    with open(str(i), 'wb') as f: f.write(bytes(2 << 20))")
    assert "No space left" in full.reason
    flood = inside("while True: print('x' * 100_000)")
    assert not flood.passed and len(flood.output) <= 65536


def test_time_is_bounded(inside):
    for waiting in ("import time; time.sleep(100)", "while True: pass",
                    "import os, signal\nos.setsid() if os.getpid() != os.getpgid(0) else 0\n"
                    "for s in (1, 2, 3, 13, 14, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"):
        start = time.monotonic()
        assert inside(waiting, Limits(seconds=0.5)).reason == "not done in 0.5 s"
        assert time.monotonic() - start < 3


def test_there_is_no_network_and_no_other_process(inside):
    # Caught: --net or --pid left out.
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
        assert "Error" in inside(reach).reason
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    with socket.socket(socket.AF_UNIX) as abstract:  # names in no file belong to the network too
        abstract.bind("\0grpo-ladder-test")
        abstract.listen()
        assert "Refused" in inside("import socket; socket.socket(socket.AF_UNIX).connect('\\0grpo-ladder-test')").reason
    assert "Error" in inside(f"import os; os.kill({os.getpid()}, 0)").reason
    assert "Error" in inside("import os; os.setuid(0); os.chroot('/tmp')").reason  # no capability is left


def test_a_program_ends_when_this_process_is_killed(inside):
    # Caught: a program left behind by a killed evaluation, which sleeps and so uses no time of the processor.
    way = next(w for w in WAYS if not probe(w, SMALL))
    limits = Limits(seconds=1)
    starter = (f"from benchmarks import sandbox; sandbox.execute({way!r}, 'import time; time.sleep(100)', sandbox.Limits(seconds=1))\n")
    parent = subprocess.Popen([sys.executable, "-c", starter], cwd=Path(__file__).parent.parent)
    while not processes(""):
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + limits.seconds + 4
    while processes("") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes("")


def test_many_threads_may_run_programs(inside):
    # Caught: one user for all programs, so that they take each other's processes.
    results = []
    program = "import threading, time\nfor _ in range(2): threading.Thread(target=time.sleep, args=(0.2,)).start()"
    threads = [threading.Thread(target=lambda: results.append(inside(program))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.passed for r in results] == [True] * 4, results


def test_without_isolation_nothing_is_run(monkeypatch, tmp_path):
    # Caught: falling back on limits alone; accepting a way without trying it.
    sandbox.holding.cache_clear()
    ran = tmp_path / "ran"

    def open_way(way, limits):  # starts the interpreter as it is: everything is possible there
        return [sys.executable, "-s", "-S", "-B", "-"]

    monkeypatch.setattr(sandbox, "command", open_way)
    with pytest.raises(Refused, match=r"nothing here contains them: .*(read|change) a file outside"):
        run(f"open({str(ran)!r}, 'w')")
    monkeypatch.setattr(sandbox, "command", lambda way, limits: ["false"])
    with pytest.raises(Refused, match="Install bubblewrap, allow user namespaces"):
        run(f"open({str(ran)!r}, 'w')")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Refused, match="namespaces of Linux, and this is darwin"):
        run(f"open({str(ran)!r}, 'w')")
    assert not ran.exists()
    sandbox.holding.cache_clear()


def test_the_command_names_every_limit():
    words = " ".join(command("user", SMALL))
    assert all(x in words for x in ("--as=268435456", "--nproc=6", "--fsize=8388608", "--cpu=6", "--net", "--pid", "--user"))
    assert "PYTHONHASHSEED" in ENVIRONMENT  # sets come in one order: the same program gives the same verdict
