"""What a command shows of bad input: one line and exit code 2, as argparse does, and never a library's traceback.

A refusal is a ValueError that a `raise` of this project made, or an error of the operating system (no such file, no
permission). Whatever else happens is a mistake of ours and keeps its traceback. No message is written here.

    with one_line_errors("train_hf.py"):
        loaded = load_tasks(...)
        with explain_loading(f"The encoder {name!r}"):
            model = MultiTaskModel.from_backbone(name)
"""

import argparse
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
SOURCE_FOLDERS = (SOURCES, SOURCES / "serving")


def innermost(error: BaseException) -> traceback.FrameSummary | None:
    """Where an error was raised, if that is in a module of this project; None if it is in a library."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return frame if Path(frame.filename).resolve().parent in SOURCE_FOLDERS else None


def is_refusal(error: BaseException) -> bool:
    """Whether an error says what is wrong with the input: one that we raised, not one that happened to our code."""
    frame = innermost(error)
    return isinstance(error, ValueError) and frame is not None and str(frame.line).startswith("raise ")


def positive(word: str) -> int:
    """A whole number of at least 1: the `type` of an argument of a command."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}.")
    return number


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """While arguments, data and model folder are read: leave with one line and exit code 2 if they are refused.

    Raises:
        SystemExit: for a refusal, or an error of the operating system. Everything else passes as it is.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if not isinstance(error, OSError) and not is_refusal(error):
            raise
        sys.stderr.write(f"{program}: error: {error}\n")
        raise SystemExit(2) from error


@contextmanager
def explain_loading(what: str) -> Iterator[None]:
    """Turn what a library raises over a folder (no JSON, no safetensors, other shapes) into a refusal that names it.

    Args:
        what (str): The folder's role and name, the subject of the message.

    Raises:
        ValueError: with the first line of the library's reason. Errors from modules of this project pass as they are.
    """
    try:
        yield
    except Exception as error:  # any kind: safetensors and the checks of configurations have kinds of their own
        if innermost(error) is not None:
            raise
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ValueError(
            f"{what} cannot be opened: {type(error).__name__}: {reason} Copy its folder again (all files that "
            "save_pretrained wrote, with the right to read them), or give another one."
        ) from error
