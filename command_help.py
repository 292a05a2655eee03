"""What `--help` of every command looks like: what it is for and an example, the usage, arguments in groups, defaults.

Only the form is here; what arguments there are, each command says. Its docstring becomes the top of its help.

    parser = CommandParser(doc=__doc__)
    rows = parser.add_argument_group("rows")
    rows.add_argument("--text", default="text", help="Column with the text.")    # "(default: text)" is added
"""

import argparse
import copy
from typing import Any


class CommandHelp(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Texts as they are written; behind an argument its default, unless there is none or its help says it in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """The help of one argument."""
        unset = action.default is None or action.default is False or action.default in ("", [], {})
        return action.help if unset or "default" in str(action.help).lower() else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """The spellings of an argument, those with dashes left out where the same is there with underscores."""
        shown = copy.copy(action)
        shown.option_strings = [word for word in action.option_strings if "-" not in word.lstrip("-")]
        return super()._format_action_invocation(shown if shown.option_strings else action)


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose help opens with what the command is for and how it is called, above the usage.

    Args:
        doc (str): The command's docstring: a line that says what it does, examples, then what else there is to know.
    """

    def __init__(self, *args: Any, doc: str | None = None, **kwargs: Any):
        super().__init__(*args, **{"formatter_class": CommandHelp, **kwargs})
        self.opening = (doc or "").removeprefix("Command: ").strip()

    def format_help(self) -> str:
        """The docstring, the usage, the arguments."""
        opening = f"{self.opening[:1].upper()}{self.opening[1:]}\n\n" if self.opening else ""
        return opening + super().format_help()
