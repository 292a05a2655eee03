"""The documents tell the truth: README blocks and recipes run, `--help` works, the recipe table names every field."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from arguments_multitask import TaskArguments
from recipe_arguments import parse_arguments

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


def blocks(language: str) -> list[str]:
    """Code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)


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


def test_every_make_target_of_the_readme_exists() -> None:
    """`make x` in the README is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", (REPOSITORY / "README.md").read_text()))
    assert named and named <= targets


@pytest.mark.parametrize(
    "command",
    [
        "train_hf.py",
        "evaluate_hf.py",
        "export_hf.py",
        "publish_hf.py",
        "compare_hf.py",
        "serve_hf.py",
        "example_data.py",
        "benchmarks/freezing.py",
        "benchmarks/recipe_results.py",
        "benchmarks/inference_speed.py",
        "benchmarks/large_data.py",
        "benchmarks/serving_load.py",
        "benchmarks/train_throughput.py",
        "notebooks/execute_notebooks.py",
    ],
)
def test_help_works(command: str) -> None:
    """And says how the command is called and what it takes."""
    done = subprocess.run(
        [sys.executable, command, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith("usage") and Path(command).name in done.stdout and "--" in done.stdout


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
