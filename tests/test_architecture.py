"""The shape of the repository: who may import whom, what the Hub files need, and what no file may say."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

REPOSITORY = Path(__file__).resolve().parent.parent
HUB_MODULES = (
    "configuration_multitask",
    "handler",
    "losses_multitask",
    "modeling_multitask",
    "pipeline_multitask",
    "sentence_transformers_files",
)
"""The files that travel with the weights."""

LIBRARY: dict[str, set[str]] = {
    "configuration_multitask": set(),
    "pipeline_multitask": {"configuration_multitask"},
    "handler": set(),
    "losses_multitask": {"configuration_multitask"},
    "sentence_transformers_files": set(),
    # `handler` by name only, so that transformers copies it along
    "modeling_multitask": {
        "configuration_multitask",
        "handler",
        "losses_multitask",
        "pipeline_multitask",
        "sentence_transformers_files",
    },
    "data_collator": {"configuration_multitask"},
    "arguments_multitask": {"configuration_multitask"},
    "command_help": set(),
    "recipe_arguments": {"arguments_multitask", "command_help", "configuration_multitask"},
    "cased_vocabulary": set(),
    "cpu_training": set(),
    "example_data": {"command_help", "configuration_multitask"},
    "input_errors": set(),
    "encoder_source": {"configuration_multitask"},
    "saved_model": {"configuration_multitask", "encoder_source", "input_errors", "modeling_multitask"},
    "task_sources": {"configuration_multitask", "arguments_multitask", "example_data"},
    "task_schema": {"configuration_multitask", "arguments_multitask"},
    "task_rows": {"configuration_multitask", "task_schema"},
    "task_data": {"configuration_multitask", "arguments_multitask", "task_rows", "task_schema", "task_sources"},
    "encoder_cache": {"configuration_multitask", "data_collator", "modeling_multitask"},
    "lora_adapters": {"configuration_multitask", "encoder_cache", "modeling_multitask"},
    "task_features": {"configuration_multitask", "task_data"},
    "distillation_multitask": {
        "configuration_multitask",
        "encoder_source",
        "input_errors",
        "modeling_multitask",
        "saved_model",
        "task_data",
        "task_features",
    },
    "task_sampler": {"configuration_multitask"},
    "task_balancing": set(),
    "task_metrics": {"configuration_multitask"},
    "task_plots": {"configuration_multitask", "task_metrics"},
    "calibration": {"configuration_multitask", "task_metrics"},
    "task_predictions": {"configuration_multitask", "task_metrics"},
    "task_report": {
        "calibration",
        "configuration_multitask",
        "task_data",
        "task_metrics",
        "task_plots",
        "task_predictions",
    },
    "task_comparison": {"task_metrics", "task_predictions"},
    "gradient_cosines": {"task_plots"},
    "head_drift": {"configuration_multitask", "data_collator", "task_metrics"},
    "trained_start": {"arguments_multitask", "configuration_multitask", "modeling_multitask", "saved_model"},
    "model_card": {"configuration_multitask", "task_data", "task_metrics", "task_report"},
    "recipe_runs": {"recipe_arguments", "model_card", "run_checkpoints"},
    "single_task_recipe": {"arguments_multitask", "recipe_arguments", "configuration_multitask"},
    "comparison_report": {"gradient_cosines", "single_task_recipe", "task_comparison", "task_plots"},
    "hub_folder": set(),
    "hub_repository": {"hub_folder", "input_errors"},
    "export_scores": {
        "recipe_arguments",
        "data_collator",
        "modeling_multitask",
        "task_data",
        "task_features",
        "task_metrics",
    },
    "native_export": {"configuration_multitask", "modeling_multitask", "sentence_transformers_files"},
    "native_siblings": {
        "configuration_multitask",
        "hub_folder",
        "hub_repository",
        "model_card",
        "native_export",
    },
    "hyperparameter_search": {"arguments_multitask", "recipe_arguments", "configuration_multitask"},
    "graph_export": {"configuration_multitask", "graph_model", "modeling_multitask"},
    "graph_model": {"configuration_multitask", "modeling_multitask", "pipeline_multitask"},
    "prediction_engine": {"graph_model", "input_errors", "saved_model"},
    "table_files": {"configuration_multitask"},
    "batch_prediction": {"configuration_multitask", "table_files"},
    "non_finite_guard": {"task_sampler"},
    "parameter_groups": set(),
    "run_checkpoints": set(),
    "training_stages": {"parameter_groups", "trained_start"},
    "trainer_multitask": {
        "arguments_multitask",
        "hub_folder",
        "lora_adapters",
        "model_card",
        "non_finite_guard",
        "parameter_groups",
        "run_checkpoints",
        "task_balancing",
        "task_metrics",
        "task_sampler",
    },
    "training_run": {
        "arguments_multitask",
        "cased_vocabulary",
        "configuration_multitask",
        "cpu_training",
        "data_collator",
        "distillation_multitask",
        "encoder_cache",
        "encoder_source",
        "input_errors",
        "lora_adapters",
        "modeling_multitask",
        "recipe_arguments",
        "run_checkpoints",
        "task_data",
        "task_features",
        "task_metrics",
        "task_sampler",
        "trained_start",
        "trainer_multitask",
        "training_stages",
    },
}
"""Module -> the modules of ours it may import. A new module needs a row; a new arrow needs a reason."""

COMMANDS = ("train_hf", "evaluate_hf", "compare_hf", "search_hf", "predict_hf", "export_hf", "publish_hf", "serve_hf")
"""Assembly: they may import every module above, and nothing imports them."""

SERVING: dict[str, set[str]] = {
    "__init__": set(),
    "limits": set(),
    "metrics": set(),
    "refusal": set(),
    "bodies": {"handler", "pipeline_multitask"},
    "engine": {"configuration_multitask", "graph_model", "pipeline_multitask", "prediction_engine"},
    "batcher": {"pipeline_multitask", "serving.limits"},
    "service": {"serving.batcher", "serving.engine", "serving.limits", "serving.metrics"},
    "gate": {"serving.refusal", "serving.service"},
    "api": {
        "handler",
        "pipeline_multitask",
        "serving.batcher",
        "serving.bodies",
        "serving.engine",
        "serving.gate",
        "serving.limits",
        "serving.refusal",
        "serving.service",
    },
    "server": set(),
}
"""Module of the package `serving` -> the modules of ours it may import; of the others, only a command imports it."""

ALLOWED_IMPORTS = LIBRARY | {command: set(LIBRARY) for command in COMMANDS}
MODULES = sorted(path.stem for path in REPOSITORY.glob("*.py"))

# Folders of one machine; a path with a placeholder (`outputs/`, `DIR/`) is what documentation should say.
MACHINE_PATH = re.compile(r"(?<![\w.}-])/(?:home|root|work|farm|Users|tmp/\w+|mnt)/|\.\./shared\b|\b[A-Z]:\\Users\\")


def parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree: ast.Module) -> set[str]:
    """Top-level names of all modules imported at any depth, `from .x import` included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    """The modules of this repository that one of them imports."""
    return imported_modules(parse(REPOSITORY / f"{module}.py")) & set(MODULES)


