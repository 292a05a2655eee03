"""Where the rows of a task come from: the Hub, a local folder or file, or the built-in example data.

It opens a source and answers with its splits as they are; what their columns mean, and whether the rows are fit to
learn from, is for `task_rows` to say. Everything stays in the memory-mapped Arrow files of `datasets`.

    source = hub_or_local("topic", TaskArguments(dataset="fancyzhx/ag_news"), data_root="DATA")
    source.splits["train"], source.location  # (Dataset, "data_root/ag_news")
"""

import csv
import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from huggingface_hub import DatasetCard, try_to_load_from_cache

from arguments_multitask import FORMATS, SPLITS, TaskArguments
from configuration_multitask import nearest_name
from example_data import EXAMPLES, generate

BUILTIN = "builtin:"
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".conll": "conll",
}
"""File ending -> format; a file with another ending (`.txt`, `.iob2`) needs `format:`."""
SPLIT_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Our split -> names it may have in a source; the first one that is there is read."""
CONLL_COLUMNS = {
    2: ["tokens", "tags"],
    3: ["tokens", "pos_tags", "chunk_tags"],
    4: ["tokens", "pos_tags", "chunk_tags", "ner_tags"],
}
"""Columns of a CoNLL file -> their names (any two; CoNLL-2000; CoNLL-2003), unless `column_names` says otherwise."""


@dataclass
class Source:
    """An opened source.

    Attributes:
        splits (dict): Source split -> its rows, all columns as they are.
        location (str): `hub`, `builtin`, `data_root/<name>`, or the path as it was given. It stands in result files, so
            it names no folder that the user did not write down.
        notes (list): What was decided on the way, one sentence each.
        commit (str): The commit on the Hub that the rows are of; None where that is not known.
        card (dict): The metadata of the dataset's card on the Hub: licence, language, ...
    """

    splits: dict[str, Dataset]
    location: str
    notes: list[str] = field(default_factory=list)
    commit: str | None = None
    card: dict[str, Any] = field(default_factory=dict)


def hub_or_local(task_name: str, task: TaskArguments, data_root: str | None = None, offline: bool = False) -> Source:
    """Open the source of a task: built-in, a local file or folder that exists, `data_root/<name>`, else the Hub.

    Args:
        task_name (str): For messages.
        task (TaskArguments): `dataset`, `config`, `revision`, `name`, `format` and `column_names` are read.
        data_root (str): Folder whose sub-folder `name` (default: the last part of `dataset`) stands in for the Hub.
        offline (bool): Never ask the Hub; what is in the local cache is still read.

    Raises:
        ValueError: if there is no such source, it cannot be read, or it has no rows; the message says where was looked.
    """
    if isinstance(task.dataset, dict):
        return read_files(task_name, task, {split: Path(file).expanduser() for split, file in task.dataset.items()})
    if task.dataset.startswith(BUILTIN):
        return read_builtin(task_name, task.dataset)
    path = Path(task.dataset).expanduser()
    if path.is_file():
        return read_files(task_name, task, {"train": path}, task.dataset)
    if path.is_dir():
        return read_folder(task_name, task, path, task.dataset)
    if data_root is not None:
        folder = data_root_folder(task_name, task, data_root)
        if folder.is_dir():
            source = read_folder(task_name, task, folder, f"data_root/{folder.name}")
            source.notes.append(
                f"Task {task_name!r}: its rows come from {source.location} in place of {task.dataset!r} on the Hub."
            )
            return source
    return read_hub(task_name, task, data_root, offline)


def data_root_folder(task_name: str, task: TaskArguments, data_root: str) -> Path:
    """The folder of a task below `data_root`, which need not be there; its name cannot lead elsewhere."""
    root = Path(data_root).expanduser()
    if not root.is_dir():
        raise ValueError(f"data_root must be a folder; {data_root!r} is none. Give another, or leave it out.")
    name = task.name if task.name is not None else str(task.dataset).rstrip("/").rpartition("/")[2]
    if name in ("", ".", "..") or re.search(r"[/\\:\0]", name):
        raise ValueError(
            f"Task {task_name!r}: `name` must be the plain name of a folder below data_root; got {name!r}. Write a "
            "name without slashes; for a folder elsewhere, write its path as `dataset`."
        )
    folder = root / name
    if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"Task {task_name!r}: {name!r} is a link out of data_root, to {folder.resolve()}. Copy the folder, or "
            "write its path as `dataset`."
        )
    return folder


def read_builtin(task_name: str, dataset: str) -> Source:
    """The example data `builtin:NAME`."""
    name = dataset.removeprefix(BUILTIN)
    if name not in EXAMPLES:
        raise ValueError(
            f"Task {task_name!r}: there is no example data {dataset!r}; there are "
            f"{', '.join(BUILTIN + example for example in EXAMPLES)}.{nearest_name(name, EXAMPLES)}"
        )
    return Source(dict(generate(name)), "builtin", card={"license": "apache-2.0", "language": "en"})


# ---------------------------------------------------------------------------------------------------------------------
# Folders and files


def read_folder(task_name: str, task: TaskArguments, folder: Path, location: str) -> Source:
    """A folder of `{split}.csv|tsv|json|jsonl|parquet|conll` files, of `save_to_disk`, or as a dataset on the Hub is.

    Where no file bears the name of a split, `datasets` itself looks (`data/train-00000-of-00001.parquet`, a README.md
    with `configs:`).
    """
    if (folder / "dataset_dict.json").is_file():
        return Source(dict(load_from_disk(folder)), location)
    files = find_split_files(task_name, task, folder)
    if files:
        return read_files(task_name, task, files, location)
    with explain_failure(task_name, f"the folder {location!r}", "Name its files train.csv, test.csv, ..."):
        return Source(checked_dict(load_dataset(str(folder), task.config)), location)


def find_split_files(task_name: str, task: TaskArguments, folder: Path) -> dict[str, Path]:
    """The files `{split}.{ending}` of a folder: split as it is called there -> file."""
    known = {alias for aliases in SPLIT_ALIASES.values() for alias in aliases}
    known |= {split for split in task.splits.values() if split is not None}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        format_name = SUFFIXES.get(path.suffix.lower())
        is_wanted = format_name == task.format if format_name and task.format else bool(format_name or task.format)
        if not path.is_file() or path.stem not in known or not is_wanted:
            continue
        if path.stem in found:
            raise ValueError(
                f"Task {task_name!r}: a split must be one file, but the folder holds {found[path.stem].name} and "
                f"{path.name}. Write `format:` to choose, or `dataset: {{{path.stem}: FILE}}`."
            )
        found[path.stem] = path
    return found


def read_files(task_name: str, task: TaskArguments, files: dict[str, Path], location: str = "files") -> Source:
    """Local files, one a split."""
    source = Source({}, location)
    for split, path in files.items():
        if not path.is_file():
            raise ValueError(f"Task {task_name!r}: the file of {split} must exist; {str(path)!r} does not.")
        source.splits[split] = read_file(task_name, task, path, source.notes)
    return source


def read_file(task_name: str, task: TaskArguments, path: Path, notes: list[str]) -> Dataset:
    """One local file of any format, memory-mapped."""
    format_name = task.format or SUFFIXES.get(path.suffix.lower())
    if format_name is None:
        raise ValueError(
            f"Task {task_name!r}: the format of {path.name!r} cannot be told from its ending (known: "
            f"{', '.join(SUFFIXES)}). Write `format:` with one of {', '.join(FORMATS)}."
        )
    options: dict[str, Any] = {}
    if format_name != "parquet":
        refuse_other_encodings(task_name, path)
    if format_name == "conll":
        options["column_names"] = conll_column_names(task_name, path, task.column_names)
    elif format_name in ("csv", "tsv"):
        options = table_options(task_name, task, path, format_name, notes)
    builder = "csv" if format_name == "tsv" else format_name
    with explain_failure(task_name, f"{path.name} as {format_name}", "Mend the file, or write its `format:`."):
        # glob.escape: datasets reads a path as a pattern, and a folder may be called "runs [old]".
        return load_dataset(builder, data_files=glob.escape(str(path.resolve())), **options)["train"]


def refuse_other_encodings(task_name: str, path: Path) -> None:
    """Raise ValueError naming the first line of a text file that is not UTF-8."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"Task {task_name!r}: text files are read as UTF-8; line {number} of {path.name} has the byte "
                    f"0x{line[error.start]:02x} in {line[:60]!r}. Save the file as UTF-8 (iconv -f ITS_ENCODING -t "
                    "UTF-8)."
                ) from error


