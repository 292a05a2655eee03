"""What a stranger's file can do: nothing. No pickle is opened, no code of a folder or recipe runs, no path escapes.

And importing this project reaches for no network.
"""

import ast
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_encoder, tiny_tokenizer

import evaluate_hf
import train_hf
from arguments_multitask import TaskArguments
from configuration_multitask import check_task_name
from encoder_source import find_encoder
from modeling_multitask import MultiTaskModel
from recipe_arguments import parse_arguments
from task_sources import hub_or_local

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("", "benchmarks", "serving") for path in (REPOSITORY / folder).glob("*.py"))

OFFLINE_IMPORT = """
import socket, sys

def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        raise OSError(f"the import connects to {address}")

def refuse_names(host, *rest, **options):
    raise OSError(f"the import asks for the address of {host}")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = refuse_names
for name in sys.argv[1:]:
    __import__(name)
print("imported", len(sys.argv) - 1)
"""

DANGEROUS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "eval", "exec"}


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def dangers(tree: ast.Module) -> list[str]:
    """What in a source file could run code from data: pickle and its kin, `torch.load`, `yaml.load`, a shell."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.partition(".")[0] in DANGEROUS]
        if not isinstance(node, ast.Call):
            continue
        call, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe_torch = call.endswith("torch.load") and options.get("weights_only") != "True"
        unsafe_yaml = call.startswith("yaml.") and call != "yaml.safe_load" and call.endswith(("load", "load_all"))
        unsafe_yaml = unsafe_yaml and options.get("Loader") not in ("RecipeLoader", "yaml.SafeLoader")
        trusts = options.get("trust_remote_code") == "True"
        if unsafe_torch or unsafe_yaml or call in DANGEROUS or trusts or options.get("shell") == "True":
            found.append(call)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_opens_a_pickle_or_runs_what_it_reads(path: Path) -> None:
    opens_its_own_folder = ("handler.py", "recipe_results.py")  # what it lies in, what it has just trained
    allowed = ["pipeline"] if path.name in opens_its_own_folder else []
    assert dangers(ast.parse(path.read_text(encoding="utf-8"))) == allowed


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from joblib import load", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(t)",
     "yaml.load(t, Loader=yaml.Loader)", "yaml.unsafe_load(t)", "eval(t)", "run(c, shell=True)"],
)  # fmt: skip
def test_the_search_for_dangers_finds_them(code: str) -> None:
    assert dangers(ast.parse(code))


@pytest.fixture(scope="module")
def folder_of_bombs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model's folder whose weights, tokenizer, arguments and data are pickles, and the mark that they would leave."""
    folder = tmp_path_factory.mktemp("bombs")
    mark = folder.parent / "exploded"
    encoder = tiny_encoder("bert")
    encoder.config.save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    for name in ("pytorch_model.bin", "training_args.bin", "model.pkl", "train.pkl", "tokenizer.pkl", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    return folder, mark


def test_the_bombs_are_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").is_dir()


def test_a_folder_with_pickles_alone_is_refused_and_none_is_opened(folder_of_bombs: tuple[Path, Path]) -> None:
    folder, mark = folder_of_bombs
    with pytest.raises(ValueError, match=r"only pickled weights \(model.pkl, optimizer.pt, pytorch_model.bin"):
        find_encoder(str(folder))
    with pytest.raises(OSError, match="no file named model.safetensors"):
        MultiTaskModel.from_backbone(str(folder))
    with pytest.raises(ValueError, match=r"cannot be read"):
        hub_or_local("topic", TaskArguments(dataset=str(folder)))
    for file in ("train.pkl", "pytorch_model.bin"):
        with pytest.raises(ValueError, match="cannot be told from its ending"):
            hub_or_local("topic", TaskArguments(dataset=str(folder / file)))
    assert not mark.exists()


def test_evaluating_a_folder_with_pickles_alone_opens_none(
    folder_of_bombs: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    folder, mark = folder_of_bombs
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": "multitask", "encoder_config": settings, "tasks": {}})
    )
    (tmp_path / "r.yaml").write_text("tasks: {topic: {dataset: builtin:topic}}")
    with pytest.raises(SystemExit):
        evaluate_hf.main([str(folder), "--data", str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "out")])
    (folder / "config.json").write_text(json.dumps(settings))
    assert "cannot be opened: OSError: Error no file named model.safetensors" in capsys.readouterr().err
    assert not mark.exists()


