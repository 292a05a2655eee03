"""Command: run the notebooks from top to bottom and keep what they print, without what belongs to one machine.

    python notebooks/execute_notebooks.py                     # all, in place: `make notebooks`
    python notebooks/execute_notebooks.py --output DIR        # the notebooks as they came out; those here stay

Each runs in a new kernel, in a folder of its own that is removed. A cell that fails ends the command with its error.
What a cell writes to standard error (progress, warnings) is shown here and not kept; nor are times and versions. A
notebook that prints a folder of this machine is refused. The extras `encoder` and `notebooks` are needed, no network.
"""

import logging
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from command_help import CommandParser

logger = logging.getLogger("execute_notebooks")

FOLDER = Path(__file__).resolve().parent
SECONDS = 600
"""A cell may take."""


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run every cell in a folder.

    Raises:
        CellExecutionError: if a cell fails.
    """
    options = {"kernel_name": "python3", "timeout": SECONDS, "record_timing": False, "coalesce_streams": True}
    return NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute()


def kept(notebook: NotebookNode) -> NotebookNode:
    """A notebook as it is committed: what it printed, and nothing of when and by what."""
    names = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = NotebookNode(kernelspec=names, language_info={"name": "python"})
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    logger.warning("%s", output.text)
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def refuse_paths(notebook: NotebookNode, name: str, folders: list[Path]) -> None:
    """Raise ValueError for a notebook that names a folder of this machine."""
    text = nbformat.writes(notebook)
    if found := [str(folder) for folder in folders if str(folder) in text]:
        raise ValueError(f"What a notebook prints must not depend on the machine; {name} names {', '.join(found)}.")


def main(argv: list[str] | None = None) -> None:
    """Parse, run, write."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="Notebooks (default: all in the folder of this file).")
    parser.add_argument("--output", type=Path, help="Folder to write to (default: where each notebook is).")
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for path in given.notebooks or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = kept(execute(nbformat.read(path, as_version=4), Path(folder)))
            refuse_paths(notebook, path.name, [Path(folder), FOLDER.parent, Path.home()])
        target = (given.output or path.parent) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
        logger.info("%s: run", path.name)


if __name__ == "__main__":
    main()