def table_options(
    task_name: str, task: TaskArguments, path: Path, format_name: str, notes: list[str]
) -> dict[str, Any]:
    """How a CSV or TSV file is read: only an empty cell is missing, so that the text "NA" or "None" stays a text."""
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
    if task.column_names:
        options |= {"names": task.column_names, "header": None}
    if format_name == "tsv":
        options["sep"] = "\t"
        if has_loose_quotes(path):
            # With quoting on, pandas would swallow all lines up to the next quotation mark, without an error.
            options["quoting"] = csv.QUOTE_NONE
            notes.append(
                f"Task {task_name!r}: quotation marks in {path.name} do not pair up in each line, so they are read as "
                "plain characters."
            )
    return options


def has_loose_quotes(path: Path) -> bool:
    """Whether some line has an odd number of quotation marks."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return any(line.count('"') % 2 for line in lines)


def conll_column_names(task_name: str, path: Path, given: list[str] | None) -> list[str]:
    """Names for the columns of a CoNLL file, all of whose lines must have as many.

    `datasets` fills short lines with empty tags and cuts long ones without a word; here they are refused.
    """
    names = given
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.split()
            if not fields or line.startswith("-DOCSTART-"):
                continue
            names = names or CONLL_COLUMNS.get(len(fields))
            if names is None:
                raise ValueError(
                    f"Task {task_name!r}: the columns of {path.name} need names; line {number} has {len(fields)}. "
                    "Write `column_names:`, from left to right, for example [tokens, ner_tags]."
                )
            if len(fields) != len(names):
                raise ValueError(
                    f"Task {task_name!r}: each line of {path.name} must have the columns {', '.join(names)}; line "
                    f"{number} has {len(fields)}: {line.strip()[:80]!r}. Mend the line, or write `column_names:`."
                )
    if names is None:
        raise ValueError(f"Task {task_name!r}: a split needs rows; {path.name} holds none.")
    return names


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


def read_hub(task_name: str, task: TaskArguments, data_root: str | None, offline: bool) -> Source:
    """A dataset on the Hub, or its copy in the local cache."""
    dataset = str(task.dataset)
    if is_path(dataset):
        raise ValueError(
            f"Task {task_name!r}: the dataset {dataset!r} is a path, but neither a file nor a folder is there. Mend "
            "the path, or write a Hub id (owner/name)."
        )
    looked = ["a local path", *([f"the folder {data_root}"] if data_root else []), "the Hub's local cache"]
    remedy = (
        f"It was looked for as {', '.join(looked)}{'' if offline else ' and on the Hub'}. Mend the id, `config` or "
        "`revision` (one that is still a script: `revision: refs/convert/parquet`); or give --data_root a folder with "
        "its files"
        f"{'; or leave out --offline' if offline else ''}."
    )
    source = Source({}, "hub")
    with explain_failure(task_name, f"the dataset {dataset!r} (config {task.config!r})", remedy), hub_access(offline):
        source.splits = checked_dict(load_dataset(dataset, task.config, revision=task.revision))
    source.commit = commit_of(source.splits)
    source.card = cached_card(dataset, source.commit)
    if offline:
        source.notes.append(
            f"Task {task_name!r}: {dataset!r} comes from the local cache; its revision was not checked."
        )
    return source


def commit_of(splits: dict[str, Dataset]) -> str | None:
    """The commit on the Hub that rows are of: `datasets` calls the folder of its cache by it."""
    folders = {Path(file["filename"]).parent.name for rows in splits.values() for file in rows.cache_files}
    return next((folder for folder in folders if re.fullmatch("[0-9a-f]{40}", folder)), None)


def cached_card(dataset: str, commit: str | None) -> dict[str, Any]:
    """The metadata of the card that was fetched along with a dataset; nothing where it has none."""
    if commit is None:
        return {}
    file = try_to_load_from_cache(dataset, "README.md", revision=commit, repo_type="dataset")
    return DatasetCard.load(file, ignore_metadata_errors=True).data.to_dict() if isinstance(file, str) else {}


def is_path(dataset: str) -> bool:
    """Whether a `dataset` can only be meant as a local path: a Hub id is `name` or `owner/name`, without an ending."""
    has_ending = Path(dataset).suffix.lower() in SUFFIXES
    return has_ending or dataset.startswith((".", "~", "/")) or dataset.count("/") > 1 or "\\" in dataset


@contextmanager
def hub_access(offline: bool) -> Iterator[None]:
    """While it lasts, `datasets` reads its cache alone if `offline` is set."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def explain_failure(task_name: str, what: str, remedy: str) -> Iterator[None]:
    """Turn an error of `datasets` into one that names the task, its cause and the way out."""
    try:
        yield
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"Task {task_name!r}: {what} cannot be read: {type(cause).__name__}: {cause} {remedy}"
        ) from error


