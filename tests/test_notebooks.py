"""The notebooks: complete as they are committed, free of what belongs to one machine, and they run."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_architecture import MACHINE_PATH

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook, which must be valid as it is."""
    notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prints(source: str) -> bool:
    """Whether a cell writes something: it prints outside of functions, or publishes, which prints."""
    calls = [
        node for part in ast.parse(source).body if not isinstance(part, ast.FunctionDef) for node in ast.walk(part)
    ]
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "publish_hf.main") for node in calls)


def text_of(cell: nbformat.NotebookNode) -> str:
    """All that a cell wrote."""
    return "".join(output.get("text", "") for output in cell.outputs)


def test_there_are_three_and_they_are_numbered() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_"]


@each_notebook
def test_every_cell_ran_in_order_and_what_it_printed_is_kept(path: Path) -> None:
    notebook = read(path)
    assert notebook.nbformat == 4
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    for cell in code_cells(notebook):
        kinds = {output.output_type for output in cell.outputs}
        assert kinds == ({"stream"} if prints(cell.source) else set()), cell.source
        assert not prints(cell.source) or text_of(cell).strip()


@each_notebook
def test_nothing_of_one_machine_is_kept(path: Path) -> None:
    """No folders, no times, no versions, no progress bars, no warnings."""
    notebook = read(path)
    assert notebook.metadata == {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert cell.metadata == {}
    for cell in code_cells(notebook):
        assert {output.get("name") for output in cell.outputs} <= {"stdout"}
        said = text_of(cell)
        assert not MACHINE_PATH.search(said) and "site-packages" not in said
        assert not re.search(r"runtime|seconds|it/s|\d%\|", said), said


@each_notebook
def test_a_notebook_teaches_before_it_computes(path: Path) -> None:
    """It opens with a title, text stands before every cell, and its links lead somewhere."""
    cells = read(path).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith(f"# {path.name[0]}. ")
    for before, cell in zip(cells, cells[1:], strict=False):
        assert (before.cell_type, cell.cell_type) != ("code", "code"), cell.source
    for cell in cells:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source if cell.cell_type == "markdown" else ""):
            assert (FOLDER / target).exists(), target


def run_command(path: Path, output: Path) -> subprocess.CompletedProcess:
    """`execute_notebooks.py` on one notebook, with the sources of this repository."""
    command = [sys.executable, str(FOLDER / "execute_notebooks.py"), str(path), "--output", str(output)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@each_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    """From top to bottom, offline; it comes out with the cells it had, and each prints as many lines as is kept."""
    done = run_command(path, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    kept, new = (code_cells(read(folder / path.name)) for folder in (FOLDER, tmp_path))
    assert [cell.source for cell in kept] == [cell.source for cell in new]
    for before, after in zip(kept, new, strict=True):
        assert bool(text_of(before)) == bool(text_of(after)), after.source


def one_cell(folder: Path, source: str) -> Path:
    """A notebook of one cell."""
    path = folder / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    return path


@pytest.mark.slow
def test_a_cell_that_fails_and_one_that_names_a_folder_here_end_the_command(tmp_path: Path) -> None:
    output = tmp_path / "output"
    for source, said in (("1 / 0", "ZeroDivisionError"), ("import os; print(os.getcwd())", "depend on the machine")):
        done = run_command(one_cell(tmp_path, source), output)
        assert done.returncode != 0 and said in done.stderr
    assert not output.exists()
    done = run_command(one_cell(tmp_path, "import sys; print(1); print(2, file=sys.stderr)"), output)
    assert done.returncode == 0 and text_of(code_cells(read(output / "one.ipynb"))[0]) == "1\n"
