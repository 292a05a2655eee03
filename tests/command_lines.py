"""Command lines in texts: which there are, and whether the command's own parser accepts them, without running it."""

import functools
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from command_help import CommandParser
from recipe_arguments import parse_arguments

REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in (".", "serving", "benchmarks", "notebooks")
    for path in (REPOSITORY / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
"""Every command of the repository."""
AS_MODULE = {command.removesuffix(".py").replace("/", "."): command for command in COMMANDS}
"""What stands behind `python -m` -> the command."""
TRAINING = {"train_hf.py", "compare_hf.py", "search_hf.py"}
"""Commands that take the arguments of a run, beside or in place of their own."""
RECIPE = "recipes/six_tasks.yaml"
"""Stands for a recipe that a text only supposes to be there (`RECIPE.yaml`, `my_recipe.yaml`)."""


@functools.cache
def parser_of(command: str) -> CommandParser:
    """The parser that a command prints the help of, run as a script. One for all tests: it only parses."""
    found: list[CommandParser] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommandParser, "print_help", lambda self, file=None: found.append(self))
        patch.setattr(sys, "argv", [command, "--help"])
        patch.syspath_prepend(str((REPOSITORY / command).parent))
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(REPOSITORY / command), run_name="__main__")
    assert left.value.code == 0
    (parser,) = found
    return parser


def command_lines(text: str) -> list[list[str]]:
    """The words of every line of a code block that calls a command of this repository, the command first."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.split(r"[|;&]\s", line)[0], comments=True)
        if "-m" in words:
            module = words.index("-m") + 1
            words[module] = AS_MODULE.get(words[module], words[module])
        scripts = [index for index, word in enumerate(words) if word in COMMANDS]
        if scripts:
            found.append(words[scripts[0] :])
    return found


def supposed(word: str) -> str:
    """A recipe that is there for one that a text supposes to be; other words as they are."""
    is_recipe = word == "RECIPE" or word.endswith(".yaml")
    return RECIPE if is_recipe and not (REPOSITORY / word).exists() else word


def check_accepted(words: list[str]) -> None:
    """Parse a command line as its command does; what that refuses, this raises."""
    command, *words = words
    further = words[words.index("--") + 1 :] if "--" in words else []
    words = [supposed(word) for word in words[: words.index("--") if "--" in words else len(words)]]
    if command == "train_hf.py":
        parse_arguments(words)
        return
    given, unknown = parser_of(command).parse_known_args(words)
    if command in TRAINING:
        parse_arguments([given.recipe, *unknown])
    else:
        assert unknown == [], f"{command} does not know {unknown}"
    if further:
        parse_arguments([RECIPE, *further])