def test_pickles_beside_safetensors_are_not_opened(folder_of_bombs: tuple[Path, Path]) -> None:
    folder, mark = folder_of_bombs
    tiny_encoder("bert").save_pretrained(folder)
    MultiTaskModel.from_backbone(find_encoder(str(folder)).path)
    (folder / "model.safetensors").unlink()
    assert not mark.exists()


def test_code_in_an_encoder_s_folder_is_not_run(encoder_folder: Callable[[str], Path], tmp_path: Path, capsys) -> None:
    """Not even after a question: a command that waits for an answer is one that somebody answers with yes."""
    folder = tmp_path / "encoder"
    tiny_encoder("bert").save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "stranger", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'exploded')!r})")
    (tmp_path / "r.yaml").write_text(f"encoder: {folder}\ntasks: {{topic: {{dataset: 'builtin:topic'}}}}\n")
    with pytest.raises(SystemExit):
        train_hf.main([str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "out"), "--nano"])
    printed = capsys.readouterr()
    assert "contains custom code" in printed.err and "Do you wish" not in printed.out + printed.err
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [exploded]", "!!python/name:os.mkdir", "!!python/object/new:os.mkdir {}"]
)
def test_a_recipe_runs_no_code(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"encoder: {tag}\n")
    for words in (["r.yaml"], ["--tasks.topic.kind", tag], [f"--sampling_shares={tag}"]):
        with pytest.raises(SystemExit):
            parse_arguments([*words, "--output_dir", "out"])
        assert "could not determine a constructor for the tag" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.slow
def test_importing_every_module_reaches_for_no_network(repository: Path, tmp_path: Path) -> None:
    names = [path.stem for path in repository.glob("*.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE_IMPORT, *names],
        cwd=repository,
        env={**environment, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"imported {len(names)}" and len(names) > 15
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# ---------------------------------------------------------------------------------------------------------------------
# Paths


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A data_root, and beside it a folder that nobody gave."""
    for name in ("root/news", "secret"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train.csv").write_text("text,label\na,x\nb,y\n")
    return tmp_path / "root"


def read(root: Path, **fields: Any) -> Any:
    """Open a task below data_root."""
    return hub_or_local("topic", TaskArguments(**{"dataset": "someone/news", **fields}), str(root), offline=True)


def test_a_folder_below_data_root_is_read(roots: Path) -> None:
    assert read(roots).location == "data_root/news"


@pytest.mark.parametrize("name", ["../secret", "..", ".", "news/../../secret", "a\\..\\secret", "C:secret", "\0", ""])
def test_no_name_leads_out_of_data_root(roots: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be the plain name of a folder below data_root"):
        read(roots, name=name)
    with pytest.raises(ValueError, match="must be the plain name of a folder below data_root"):
        read(roots, name=str(roots.parent / "secret"))


@pytest.mark.parametrize("dataset", ["someone/..", "someone/../..", "a/b/../../../secret", "someone/."])
def test_no_dataset_id_leads_out_of_data_root(roots: Path, dataset: str) -> None:
    with pytest.raises(ValueError, match="Task 'topic': "):
        read(roots, dataset=dataset)


def test_a_link_below_data_root_leads_nowhere_else(roots: Path) -> None:
    (roots / "linked").symlink_to(roots.parent / "secret", target_is_directory=True)
    with pytest.raises(ValueError, match=r"'linked' is a link out of data_root"):
        read(roots, dataset="someone/linked")


def test_a_data_root_that_is_a_link_itself_is_read(roots: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(roots, target_is_directory=True)
    assert read(tmp_path / "link").location == "data_root/news"


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc/x", "..", ".", "a\\b", "a\0b", "a:b", "~", "a\nb"])
def test_no_task_name_makes_a_file_elsewhere(name: str, encoder_folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A task name becomes a module name"):
        check_task_name(name)
    recipe = {"encoder": str(encoder_folder("bert")), "tasks": {name: {"dataset": "builtin:topic"}}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    with pytest.raises(SystemExit):
        train_hf.main([str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "deep" / "out")])
    assert [path.name for path in tmp_path.rglob("*")] == ["r.yaml"]
