"""The documents tell the truth: what README and guides show can be run, links lead somewhere, tables are whole.

The figures of the README are those of the results files, and the file tree names every module. What `--help` says is in
`test_command_help`; that the site builds without a warning, in `test_site`.
"""

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import check_accepted, command_lines

from arguments_multitask import TaskArguments
from modeling_multitask import MultiTaskModel
from recipe_arguments import parse_arguments

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
GUIDE = REPOSITORY / "docs" / "user_guide.md"


def blocks(language: str, page: Path = REPOSITORY / "README.md") -> list[str]:
    """Code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def page_name(page: Path) -> str:
    """A page's place in the repository, as the name of its tests."""
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses(recipe: Path, tmp_path: Path) -> None:
    """Recipe and nano form are valid, and the recipe opens with its purpose and command."""
    _, data, training = parse_arguments([str(recipe), "--nano", "--output_dir", str(tmp_path)])
    assert data.tasks and training.num_train_epochs == 1
    assert recipe.read_text().startswith("#") and f"recipes/{recipe.name}" in recipe.read_text()


def test_the_readme_names_every_recipe_and_module() -> None:
    """A file that the tree forgets is a file that nobody finds."""
    readme = (REPOSITORY / "README.md").read_text()
    for path in [*RECIPES, *REPOSITORY.glob("*.py"), *(REPOSITORY / "serving").glob("[!_]*.py")]:
        assert (f"`{path.stem}`" if path.suffix == ".yaml" else path.name) in readme, path.name


def test_the_readme_describes_every_field_of_a_task() -> None:
    """The table of fields is complete, but for two that only files without header need."""
    readme = (REPOSITORY / "README.md").read_text()
    fields = {field.name for field in dataclasses.fields(TaskArguments)}
    assert {name for name in fields if f"`{name}`" not in readme} == set()


def test_the_readmes_recipe_parses(tmp_path: Path) -> None:
    """The YAML block is a recipe."""
    (block,) = blocks("yaml")
    (tmp_path / "my_recipe.yaml").write_text(block)
    _, data, _ = parse_arguments([str(tmp_path / "my_recipe.yaml"), "--output_dir", str(tmp_path)])
    assert list(data.tasks) == ["topic", "ner"]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_that_a_page_shows_is_accepted(page: Path) -> None:
    """By the command's own parser; recipes that a page only supposes are replaced by one that is there."""
    indented = [line for line in page.read_text().splitlines() if line.startswith("    python ")]
    for words in command_lines("\n".join([*blocks("bash", page), *indented])):
        check_accepted(words)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    """`make x` in a page is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"`make ([a-z-]+)", page.read_text())
    named += re.findall(r"^make ([a-z-]+)", "\n".join(blocks("bash", page)), flags=re.MULTILINE)
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_relative_link_of_a_page_leads_to_a_file(page: Path) -> None:
    """Or a folder; anchors and pages of the site are checked where it is built (`test_site`)."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [
        link for link in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in link and not link.startswith("mailto")
    ]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_python_file_that_a_page_names_exists(page: Path) -> None:
    """In the repository, in one of its folders, or as a block of the page that says to save it."""
    text = page.read_text()
    named = set(re.findall(r"`(?:python )?(\w[\w/]*\.py)\b", text))
    named -= {"examples/NAME.py", *re.findall(r"^# (\w+\.py)$", text, flags=re.MULTILINE)}
    places = [REPOSITORY / folder for folder in (".", "serving", "tests", "examples")]
    assert {name for name in named if not any((place / name).is_file() for place in places)} == set()


