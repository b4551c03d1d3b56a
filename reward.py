"""Decide whether a model's final answer equals the reference: the reward of reinforcement learning on mathematics.

    extract (where is the answer) -> parse (what does it say) -> compare (is it the truth) -> 1.0 or 0.0

First version: the public face, exact numbers and identical strings. Algebra follows behind the same face.
"""
import argparse
import json
import queue
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from fractions import Fraction

BOX = re.compile(r"\\+(?:boxed|fbox)\s*(\{)|\\.|[{}]", re.S)
HASHES = re.compile(r"####[ \t]*([^\n]+)")
PROSE = re.compile(r"(?:final answer\s*:|answer\s+is:?|final answer\s+is:?|\banswer\s*:)[ \t]*([^\n]+)", re.I)
NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one answer: `score` 1.0 or 0.0; `verdict` one of right, wrong, no_answer, unparsed, too_large,
    timeout, crashed; `answer` the extracted text or None; `rule` the rule that decided, for people."""
    score: float
    verdict: str
    answer: str | None
    rule: str


def extract(text: str) -> str | None:
    r"""The final answer in `text`: the last balanced \boxed{...} or \fbox{...} after the last </think>, else `#### x`,
    else the last "answer is ..."; None when there is none or the box is empty. Linear in the text's length."""
    text = text[text.rfind("</think>") + 8:] if "</think>" in text else text
    stack, last, seen = [], None, False
    for match in BOX.finditer(text):
        if match[1] or match[0] == "{":
            stack.append(match.end() if match[1] else -1)
            seen = seen or bool(match[1])
        elif match[0] == "}" and stack and (start := stack.pop()) >= 0:
            last = text[start:match.start()]
    if last is None and not seen:
        last = next((found[-1] for pattern in (HASHES, PROSE) if (found := pattern.findall(text))), None)
    return last.strip() or None if last is not None else None


def plain(text: str) -> str:
    """`text` without dollar signs, spaces and a closing period: enough to see that two answers are the same string."""
    return re.sub(r"\s+|\$", "", text).rstrip(".")


def number(text: str) -> Fraction | None:
    """The value of a short plain integer or decimal, else None."""
    if len(text) > 30 or not (match := NUMBER.fullmatch(text)) or not (match[2] or match[3]):
        return None
    whole, part = (match[2] or "0").replace(",", ""), match[3] or ""
    return Fraction(int(match[1] + whole + part), 10 ** len(part))


def quick(answer: str | None, truth: str) -> Verdict | None:
    """The verdict when it needs no algebra (no answer; the same string; two short numbers), else None. Microseconds."""
    if answer is None:
        return Verdict(0.0, "no_answer", None, "no final answer found")
    a, t = plain(answer), plain(truth)
    if a == t and a:
        return Verdict(1.0, "right", answer, "the same string")
    a, t = number(a), number(t)
    if a is not None and t is not None:
        return Verdict(float(a == t), "right" if a == t else "wrong", answer, "two plain numbers")
    return None


def judge(text: str, truth: str) -> Verdict:
    """Extract, parse and compare. Never raises; bounded in time and memory by itself, so that it may be called directly."""
    answer = extract(text)
    return quick(answer, truth) or Verdict(0.0, "unparsed", answer, "not a plain number")


def equal(answer: str, truth: str) -> bool:
    """Whether the bare `answer` (no box around it) equals `truth`."""
    return judge("\\boxed{" + answer + "}", truth).score == 1.0


def score(text: str, truth: str) -> float:
    """1.0 if the final answer in `text` equals `truth`, else 0.0. Never raises."""
    return judge(text, truth).score


class Grader:
    """Grade in worker processes that can be killed: each answer has `timeout_s` seconds and each worker `memory_gb` GB.

    A worker is this file run by a fresh interpreter, with JSON lines on its pipes. It is not a multiprocessing child:
    those import the caller's main script again, and with it torch. Workers start with the first answer that needs
    algebra; any thread may submit; leaving the context (or `close`) ends them. submit after close raises RuntimeError.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 5.0, memory_gb: float = 1.0):
        self.workers, self.timeout_s, self.memory_gb = workers, timeout_s, memory_gb
        self.tasks, self.threads, self.lock, self.closed = queue.SimpleQueue(), [], threading.Lock(), False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def submit(self, text: str, truth: str) -> "Future[Verdict]":
        """A future of the verdict on one completion; already done when no algebra is needed."""
        if self.closed:
            raise RuntimeError("this Grader is closed: make a new one, or submit before leaving its `with` block")
        future, answer = Future(), extract(text)
        if verdict := quick(answer, truth):
            future.set_result(verdict)
            return future
        with self.lock:
            if len(self.threads) < self.workers:
                self.threads.append(threading.Thread(target=self._serve, daemon=True))
                self.threads[-1].start()
        self.tasks.put((future, answer, truth))
        return future

    def grade(self, texts: list[str], truths: list[str]) -> list[Verdict]:
        """The verdicts on a batch, in its order. ValueError if the two lists differ in length."""
        futures = [self.submit(text, truth) for text, truth in zip(texts, truths, strict=True)]
        return [future.result() for future in futures]

    def close(self):
        """Finish what was submitted, then end the workers."""
        self.closed = True
        for _ in self.threads:
            self.tasks.put(None)
        for thread in self.threads:
            thread.join()
        self.threads = []

    def _serve(self):
        worker = None
        while (task := self.tasks.get()) is not None:
            future, answer, truth = task
            if worker is None or worker.poll() is not None:
                worker = subprocess.Popen([sys.executable, __file__, "--worker", str(self.memory_gb)],
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                worker.stdout.readline()
            late = threading.Timer(self.timeout_s, worker.kill)
            late.start()
            began = time.monotonic()
            try:
                worker.stdin.write(json.dumps([answer, truth]) + "\n")
                worker.stdin.flush()
                verdict = Verdict(**json.loads(worker.stdout.readline()))
            except (OSError, ValueError):
                why = "timeout" if time.monotonic() - began >= self.timeout_s else "crashed"
                worker.kill()
                verdict = Verdict(0.0, why, answer, f"the worker was {'killed' if why == 'timeout' else 'lost'}")
            late.cancel()
            future.set_result(verdict)
        if worker is not None:
            worker.stdin.close()
            worker.wait()


def serve(memory_gb: float):
    """What a worker does: a line in, a verdict out, until its input closes."""
    print("ready", flush=True)
    for line in sys.stdin:
        answer, truth = json.loads(line)
        print(json.dumps(asdict(judge("\\boxed{" + answer + "}", truth))), flush=True)


def main():
    """The command line: explain one comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answer")
    parser.add_argument("--truth")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return serve(args.worker)
    print(judge("\\boxed{" + args.answer + "}", args.truth))


if __name__ == "__main__":
    main()
