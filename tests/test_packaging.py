"""What is installed: the wheel holds every module, names what it needs, and trains and loads without the sources."""

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SERVING = sorted(path.stem for path in (REPOSITORY / "serving").glob("[!_]*.py"))
EXTRAS_BLOCKED = (
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "sentence_transformers",
    "tensorboard",
    "tensorboardX",
)
"""Packages of optional extras that the installed wheel must do without; the encoder's is the one it may use."""

LOAD = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
embedding = model.encode(["The new phone is fast."], tokenizer)
facts = {"tasks": sorted(model.config.tasks), "shape": list(embedding.shape), "module": type(model).__module__}
print(json.dumps(facts))
"""


def read_setup() -> configparser.ConfigParser:
    """`setup.cfg`, parsed."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return setup


def lines_of(section: str, option: str) -> list[str]:
    """The entries of a multi-line option of `setup.cfg`."""
    return read_setup()[section][option].split("\n")[1:]


def project_name(requirement: str) -> str:
    """`Types_PyYAML>=6` -> `types-pyyaml`."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, f"{requirement!r} does not begin with a project name"
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def pinned() -> dict[str, str]:
    """Project -> version of `constraints.txt`."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {project_name(name): version for name, version in pins}


def unguarded_imports(path: Path) -> set[str]:
    """Top-level names that a module imports when it is imported: neither inside functions nor in `try`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def requirements() -> list[str]:
    """All requirements of the base install and of every extra."""
    extras = read_setup()["options.extras_require"]
    return lines_of("options", "install_requires") + [line for name in extras for line in extras[name].split("\n")[1:]]


def test_setup_names_every_module() -> None:
    assert lines_of("options", "py_modules") == sorted(path.stem for path in REPOSITORY.glob("*.py"))


def test_every_package_imported_at_the_top_is_required() -> None:
    providers = metadata.packages_distributions()
    required = {project_name(line) for line in lines_of("options", "install_requires")}
    modules = {path.stem for path in REPOSITORY.glob("*.py")}
    for path in REPOSITORY.glob("*.py"):
        for name in unguarded_imports(path) - modules - sys.stdlib_module_names:
            projects = {project_name(provider) for provider in providers.get(name, [name])}
            assert projects & required, f"{path.name} imports {name}, which install_requires of setup.cfg does not name"


def test_constraints_pin_every_requirement_to_the_version_that_runs_here() -> None:
    pins = pinned()
    for requirement in requirements():
        name = project_name(requirement)
        assert name in pins, f"constraints.txt has no line for {requirement}"
    assert "+" not in "".join(pins.values()), "a local version (+cpu) is on no public index"
    assert {name: pins[name] for name in ("torch", "transformers", "datasets")} == {
        name: metadata.version(name).split("+")[0] for name in ("torch", "transformers", "datasets")
    }


def run(command: list[str | Path], cwd: Path) -> str:
    """Standard output of a command that must succeed, run without this project on the module path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


def copy_sources(target: Path) -> Path:
    """A copy of what is, or would be, committed: building leaves folders behind that do not belong in the sources."""
    listing = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY)
    for name in filter(None, listing.split("\0")):
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((REPOSITORY / name).read_bytes())
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources with the setuptools of this environment: nothing is downloaded."""
    sources = copy_sources(tmp_path_factory.mktemp("sources"))
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "--wheel-dir", folder, sources], cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment: the wheel, and this environment's packages but neither our sources nor extras.

    A folder that comes by a `.pth` file has its own `.pth` files ignored, so an editable install stays behind.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site_packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    packages = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site_packages / "packages.pth").write_text("\n".join(packages), encoding="utf-8")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS_BLOCKED!r}))"
    (site_packages / "without_extras.pth").write_text(blocked, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, wheel], cwd=folder)
    return python


@pytest.mark.slow
def test_the_wheel_imports_without_the_sources(installed: Path, tmp_path: Path) -> None:
    modules = lines_of("options", "py_modules") + [f"serving.{name}" for name in SERVING]
    script = f"import importlib, json; print(json.dumps([importlib.import_module(n).__file__ for n in {modules!r}]))"
    files = json.loads(run([installed, "-c", script], cwd=tmp_path).splitlines()[-1])
    environment = installed.parent.parent
    assert all(Path(file).is_relative_to(environment) for file in files)


@pytest.mark.slow
def test_the_wheel_trains_saves_and_loads_without_the_sources_and_extras(installed: Path, tmp_path: Path) -> None:
    recipe = installed.parent.parent / "share" / "multitask-sentence-transformer" / "recipes" / "quickstart.yaml"
    output = tmp_path / "model"
    run([installed, "-m", "train_hf", recipe, "--nano", "--output_dir", output], cwd=tmp_path)
    results = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
    loaded = json.loads(run([installed, "-c", LOAD, output], cwd=tmp_path).splitlines()[-1])
    assert {f"test_{task}_rows" for task in loaded["tasks"]} <= set(results)
    assert len(loaded["tasks"]) == 5
    assert loaded["shape"] == [1, 384]
    assert loaded["module"].startswith("transformers_modules")
