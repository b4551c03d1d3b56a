"""The house: which files stand at the top, and that imports run downward only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = {"grpo", "rollout", "reward", "fit_scaling", "model", "data", "evaluate"}
# A file may import files of lower floors, and of its own folder (without a circle, see below).
FLOORS = [
    {"kernels", "reward"},
    {"data", "model"},
    {"benchmarks"},
    {"rollout"},
    {"runtime"},
    {"evaluate"},
    {"grpo"},
    {"study", "course"},
]
# files that import nothing of ours, so that each can be handed out
ALONE = {"reward", "fit_scaling"}
OURS = set.union(*FLOORS) | ALONE


def product_files() -> list[Path]:
    files = list(ROOT.glob("*.py"))
    for folder in ("kernels", "runtime", "benchmarks", "study", "course"):
        files += (ROOT / folder).glob("*.py")
    return sorted(files)


def imported(path: Path) -> set[str]:
    """Dotted names of our modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name and name.split(".")[0] in OURS}


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def test_seven_files_stand_at_the_top():
    assert {path.stem for path in ROOT.glob("*.py")} == TOP


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path):
    # Caught: a lower file that knows a type of a higher one, also by an import inside a function.
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imported(path):
        there = name.split(".")[0]
        assert here not in ALONE, f"{path.name} stands alone and imports {name}"
        if there == "fit_scaling":
            assert here == "study" or here == "course"
            continue
        own_folder = there == here and len(path.relative_to(ROOT).parts) > 1
        assert own_folder or floor(there) < floor(here), f"{path.name} imports {name}"


def test_no_circle_within_a_folder():
    uses = {}
    for path in product_files():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        uses[module] = imported(path)

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        for name in uses.get(start, ()):
            if name == goal:
                return True
            if name in uses and name not in seen:
                seen.add(name)
                if reaches(name, goal, seen):
                    return True
        return False

    assert [module for module in uses if reaches(module, module, set())] == []