def serving_imports(module: str) -> set[str]:
    """The modules of this repository that one of the package `serving` imports; those of the package with its name."""
    tree = parse(REPOSITORY / "serving" / f"{module}.py")
    found = imported_modules(tree) & set(MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "serving":
            found |= {f"serving.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("serving."):
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "serving"}
    return found


def text_files() -> list[Path]:
    """Files that are committed or would be, as text; without git (an unpacked archive) there is nothing to ask."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip(f"git lists no files here: {listing.stderr.strip()}")
    paths = [REPOSITORY / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:1024]]


def python_files() -> list[Path]:
    """All Python files that are committed or would be."""
    return [path for path in text_files() if path.suffix == ".py"]


def public_definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Classes and functions of a module that users may call."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def test_every_module_has_a_row_and_every_row_a_module() -> None:
    assert set(ALLOWED_IMPORTS) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_row_allows(module: str) -> None:
    assert own_imports(module) <= ALLOWED_IMPORTS.get(module, set())


def test_every_module_of_the_package_has_a_row() -> None:
    assert set(SERVING) == {path.stem for path in (REPOSITORY / "serving").glob("*.py")}


@pytest.mark.parametrize("module", SERVING)
def test_a_module_of_the_package_imports_only_what_its_row_allows(module: str) -> None:
    assert serving_imports(module) <= SERVING[module]


def test_the_package_has_no_cycle_and_only_its_command_imports_it() -> None:
    arrows = {f"serving.{module}": allowed for module, allowed in SERVING.items()}
    assert set(TopologicalSorter(arrows).static_order()) >= set(arrows)
    users = {module for module in MODULES if "serving" in imported_modules(parse(REPOSITORY / f"{module}.py"))}
    assert users == {"serve_hf"}


def test_nothing_imports_a_command() -> None:
    assert {module for module in MODULES if own_imports(module) & set(COMMANDS)} == set()
    assert {module for module in SERVING if serving_imports(module) & set(COMMANDS)} == set()


def test_the_arrows_have_no_cycle() -> None:
    assert set(TopologicalSorter(ALLOWED_IMPORTS).static_order()) == set(ALLOWED_IMPORTS)


def test_no_module_shadows_an_installed_or_standard_one() -> None:
    libraries = {"accelerate", "datasets", "evaluate", "tokenizers", "torch", "transformers", *sys.stdlib_module_names}
    assert libraries.isdisjoint(MODULES)


@pytest.mark.parametrize("module", HUB_MODULES)
def test_transformers_finds_that_a_hub_file_needs_only_torch_and_transformers(module: str) -> None:
    needed = set(get_imports(REPOSITORY / f"{module}.py"))
    assert needed - sys.stdlib_module_names <= {"torch", "transformers", "safetensors"}  # the last comes with it


def test_no_file_names_a_folder_of_one_machine() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_the_search_for_machine_paths_finds_them() -> None:
    for path in ("home/ann/model", "root/.cache/x", "work/data", "tmp/run/1"):
        assert MACHINE_PATH.search(f"folder = '/{path}'")
    for text in ("https://example.org/home/page", "outputs/home/x", "{folder}/home/", "a/mnt/b"):
        assert not MACHINE_PATH.search(text)


def test_every_python_file_says_what_it_is() -> None:
    assert [str(path.relative_to(REPOSITORY)) for path in python_files() if not ast.get_docstring(parse(path))] == []


@pytest.mark.parametrize("module", [*MODULES, *(f"serving/{module}" for module in SERVING)])
def test_every_public_function_and_class_has_a_docstring(module: str) -> None:
    definitions = public_definitions(parse(REPOSITORY / f"{module}.py"))
    assert [node.name for node in definitions if not ast.get_docstring(node)] == []
