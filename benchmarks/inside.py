"""What runs inside a sandbox: sandbox.py hands the source of this file to a bare interpreter there.

    python -s -S -B -c SOURCE role seconds memory_mb processes file_mb

The interpreter limits itself, says that it is ready, reads its job (JSON) and plays one role:

    program   loads a program that nobody has read, and answers calls of its functions
    tests     runs the tests of a question, whose calls go to the program
    probe     tries to break out, and reports what it could do

A program and its tests run in two sandboxes, joined by two pipes. The program cannot reach the
tests, the values that they expect, or the pipe that reports the verdict. It can only answer calls.
Calls and answers are values of built-in types (`encode`): an object of the program, such as one
that equals everything, never takes part in a comparison.
"""

import builtins
import ctypes
import errno
import json
import os
import platform
import resource
import signal
import socket
import struct
import sys
import time
import types
from pathlib import Path

MAX_MESSAGE = 4 << 20  # bytes of one call or answer


# ---- Limits -----------------------------------------------------------------------------------


def set_limits(seconds: float, memory_mb: int, processes: int, file_mb: int) -> None:
    """Limit this process and all that it starts. Raising a hard limit needs a capability."""
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_FSIZE: file_mb << 20,
        resource.RLIMIT_CPU: int(seconds) + 10,  # the clock of sandbox.py comes first
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


# System calls that no benchmark needs, with their numbers on x86-64 and on arm64. Each of them
# reaches memory that no limit counts, another process, the user's keys, or a part of the kernel
# with a history of holes.
DENIED = {
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
}
CLONE = (56, 220)
CLONE3 = (435, 435)
SOCKET = (41, 198)
MACHINES = ("x86_64", "aarch64")
AUDIT_ARCH = (0xC000003E, 0xC00000B7)  # linux/audit.h
NEW_NAMESPACE = 0x7E020000  # every CLONE_NEW* flag of clone
SOCKET_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
AF_VSOCK = 40  # not one of them: it reaches the host of a virtual machine, and has no namespace

# A seccomp filter is a list of instructions (code, jump if true, jump if false, operand), see
# linux/filter.h. REFUSE + errno makes a system call fail with that error.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NUMBER, ARCH, ARGUMENT = 0, 4, 16  # byte offsets in struct seccomp_data


def make_filter(machine: str) -> bytes:
    """The filter as the kernel reads it. OSError for a machine whose system calls are not listed.

    Each rule compares what was loaded last, and jumps over the lines that belong to it if it fails.
    """
    if machine not in MACHINES:
        known = " and ".join(MACHINES)
        raise OSError(f"the system calls of {machine} are not listed in inside.py; {known} are")
    m = MACHINES.index(machine)
    rules = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, AUDIT_ARCH[m]),
        (RETURN, 0, 0, REFUSE + errno.EPERM),  # calls of 32-bit programs have other numbers
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, 0x40000000),
        (RETURN, 0, 0, REFUSE + errno.EPERM),  # so have those of the x32 ABI
        (EQUAL, 0, 1, CLONE3[m]),
        (RETURN, 0, 0, REFUSE + errno.ENOSYS),  # then the C library calls clone
    ]
    for numbers in DENIED.values():
        rules += [(EQUAL, 0, 1, numbers[m]), (RETURN, 0, 0, REFUSE + errno.EPERM)]
    rules += [
        (EQUAL, 0, 4, CLONE[m]),
        (LOAD, 0, 0, ARGUMENT),
        (ANY_BIT, 0, 1, NEW_NAMESPACE),
        (RETURN, 0, 0, REFUSE + errno.EPERM),
        (RETURN, 0, 0, ALLOW),
        (EQUAL, 0, 2 + 2 * len(SOCKET_FAMILIES), SOCKET[m]),
        (LOAD, 0, 0, ARGUMENT),
    ]
    for family in SOCKET_FAMILIES:
        rules += [(EQUAL, 0, 1, family), (RETURN, 0, 0, ALLOW)]
    rules += [(RETURN, 0, 0, REFUSE + errno.EPERM), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)


