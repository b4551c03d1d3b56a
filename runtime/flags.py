"""Command-line flags from a dataclass, by tyro, and checks of their values.

The comment beside or above a field is its help text. @FILE on the command line stands for the flags
in that file.
"""

import math
import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import tyro

ROOT = Path(__file__).resolve().parent.parent


def parse(flags_class: type, argv: list[str], description: str, default=None, prog=None):
    """Flags of the class from the arguments.

    default: an instance that holds the values of flags that the arguments do not name, such as
    those of a resumed run. prog: what the help calls the program; None is the path of its file.
    A wrong flag ends the process with code 2 and a message, which one process of a machine prints.
    """
    argv = expand_files(argv)
    speaks = int(os.environ.get("LOCAL_RANK", 0)) == 0
    return tyro.cli(
        flags_class,
        prog=prog,
        args=argv,
        default=default,
        description=description,
        console_outputs=speaks,
        config=(tyro.conf.UseAppendAction,),
    )


def from_stored(flags_class: type, stored: dict, file: str | Path):
    """Flags with the values of a JSON file, whose other entries are ignored.

    ValueError for a value that is not of the flag's type. tyro checks only the command line.
    """
    flags = flags_class()
    for known in fields(flags_class):
        if known.name not in stored:
            continue
        value = stored[known.name]
        wanted = type(getattr(flags, known.name))
        if wanted is float and type(value) is int:
            value = float(value)
        texts = not isinstance(value, list) or all(isinstance(entry, str) for entry in value)
        if type(value) is not wanted or not texts:
            raise ValueError(
                f"{file}: {known.name} is {value!r}, where a {wanted.__name__} is expected; "
                "put the file back as the run wrote it"
            )
        setattr(flags, known.name, value)
    return flags


def expand_files(argv: list[str]) -> list[str]:
    """The arguments, with every @FILE replaced by the flags in it. In a file # begins a comment."""
    expanded = []
    for argument in argv:
        if not argument.startswith("@"):
            expanded.append(argument)
            continue
        path = Path(argument[1:])
        if not path.is_file():
            recipes = sorted(os.path.relpath(known) for known in ROOT.glob("recipes/*.args"))
            known = ", ".join(f"@{recipe}" for recipe in recipes)
            raise ValueError(f"{argument}: no such file; the recipes are {known}")
        expanded += expand_files(shlex.split(path.read_text(), comments=True))
    return expanded


def flag_name(field: str) -> str:
    """max_new -> --max-new"""
    return "--" + field.replace("_", "-")


def check_choices(flags) -> None:
    """ValueError for a flag with a fixed list of values that has another one.

    tyro refuses such a value on the command line, but not in the flags of a stored run.
    """
    for field in fields(flags):
        value = getattr(flags, field.name)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            choices = ", ".join(get_args(field.type))
            raise ValueError(f"{flag_name(field.name)} {value}: must be one of {choices}")


def check_numbers(flags, ranges: dict[str, tuple[float, float]]) -> None:
    """ValueError for a number that is nan, infinite or outside its range.

    ranges: name -> (lowest, highest), both included. Every number of the flags must have a range,
    so that none is forgotten.
    """
    for field in fields(flags):
        value = getattr(flags, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high = ranges[field.name]
        if math.isfinite(value) and low <= value <= high:
            continue
        wanted = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{flag_name(field.name)} {value:g}: must be a finite number, {wanted}")