def checked_dict(loaded: Any) -> dict[str, Dataset]:
    """The splits of a `DatasetDict`."""
    if not isinstance(loaded, DatasetDict):
        raise RuntimeError(f"Expected splits, found {type(loaded).__name__}.")
    return dict(loaded)


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def choose_splits(
    task_name: str, wanted: dict[str, str | None], available: list[str]
) -> tuple[dict[str, str], list[str]]:
    """Which split of the source is read as which of ours.

    A split that `wanted` does not mention is the one of the same name (or `SPLIT_ALIASES`), unless that one is taken:
    with `{"test": "validation"}`, train and test are read, and validation is left to be cut from train.

    Args:
        task_name (str): For messages.
        wanted (dict): Our split -> source split, or None to read none.
        available (list): The splits of the source.

    Returns:
        Our split -> source split, and notes.

    Raises:
        ValueError: if the source has no such split.
    """
    for ours, theirs in wanted.items():
        if theirs is not None and theirs not in available:
            raise ValueError(
                f"Task {task_name!r}: {ours} is to be read from the split {theirs!r}, but the source's splits are "
                f"{', '.join(available)}.{nearest_name(theirs, available)} Mend `splits:`."
            )
    free = [split for split in available if split not in wanted.values()]
    by_name = {ours: next((alias for alias in SPLIT_ALIASES[ours] if alias in free), None) for ours in SPLITS}
    chosen = {ours: theirs for ours, theirs in (by_name | wanted).items() if theirs is not None}
    if not chosen:
        raise ValueError(
            f"Task {task_name!r}: none of the source's splits ({', '.join(available)}) is read. Write `splits:`, for "
            f"example {{train: {available[0]}}}."
        )
    notes = [f"Task {task_name!r}: {a} is the source's split {b!r}." for a, b in chosen.items() if a != b]
    unread = [split for split in available if split not in chosen.values()]
    if unread:
        notes.append(f"Task {task_name!r}: not read from the source: {', '.join(unread)}.")
    for theirs in sorted({split for split in chosen.values() if list(chosen.values()).count(split) > 1}):
        ours_of = " and ".join(ours for ours, split in chosen.items() if split == theirs)
        notes.append(
            f"Task {task_name!r}: {ours_of} are the same rows, so scores on one say nothing new about the other."
        )
    return chosen, notes
