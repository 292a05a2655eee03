"""What of a model folder its readers need, and whether it works without this project.

A run's folder also holds checkpoints, logs and Trainer's own files, none of which anybody needs who opens the model.
Nothing here touches a network; `hub_repository` uploads.

    copy_published(Path("outputs/news"), staged)
    check_elsewhere(staged, model, tokenizer)       # in a fresh process, before anybody else opens it
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

PUBLISHED = re.compile(
    r"""config\.json | model[-\w]*\.safetensors(\.index\.json)?            # weights, in one file or in shards
    | \w+_multitask\.py | handler\.py | sentence_transformers_files\.py     # code
    | tokenizer(_config)?\.json | (special_tokens_map|added_tokens|vocab)\.json | (vocab|merges)\.txt | [\w.]+\.model
    | modules\.json | (config_)?sentence_\w+\.json | \d+_\w+/(config\.json|model\.safetensors)  # sentence-transformers
    | README\.md | (curves|confusion_[\w-]+)\.png | (all|train|eval|test|validation)_results\.json | run_facts\.json
    | comparison\.json""",
    re.VERBOSE,
)
"""Paths in a model folder that are published; all others stay at home."""
TOLERANCE = 1e-6
"""Largest difference between here and elsewhere. On as many threads it is 0; other threads may round otherwise."""
CHECK_TEXTS = ("Anna won the game in Paris.", "The new phone is fast, and the team is very good today.", "No?")

READER_START = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            raise ModuleNotFoundError(f"{name} is not importable here", name=name)

folder, out, texts, threads, hidden = *sys.argv[1:3], *map(json.loads, sys.argv[3:6])
sys.meta_path.insert(0, Hidden())
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

torch.set_num_threads(threads)
"""
"""How a reader begins: this project hidden, as many threads as here."""

READER = """
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
batch = tokenizer(texts, padding=True, return_tensors="pt")
pairs = {"pair_" + name: batch[name].flip(0) for name in ("input_ids", "attention_mask")}
with torch.no_grad():
    output = model(**batch, **pairs, pair_items=torch.arange(len(texts)))
found = {"logits of " + name: logits for name, logits in output.logits.items()}
found |= {"token ids": batch["input_ids"], "embedding": output.sentence_embedding}
"""
"""Opens a folder with its own code alone; `found` is what it answers."""

READER_END = """
save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)
"""


def published_files(folder: Path) -> list[Path]:
    """The files of a model folder that its readers need, relative to it and sorted."""
    relative = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in relative if PUBLISHED.fullmatch(path.as_posix()))


def copy_published(folder: Path, target: Path) -> None:
    """Copy what is published; in JSON files, a path of this machine becomes the name of its last part."""
    for path in published_files(folder):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, target / path)
    texts = {path: path.read_text(encoding="utf-8") for path in target.glob("*.json") if is_report(path)}
    private = {word for text in texts.values() for word in private_paths(json.loads(text))}
    for path, text in texts.items():
        for word in sorted(private, key=len, reverse=True):
            text = text.replace(json.dumps(word)[1:-1], json.dumps(Path(word).name)[1:-1])
        path.write_text(text, encoding="utf-8")


def is_report(path: Path) -> bool:
    """Whether a file says how a model came about, and so may say where on this machine."""
    return path.name.endswith(("_results.json", "_facts.json", "comparison.json"))


def private_paths(value: Any) -> set[str]:
    """The strings in JSON values that are absolute paths."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return {path for part in parts for path in private_paths(part)}
    return {value} if isinstance(value, str) and Path(value).expanduser().is_absolute() else set()


def check_elsewhere(folder: Path, model: Any, tokenizer: Any) -> float:
    """Open a folder in a fresh process, in an empty directory and without this project, and compare every answer.

    Args:
        folder (Path): What would be published.
        model (MultiTaskModel): The same model, opened here.
        tokenizer: Its tokenizer.

    Returns:
        The largest difference of an embedding or a logit; it is at most `TOLERANCE`.

    Raises:
        ValueError: if the folder does not open there, or answers otherwise; the message says what of.
    """
    return compare_answers(answers_here(model, tokenizer), answers_elsewhere(folder))


def answers_elsewhere(folder: Path, reader: str = READER) -> dict[str, Tensor]:
    """What a reader's code finds in a folder, in a fresh process and an empty directory, without this project.

    Raises:
        ValueError: if it fails there.
    """
    with tempfile.TemporaryDirectory() as empty:
        out = Path(empty) / "answers.safetensors"
        arguments = [str(folder.resolve()), str(out), json.dumps(CHECK_TEXTS), json.dumps(torch.get_num_threads())]
        hidden = [path.stem for path in folder.glob("*.py")]  # so that only the folder's own copies can answer
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"HF_MODULES_CACHE": str(Path(empty) / "modules"), "HF_HUB_OFFLINE": "1"}
        code = READER_START + reader + READER_END
        command = [sys.executable, "-I", "-c", code, *arguments, json.dumps(hidden)]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
            raise ValueError(
                f"A published folder must open without this project; {folder.name} does not: {reason} Save the model "
                "again with save_pretrained, which writes its code beside it."
            )
        return load_file(out)


def compare_answers(here: dict[str, Tensor], there: dict[str, Tensor], tolerance: float = TOLERANCE) -> float:
    """The largest difference of an answer; raises ValueError if it is more than `tolerance`."""
    differences = {name: difference(here[name], there.get(name)) for name in here}
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] > tolerance:
        raise ValueError(
            f"A published folder must answer elsewhere as it does here; in a fresh process its {worst} differ by "
            f"{differences[worst]:.2g} (at most {tolerance:g}). Save the model again with save_pretrained, so that "
            "weights, code and tokenizer are of one version."
        )
    return differences[worst]


def difference(here: Tensor, there: Tensor | None) -> float:
    """The largest difference of two tensors; infinite where their shapes, or where their NaNs are, differ."""
    if there is None or here.shape != there.shape or not torch.equal(here.isnan(), there.isnan()):
        return float("inf")
    return float((here.double() - there.double()).nan_to_num().abs().max())


@torch.no_grad()
def answers_here(model: Any, tokenizer: Any) -> dict[str, Tensor]:
    """What `READER` writes, from the model in this process."""
    batch = tokenizer(list(CHECK_TEXTS), padding=True, return_tensors="pt")
    pairs = {f"pair_{name}": batch[name].flip(0) for name in ("input_ids", "attention_mask")}
    output = model(**batch, **pairs, pair_items=torch.arange(len(CHECK_TEXTS)))
    found = {f"logits of {name}": logits for name, logits in output.logits.items()}
    return found | {"token ids": batch["input_ids"], "embedding": output.sentence_embedding}