def deny_system_calls() -> None:
    """Install the filter in this process. All that it starts inherit it, and nothing removes it."""
    code = make_filter(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    call_c("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call_c("prctl", 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def call_c(name: str, *arguments: int | bytes) -> int:
    """Call a function of the C library by its name. OSError if it returns -1."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    result = function(*(ctypes.c_long(x) if isinstance(x, int) else x for x in arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


# ---- Values between the two processes ---------------------------------------------------------


def encode(value):
    """A value of built-in types as JSON. A subclass is sent as its base. TypeError for the rest.

    (1, {2.5, "a"})  ->  ["tuple", ["int", "0x1"], ["set", 2.5, "a"]]
    """
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return ["int", hex(value)]  # in decimal, Python refuses to read more than 4,300 digits
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, dict):
        return ["dict", *map(encode, value.items())]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *map(encode, value)]
    raise TypeError(f"{type(value).__name__} is not a built-in type of values")


def decode(node):
    """The value that was encoded, of exactly built-in types. ValueError or TypeError if broken."""
    if node is None or type(node) in (bool, float, str):
        return node
    match node:
        case ["int", str(digits)]:
            return int(digits, 16)
        case ["complex", float(real), float(imaginary)]:
            return complex(real, imaginary)
        case ["bytes", str(digits)]:
            return bytes.fromhex(digits)
        case ["dict", *pairs]:
            return dict(map(decode, pairs))
        case ["list" | "tuple" | "set" | "frozenset" as kind, *items]:
            return getattr(builtins, kind)(map(decode, items))
    raise ValueError(f"{str(node)[:80]} is not an encoded value")


def send(pipe, message: list) -> None:
    """Write one line. TypeError, before anything is written, if the message cannot be encoded."""
    line = json.dumps(encode(message)).encode() + b"\n"
    pipe.write(line)
    pipe.flush()


def receive(pipe) -> list:
    """Read one line. EOFError if there is none; ValueError or TypeError if it is no message."""
    line = pipe.readline(MAX_MESSAGE)
    if not line:
        raise EOFError("the other side has ended")
    if not line.endswith(b"\n"):
        raise ValueError(f"a message of more than {MAX_MESSAGE >> 20} MB, or half of one")
    return decode(json.loads(line))


# Exceptions that a program may raise in the tests; another one is raised as its first base in this
# list. StopIteration is not in it: in `all(map(candidate, cases))` it would end the loop as if
# every case had been tried. Nor is SystemExit, nor UnicodeDecodeError, which takes no text.
EXCEPTIONS = """
    ArithmeticError AssertionError AttributeError BufferError EOFError Exception FloatingPointError
    ImportError IndexError KeyError LookupError MemoryError ModuleNotFoundError NameError
    NotImplementedError OSError OverflowError RecursionError ReferenceError RuntimeError SyntaxError
    TypeError UnboundLocalError UnicodeError ValueError ZeroDivisionError
""".split()


def make_exception(bases: list[str], text: str) -> Exception:
    """bases: the names of the exception's classes, most derived first."""
    allowed = [name for name in bases if name in EXCEPTIONS]
    name = allowed[0] if allowed else "RuntimeError"
    return getattr(builtins, name)(text)


def describe(error: BaseException) -> str:
    """One line of at most 200 characters: KeyError: 'a'."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text.removesuffix(":")[:200]


# ---- The program ------------------------------------------------------------------------------


def serve_program(program: str, names: list[str], requests, answers) -> None:
    """Load the program, then answer calls of its functions until no more come."""
    output = os.open("output", os.O_WRONLY | os.O_CREAT)  # what it prints stays in the sandbox
    os.unlink("output")
    os.dup2(output, 1)
    os.dup2(output, 2)
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses look there
    try:
        exec(compile(program, "program", "exec"), vars(module))
    except BaseException as error:  # SystemExit too
        return send(answers, ["failed", describe(error)])
    for name in names:
        if not callable(getattr(module, name, None)):
            return send(answers, ["failed", f"the program defines no function {name}"])
    send(answers, ["returned", None])
    while True:
        try:
            name, arguments, keywords = receive(requests)
        except EOFError:
            return
        try:
            result = getattr(module, name)(*arguments, **keywords)
        except BaseException as error:
            bases = [base.__name__ for base in type(error).__mro__]
            text = error.args[0] if len(error.args) == 1 else error
            send(answers, ["raised", bases, str(text)])
            continue
        try:
            send(answers, ["returned", result])
        except (TypeError, RecursionError) as error:
            send(answers, ["failed", f"{name} returned no plain value: {describe(error)}"])


# ---- The tests --------------------------------------------------------------------------------


class Caller:
    """The tests' side of the pipes: its functions stand for those of the program."""

    def __init__(self, requests, answers, report):
        self.requests = requests
        self.answers = answers
        self.report = report
        self.calls = 0

    def finish(self, passed: bool, reason: str) -> None:
        """Report the verdict and end at once: tests that catch every exception cannot go on."""
        try:
            send(self.report, [passed, reason])
        finally:
            os._exit(0)

    def read_answer(self):
        """The value that the program returned, or the exception that it raised."""
        match receive(self.answers):
            case ["returned", value]:
                return value
            case ["raised", list(bases), str(text)]:
                return make_exception(bases, text)
            case ["failed", str(reason)]:
                self.finish(False, reason)
        raise ValueError("not an answer")

    def exchange(self, request: list | None):
        """What the program answers. Whatever breaks the protocol ends the tests."""
        try:
            if request:
                send(self.requests, request)
            return self.read_answer()
        except Exception as error:
            self.finish(False, f"the program does not answer: {describe(error)}")

    def stand_in(self, name: str):
        """A function that calls the program's function of this name."""

        def function(*arguments, **keywords):
            request = [name, list(arguments), keywords]
            encode(request)  # a TypeError here is one of the tests, not of the program
            self.calls += 1
            answer = self.exchange(request)
            if isinstance(answer, Exception):
                raise answer
            return answer

        function.__name__ = name
        return function


def run_tests(question: str, tests: str, names: list[str], caller: Caller) -> None:
    """Run the tests and report [passed, reason].

    question: code of the question, whose helper functions the tests may call. A helper that the
    program defines anew is of no effect here.
    """
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    try:
        exec(compile(question, "question", "exec"), vars(module))
        for name in names:
            setattr(module, name, caller.stand_in(name))
        code = compile(tests, "tests", "exec")
        caller.exchange(None)  # the program is loaded
        exec(code, vars(module))
    except BaseException as error:
        caller.finish(False, describe(error))
    if not caller.calls:
        caller.finish(False, f"the tests call none of {names}")
    caller.finish(True, "")


# ---- The probe --------------------------------------------------------------------------------


def list_leaks(limits: list, outside: str, port: int) -> list[str]:
    """What this process can do and should not.

    limits: the arguments of `set_limits`. outside: a file, port: an open TCP port of the machine.
    """
    _, memory_mb, processes, file_mb = limits
    allowed = Path("allowed")
    allowed.write_text("a program may write into its current directory")
    large = bytes((file_mb << 20) + 1)
    machine = MACHINES.index(platform.machine())
    keyctl = DENIED["keyctl"][machine]
    memfd_create = DENIED["memfd_create"][machine]  # not in every Python's os
    attempts = [  # what, and the function to call with its arguments
        ("read a file outside", Path.read_text, Path(outside)),
        ("change a file outside", Path.write_text, Path(outside), "changed"),
        ("write into /usr", Path.touch, Path("/usr/grpo-ladder-probe")),
        ("see a process outside", see_session_leader),
        ("trace process 1", call_c, "ptrace", 0x4206, 1, 0, 0),  # PTRACE_SEIZE
        ("become another user", os.setuid, 1),
        ("change its root directory", os.chroot, "/"),
        ("make a user namespace", call_c, "unshare", 0x10000000),  # CLONE_NEWUSER
        ("connect to this machine", socket.create_connection, ("127.0.0.1", port), 1),
        ("send to the network", send_datagram, "192.0.2.1"),
        ("reach the host of a virtual machine", socket.socket, AF_VSOCK),
        ("read the session keyring", call_c, "syscall", keyctl, 0, -3, 0),  # GET_KEYRING_ID
        ("make System V shared memory", call_c, "shmget", 0, 4096, 0o1600),
        ("make a file in memory", call_c, "syscall", memfd_create, b"memory", 0),
        ("start more processes", start_processes, processes + 1),
        ("write a larger file", Path.write_bytes, Path("large"), large),
        ("write many small files", write_files, 2000),
        ("allocate more memory", bytearray, (memory_mb << 20) + 1),
    ]
    leaks = []
    for what, function, *arguments in attempts:
        try:
            function(*arguments)
            leaks.append(what)
        except (OSError, MemoryError):
            pass  # as it should be
    return leaks


def see_session_leader() -> None:
    """The leader of this session is outside. The kernel calls it 0 where it cannot be seen."""
    if os.getsid(0) == 0:
        raise ProcessLookupError("the leader of the session cannot be seen")


def send_datagram(host: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((host, 9))


def write_files(count: int) -> None:
    for i in range(count):
        Path(f"small-{i}").touch()


def start_processes(count: int) -> None:
    """OSError if the kernel refuses one of them. They are ended in any case."""
    children = []
    try:
        for _ in range(count):
            child = os.fork()
            if not child:
                time.sleep(1000)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


# ---- The start --------------------------------------------------------------------------------


def main() -> None:
    role, *numbers = sys.argv[1:]
    limits = [float(numbers[0]), *map(int, numbers[1:])]
    set_limits(*limits)
    deny_system_calls()
    os.chdir("/tmp")
    report = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed goes where errors go
    report.write(b"ready\n")
    report.flush()
    job = json.load(sys.stdin)
    if role == "probe":
        return send(report, list_leaks(limits, **job))
    inward, outward = job.pop("pipes")
    with os.fdopen(inward, "rb") as reader, os.fdopen(outward, "wb") as writer:
        if role == "tests":
            run_tests(**job, caller=Caller(writer, reader, report))
        else:
            report.close()  # the report is not the program's
            serve_program(**job, requests=reader, answers=writer)


if __name__ == "__main__":
    main()
