"""Command: publish a trained model on the Hub, checked before anything is sent, in one commit.

    python publish_hf.py outputs/news alice/news --dry_run          # what would go; no network
    python publish_hf.py outputs/news alice/news                    # private
    python publish_hf.py outputs/news alice/news --public --tag v1 --license apache-2.0

Copies what readers need (weights, code, tokenizer, card, results, plots; no checkpoints, optimizer or logs), writes the
card for its new name, opens the copy in a fresh process without this project and compares every answer, and only then
asks the Hub. An interrupted publication publishes nothing; a second one of the same model changes nothing.
"""

import argparse
import logging
import re
import tempfile
from functools import partial
from pathlib import Path

import transformers
from huggingface_hub import HfApi

from hub_folder import check_elsewhere, copy_published, published_files
from hub_repository import Target, prepare, upload
from input_errors import one_line_errors
from model_card import FACTS_NAME, read_json, write_card, write_facts
from saved_model import open_model


def parse_publication(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder of a saved model.")
    parser.add_argument("repo_id", help="Where it goes: owner/name.")
    parser.add_argument("--public", action="store_true", help="Let everybody read it (default: private).")
    parser.add_argument("--revision", default="main", help="Branch (default: main; a new one is made from main).")
    parser.add_argument("--tag", help="Name for this publication, such as v1.")
    parser.add_argument("--commit_message", default="Publish the model", help="Message of the commit.")
    parser.add_argument("--license", help="Licence of the model, as the Hub spells it: apache-2.0, cc-by-nc-4.0, ...")
    parser.add_argument("--base_model", help="Hub id of the encoder, where training started from a local copy.")
    parser.add_argument("--overwrite", action="store_true", help="Write to a repository that holds something else.")
    parser.add_argument("--dry_run", action="store_true", help="Check and list what would go; ask nobody.")
    return parser.parse_args(argv)


def assemble(folder: Path, target: Path, given: argparse.Namespace) -> float:
    """Copy a model folder as it is published, with the card for its new name, and check it in a fresh process.

    Returns:
        The largest difference between its answers there and here.
    """
    model, tokenizer = open_model(str(folder), offline=True)
    copy_published(folder, target)
    stated = {"license": given.license, "base_model": given.base_model}
    stated = {field: value for field, value in stated.items() if value is not None}
    write_facts(target, read_json(target / FACTS_NAME) | stated)
    write_card(target, given.repo_id, partial(model.predict, tokenizer=tokenizer, bf16=False))
    return check_elsewhere(target, model, tokenizer)


def describe_files(folder: Path, files: list[Path], difference: float) -> str:
    """What goes, a file a line with its size, and what the check found."""
    sizes = {path: (folder / path).stat().st_size for path in files}
    lines = [f"  {size:>12,}  {path.as_posix()}" for path, size in sizes.items()]
    checked = f"Opened in a fresh process without this project: the largest difference of an answer is {difference:g}."
    return "\n".join([*lines, f"  {sum(sizes.values()):>12,}  bytes in {len(files)} files", checked])


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
        difference = assemble(Path(given.model), Path(staged), given)
        print(describe_files(Path(staged), published_files(Path(staged)), difference))
        where = f"{given.repo_id}, branch {given.revision}, {'public' if given.public else 'private'}"
        if given.dry_run:
            print(f"They would go to {where}. Nothing was sent.")
            return
        target = Target(given.repo_id, given.revision, given.tag, given.public, given.overwrite)
        api = HfApi(library_name="multitask-sentence-transformer")
        commit = upload(api, target, Path(staged), prepare(api, target), given.commit_message)
        print(f"Published to {where}: {commit.commit_url}")


if __name__ == "__main__":
    main()
