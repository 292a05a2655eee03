"""Command: write a saved model in a form that opens without code of ours.

    python export_hf.py outputs/news --task ner --format native --output outputs/news-ner   # BertForTokenClassification
    python export_hf.py outputs/news --format native --output outputs/news-embedding        # SentenceTransformer(...)

`native` is one task (without `--task`: the embedding) as the encoder's own class, for hosted widgets and TEI; it is
refused where that class computes something else than the head.
"""

import argparse
import logging
from pathlib import Path

from input_errors import one_line_errors
from native_export import write_native
from saved_model import open_model

FORMATS = ("native",)


def parse_export(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder of a saved model, or a Hub id.")
    parser.add_argument("--output", required=True, metavar="OUT", help="Folder to write.")
    parser.add_argument("--format", required=True, choices=FORMATS, help="What to write.")
    parser.add_argument("--task", metavar="NAME", help="The one task of a native folder (default: the embedding).")
    parser.add_argument("--overwrite_output", action="store_true", help="Write into a folder that holds files already.")
    parser.add_argument("--offline", action="store_true", help="Never ask the Hub.")
    return parser.parse_args(argv)


def require_empty(folder: Path, model: str, overwrite: bool) -> None:
    """Raise ValueError if a folder is the model's own, or holds files that nobody said could be replaced."""
    if folder.resolve() == Path(model).resolve():
        raise ValueError(f"An export stands beside the model, not in its place; both are {folder}. Choose another.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output is a folder to write; {folder} is a file. Choose another.")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ValueError(
            f"An export is written into an empty folder; {folder} holds files. Choose another --output, or write over "
            "them with --overwrite_output."
        )


def main(argv: list[str] | None = None) -> None:
    """Parse, load, write."""
    given = parse_export(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    folder = Path(given.output)
    with one_line_errors("export_hf.py"):
        require_empty(folder, given.model, given.overwrite_output)
        model, tokenizer = open_model(given.model, given.offline)
        write_native(model, tokenizer, folder, given.task)
    print(f"Written to {folder}")


if __name__ == "__main__":
    main()
