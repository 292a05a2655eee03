"""`--help` of every command teaches: an example first that the command accepts, grouped arguments, every default.

The commands are found, not listed: a new script with a `__main__` block is tested as well.
"""

import argparse
import dataclasses
import re

import pytest
from command_lines import COMMANDS, check_accepted, command_lines, parser_of
from transformers import TrainingArguments

from arguments_multitask import ARGUMENT_FIELDS, MultiTaskTrainingArguments
from command_help import CommandParser
from recipe_arguments import ARGUMENT_GROUPS, RunArgumentParser


def examples(text: str) -> str:
    """The indented lines above the usage."""
    return "\n".join(line for line in text.partition("usage: ")[0].splitlines() if line.startswith("    "))


def parsers_of(command: str) -> list[argparse.ArgumentParser]:
    """A command's parser and those of its sub-commands."""
    parser = parser_of(command)
    inner = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(one for choices in inner for one in choices.values())]


def own_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What can be set, but for transformers' own arguments, whose help is not ours."""
    theirs = {
        one.name for one in dataclasses.fields(TrainingArguments)
    } - MultiTaskTrainingArguments.__annotations__.keys()
    return [
        action
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        and not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        and not (isinstance(parser, RunArgumentParser) and action.dest in theirs)
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_opens_with_a_sentence_and_an_example_that_the_command_accepts(command: str) -> None:
    """The third line is one; every other example in the help is accepted as well."""
    text = parser_of(command).format_help()
    first, empty, example, *_ = text.splitlines()
    assert first[0].isupper() and first.endswith((".", ":")) and not empty, first
    assert example.startswith("    ") and command_lines(example), example
    assert text.index(example) < text.index("usage: ")
    for words in command_lines(examples(text)):
        check_accepted(words)


def fault(parser: argparse.ArgumentParser, action: argparse.Action) -> str | None:
    """What the printed help of an argument lacks: a sentence, its default value, or what holds without a value."""
    if not action.help:
        return "no help"
    printed = parser._get_formatter()._expand_help(action)
    if not action.option_strings or action.required or action.nargs == 0 or action.default is False:
        return None
    if action.default in (None, "", [], {}):
        return None if re.search("unset|default", printed, re.IGNORECASE) else f"without a value? {printed}"
    return None if str(action.default) in printed or "(default: " in printed else f"default? {printed}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_has_a_help_and_every_option_says_what_holds_without_it(command: str) -> None:
    """Its default value, or in words what happens when it is unset; switches are off."""
    found = {
        action.dest: fault(parser, action)
        for parser in parsers_of(command)
        for action in own_options(parser)
        if fault(parser, action)
    }
    assert found == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_many_arguments_stand_in_groups(command: str) -> None:
    for parser in parsers_of(command):
        titled = [group for group in parser._action_groups[2:] if group._group_actions]
        if len(own_options(parser)) > 8:
            assert len(titled) >= 2, f"{command} has {len(own_options(parser))} arguments in {len(titled)} groups"


def test_the_arguments_of_a_run_stand_in_ours_first_and_transformers_last() -> None:
    """Every argument in one group, in the order of `ARGUMENT_GROUPS`; transformers' own in the last."""
    parser = RunArgumentParser()
    groups = {group.title: [action.dest for action in group._group_actions] for group in parser._action_groups[2:]}
    assert list(groups) == list(ARGUMENT_GROUPS) and all(groups.values())
    last = groups.pop("transformers.TrainingArguments")
    theirs = {field for one in MultiTaskTrainingArguments.__mro__[1:] for field in getattr(one, "__annotations__", {})}
    assert set(last) <= theirs and "adam_beta1" in last
    assert {name for names in groups.values() for name in names} | set(last) == set(ARGUMENT_FIELDS)


def test_a_default_that_is_none_is_not_printed_and_one_in_words_not_twice() -> None:
    """The form that all helps share."""
    parser = CommandParser(prog="x", doc="Command: do it.\n\n    python x.py\n")
    parser.add_argument("--rows", type=int, default=5, help="Rows to read.")
    parser.add_argument("--at_most", type=int, help="Rows at most; unset, all.")
    parser.add_argument("--two_words", "--two-words", default=1, help="Parts (default: one).")
    text = parser.format_help()
    assert text.startswith("Do it.\n\n    python x.py\n\nusage: x ")
    assert "Rows to read. (default: 5)" in text and "None" not in text
    assert (
        text.count("(default: one)") == 1
        and "(default: 1)" not in text
        and "--two-words" not in text.split("options:")[1]
    )