def test_the_architecture_page_names_what_is_in_the_code() -> None:
    """Modules of its first table, keys of the batch, and constants, where something is to be added."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    modules = re.findall(r"^\| [\w, ]+ \| `(\w+)` \|", sections["The way of a row"], flags=re.MULTILINE)
    assert len(modules) == 9 and all((REPOSITORY / f"{name}.py").is_file() for name in modules)
    keys = re.findall(r"^\| (`.*?) \|", sections["The batch"], flags=re.MULTILINE)
    keys = [name for cell in keys for name in re.findall(r"`(\w+)`", cell)]
    assert "pair_items" in keys and set(keys) <= set(inspect.signature(MultiTaskModel.forward).parameters)
    code = "".join(path.read_text() for path in REPOSITORY.glob("*.py"))
    constants = re.findall(r"`([A-Z][A-Z_]+)`", sections["Where to add"])
    assert constants and [name for name in constants if not re.search(rf"^{name}\b.*=", code, re.MULTILINE)] == []


def test_the_readme_and_the_guide_show_commands() -> None:
    """The search for commands finds some: a test over none would pass."""
    for page in (REPOSITORY / "README.md", GUIDE):
        assert len(command_lines("\n".join(blocks("bash", page)))) > 8


def test_help_works() -> None:
    """As a process of its own; `test_command_help` has every command, in this one."""
    command = [sys.executable, "benchmarks/serving_load.py", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Measure the HTTP API") and "usage: serving_load.py" in done.stdout


@pytest.mark.slow
def test_the_readmes_python_runs_on_the_quickstart_model(tmp_path: Path) -> None:
    """The block runs word for word in a folder with a model of the quickstart recipe, and prints what it says."""
    train = [sys.executable, "train_hf.py", "recipes/quickstart.yaml", "--max_steps", "40", "--eval_strategy", "no"]
    train += ["--save_strategy", "no", "--load_best_model_at_end", "false"]
    subprocess.run([*train, "--output_dir", str(tmp_path / "outputs" / "quickstart")], cwd=REPOSITORY, check=True)
    (block,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["(2, 384)", "Weather"]


def words_alone(line: str) -> str:
    """A printed line without its numbers, which chance and machine decide, and with single spaces."""
    return " ".join(re.sub(r"[-+]?\d[\d,.]*", "#", line).split())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_user_guide_runs_as_written(tmp_path: Path) -> None:
    """Its files and commands in order, in a folder that shows the repository; what it prints is what the page says.

    Left out are `make`, which has tests of its own, and the server, which does not end. Numbers may differ.
    """
    for path in [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("*.md"), REPOSITORY / "recipes", REPOSITORY / "serving"]:
        (tmp_path / path.name).symlink_to(path)
    for language in ("yaml", "python"):
        for block in blocks(language, GUIDE):
            (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for language, block in re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL):
        if language == "bash":
            printed = None
        if language == "bash" and not re.match("make|python serve_hf|curl", block):
            done = subprocess.run(
                ["bash", "-e", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"
            printed, ran = {words_alone(line) for line in done.stdout.splitlines()}, ran + 1
        elif language == "text" and printed is not None:
            assert {words_alone(line) for line in block.splitlines()} - printed == set()
    assert ran > 8


def test_the_readmes_training_rates_are_those_of_the_benchmark() -> None:
    """A system's row holds its median rate, and how many times faster ours is, without and with frozen embeddings."""
    report = json.loads((REPOSITORY / "benchmarks" / "results" / "train_throughput.json").read_text())
    rows = [row for row in (REPOSITORY / "README.md").read_text().splitlines() if row.startswith("|")]
    for figures in report["systems"].values():
        expected = [f"{figures['median']:.1f}", *(f"{ratio:.2f}" for ratio in figures["times_faster"].values())]
        assert any(row.split("|")[2:-1] == [f" {figure} " for figure in expected] for row in rows), expected


def test_the_readmes_inference_figures_are_those_of_the_benchmark() -> None:
    """Every system's rate, rounded, in the order of the precisions; every ratio."""
    report = json.loads((REPOSITORY / "benchmarks" / "results" / "inference_speed.json").read_text())
    section = (REPOSITORY / "README.md").read_text().partition("Texts answered a second")[2].partition("\n## ")[0]
    rates = report["texts_per_second"]
    rows = [tuple(f"{rates[dtype][name]:.0f}" for dtype in ("float32", "bfloat16")) for name in rates["float32"]]
    rows += [tuple(f"{rates['graphs'][f'openvino {name}']:.0f}" for name in ("fp32", "bf16"))]
    for row in rows:
        assert f" | {row[0]} | {row[1]} |" in section, row
    for name in ("onnx fp32", "onnx int8"):
        assert f"{rates['graphs'][name]:.0f}" in section, name
    for name, ratio in report["ratios"].items():
        assert f"{ratio:.{1 if name.endswith('separate') else 2}f}" in section, name


@pytest.mark.parametrize(
    "path",
    [path for recipe in RECIPES if (path := REPOSITORY / "benchmarks" / "results" / f"{recipe.stem}.json").exists()],
    ids=lambda path: path.stem,
)
def test_the_readmes_figures_are_those_of_the_results_files(path: Path) -> None:
    """The mean of every scored task's primary metric stands in the README, rounded as it is there."""
    report = json.loads(path.read_text())
    readme = (REPOSITORY / "README.md").read_text()
    primaries = ("accuracy", "f1", "spearman")
    for name in report["runs"][0]["protocol"]:
        keys = [f"test_{name}_{metric}" for metric in primaries if f"test_{name}_{metric}" in report["summary"]]
        assert f"{report['summary'][keys[0]]['mean']:.4f}" in readme, keys[0]
    assert f"{len(report['runs'])} seed" in readme and report["hardware"]["cpu"] in readme
