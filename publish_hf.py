"""Command: publish a trained model on the Hub, checked before anything is sent, in one commit.

    python publish_hf.py outputs/news alice/news --dry_run          # what would go; no network
    python publish_hf.py outputs/news alice/news                    # private
    python publish_hf.py outputs/news alice/news --public --tag v1 --license apache-2.0
    python publish_hf.py outputs/news alice/news --native_heads     # also alice/news-ner, ... for live widgets

Copies what readers need (weights, code, tokenizer, card, results, plots; no checkpoints, optimizer or logs), writes the
card for its new name, opens the copy in a fresh process without this project and compares every answer, and only then
asks the Hub. An interrupted publication of a repository publishes nothing in it; a second one of the same model changes
nothing. With `--native_heads` the model itself goes last, so that what its card links to is there.
"""

import argparse
import logging
import re
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import transformers
from huggingface_hub import HfApi

from command_help import CommandParser
from hub_folder import check_elsewhere, copy_published, published_files
from hub_repository import Target, prepare, upload
from input_errors import one_line_errors
from model_card import FACTS_NAME, read_json, write_card, write_facts
from native_siblings import Sibling, write_siblings
from saved_model import open_model


def parse_publication(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("model", help="Folder of a saved model.")
    parser.add_argument("repo_id", help="Where it goes: owner/name.")
    target = parser.add_argument_group("repository")
    target.add_argument("--public", action="store_true", help="Let everybody read it (default: private).")
    target.add_argument("--revision", default="main", help="Branch (default: main; a new one is made from main).")
    target.add_argument("--tag", help="Name for this publication, such as v1 (default: none).")
    target.add_argument("--commit_message", default="Publish the model", help="Message of the commit.")
    target.add_argument("--overwrite", action="store_true", help="Write to a repository that holds something else.")
    content = parser.add_argument_group("content")
    content.add_argument(
        "--license", help="Licence of the model, as the Hub spells it: apache-2.0, ... (default: none)."
    )
    content.add_argument(
        "--base_model", help="Hub id of the encoder (default: as training named it, if no local copy)."
    )
    content.add_argument(
        "--native_heads",
        action="store_true",
        help="Also publish what can be a plain class (heads, the embedding) as REPO_ID-NAME, linked in the card.",
    )
    content.add_argument("--dry_run", action="store_true", help="Check and list what would go; ask nobody.")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Assembled:
    """What would go into one repository.

    Attributes:
        repo_id (str): Its name.
        folder (Path): Its files, and nothing else that `published_files` lists.
        checked (str): What the check in a fresh process found.
        sibling_of (str): The model's own repository, for a native folder.
    """

    repo_id: str
    folder: Path
    checked: str
    sibling_of: str | None = None

    def __str__(self) -> str:
        """A file a line with its size, and what the check found."""
        sizes = {path: (self.folder / path).stat().st_size for path in published_files(self.folder)}
        lines = [f"  {size:>12,}  {path.as_posix()}" for path, size in sizes.items()]
        total = f"  {sum(sizes.values()):>12,}  bytes in {len(sizes)} files"
        return "\n".join([f"{self.repo_id}:", *lines, total, f"  {self.checked}"])


def assemble(source: Path, staged: Path, given: argparse.Namespace) -> tuple[list[Assembled], dict[str, str]]:
    """Copy a model folder as it is published, write its native siblings if asked, and check all in fresh processes.

    Returns:
        The siblings, then the model; and task -> reason for each head that has no sibling.
    """
    model, tokenizer = open_model(str(source), offline=True)
    folder = staged / "model"
    copy_published(source, folder)
    stated = {"license": given.license, "base_model": given.base_model}
    facts = read_json(folder / FACTS_NAME) | {field: value for field, value in stated.items() if value is not None}
    write_facts(folder, facts)
    siblings: list[Sibling] = []
    refused: dict[str, str] = {}
    if given.native_heads:
        siblings, refused = write_siblings(model, tokenizer, folder, staged / "siblings", given.repo_id)
        write_facts(folder, facts | {"siblings": {sibling.name: sibling.repo_id for sibling in siblings}})
    write_card(folder, given.repo_id, partial(model.predict, tokenizer=tokenizer, bf16=False))
    difference = check_elsewhere(folder, model, tokenizer)
    checked = f"Opened in a fresh process without this project: the largest difference of an answer is {difference:g}."
    parts = [
        Assembled(sibling.repo_id, sibling.folder, "Opened in a fresh process without remote code.", given.repo_id)
        for sibling in siblings
    ]
    return [*parts, Assembled(given.repo_id, folder, checked)], refused


def publish(parts: list[Assembled], given: argparse.Namespace) -> None:
    """Make sure that every target can be written to, then upload one after the other.

    Raises:
        ValueError: if one cannot be; those that were printed before are complete, the others as they were.
    """
    api = HfApi(library_name="multitask-sentence-transformer")
    targets = [
        Target(part.repo_id, given.revision, given.tag, given.public, given.overwrite, part.sibling_of)
        for part in parts
    ]
    heads = {target: prepare(api, target) for target in reversed(targets)}  # the model's own first: no empty siblings
    for part, target in zip(parts, targets, strict=True):
        commit = upload(api, target, part.folder, heads[target], given.commit_message)
        print(f"Published to {where(part.repo_id, given)}: {commit.commit_url}", flush=True)


def where(repo_id: str, given: argparse.Namespace) -> str:
    """A target in words."""
    return f"{repo_id}, branch {given.revision}, {'public' if given.public else 'private'}"


def main(argv: list[str] | None = None) -> None:
    """Parse, assemble, check, publish."""
    given = parse_publication(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers.utils.logging.disable_progress_bar()  # of loading weights; the upload has its own
    with one_line_errors("publish_hf.py"), tempfile.TemporaryDirectory() as staged:
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", given.repo_id):
            raise ValueError(f"A repository is named owner/name; got {given.repo_id!r}.")
        if not Path(given.model).is_dir():
            raise ValueError(f"A model is published from its folder; there is no folder {given.model!r}.")
        parts, refused = assemble(Path(given.model), Path(staged), given)
        print(*parts, sep="\n\n")
        for task, reason in refused.items():
            print(f"No repository for the task {task!r}: {reason}")
        if given.dry_run:
            print(*(f"They would go to {where(part.repo_id, given)}." for part in parts), "Nothing was sent.", sep="\n")
        else:
            publish(parts, given)


if __name__ == "__main__":
    main()
