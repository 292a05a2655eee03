"""Run `train_hf.py` in a process of its own, keep what came out, and never train the same thing twice.

What several commands need that start whole trainings (`compare_hf.py`, `benchmarks/recipe_results.py`): a finished run
leaves `run.json` in its folder, which names what was run (the recipe's content and the arguments) and holds its scores,
seconds and parameters. Nothing is trained, scored or compared in this process.

    run = Run("together-seed1", Path("outputs/x/together-seed1"), "recipes/x.yaml", ["--seed", "1"])
    result = run.finish()       # at once, if it is finished; from its last checkpoint, if it was killed
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from model_card import read_json, read_scores, sizes
from recipe_arguments import read_recipe
from run_checkpoints import checkpoint_problems, list_checkpoints, recipe_changes

SCRIPT = Path(__file__).resolve().with_name("train_hf.py")
RECORD_NAME = "run.json"
LOG_NAME = "train.log"
NOISE = ("_runtime", "_per_second", "_preparation_time", "_protocol")
"""Endings of what stands among the results and is no score."""
LINES_SHOWN = 20
"""Last lines of the log of a run that failed."""


@dataclass(frozen=True)
class Run:
    """One training: `train_hf.py RECIPE OPTIONS --output_dir FOLDER`.

    Attributes:
        name (str): For people.
        folder (Path): Where everything of it goes; it belongs to this run.
        recipe (str): The recipe file.
        options (list[str]): Further arguments, without `--output_dir`.
    """

    name: str
    folder: Path
    recipe: str
    options: list[str]

    @property
    def identity(self) -> dict[str, Any]:
        """What is run: equal identity, equal result (data and code aside)."""
        return json.loads(json.dumps({"recipe": read_recipe(self.recipe), "options": self.options}))

    @property
    def words(self) -> list[str]:
        """The command line."""
        return ["train_hf.py", self.recipe, *self.options, "--output_dir", str(self.folder), "--overwrite_output"]

    @property
    def command(self) -> str:
        """The command line as it is shown, without folders of this machine."""
        return " ".join(["python", *without_paths(self.words)])

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What of this run differs from the one that the folder holds: dotted name -> (there, here)."""
        record = read_json(self.folder / RECORD_NAME)
        return recipe_changes(record["identity"], self.identity) if record else {}

    @property
    def result(self) -> dict[str, Any] | None:
        """What came out, if the folder holds this very run, finished."""
        record = read_json(self.folder / RECORD_NAME)
        return record["result"] if record and record["identity"] == self.identity else None

    def finish(self, retrain_changed: bool = False) -> dict[str, Any]:
        """Train what is left to train, and return what came out.

        Args:
            retrain_changed (bool): Whether to throw another run in the folder away; else it is refused.

        Returns:
            `scores`, `split` and `protocol` of the results, `parameters`, `sampling` (what training saw), `command`,
            `command_seconds` and `train_seconds`; the last two are None where the run was killed in between.

        Raises:
            ValueError: if the folder holds another run, or the training fails, with the end of its log.
        """
        changes = self.changes()
        if changes and not retrain_changed:
            said = "".join(f"\n- {name}: {before!r} -> {now!r}" for name, (before, now) in changes.items())
            raise ValueError(
                f"{self.folder} holds another run than is asked for (there -> asked):{said}\nSet these back, take "
                "another --output_dir, or train it anew with --overwrite_output."
            )
        if changes:
            shutil.rmtree(self.folder)
        if self.result is not None:
            return self.result
        self._record(None)
        is_resumed = any(not checkpoint_problems(path, 1) for path in list_checkpoints(self.folder))
        start = time.perf_counter()
        train_apart(
            [*self.words, *(["--resume_from_checkpoint", "last"] if is_resumed else [])], self.folder / LOG_NAME
        )
        result = read_result(self.folder) | {"command": self.command}
        result["command_seconds"] = round(time.perf_counter() - start, 1)
        if is_resumed:  # the clock of the part before is lost
            result |= {"command_seconds": None, "train_seconds": None}
        self._record(result)
        for checkpoint in list_checkpoints(self.folder):
            shutil.rmtree(checkpoint)
        return result

    def _record(self, result: dict[str, Any] | None) -> None:
        """Write down what is run in the folder and what came out; whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f"{RECORD_NAME}.part"
        draft.write_text(json.dumps({"identity": self.identity, "result": result}, indent=2) + "\n", encoding="utf-8")
        draft.replace(self.folder / RECORD_NAME)


def train_apart(words: Sequence[str], log: Path | None = None) -> None:
    """Run the command in another process; its output goes to the end of a log file, if one is named.

    Args:
        words (Sequence[str]): `train_hf.py` and its arguments.
        log (Path): Else it is printed.

    Raises:
        ValueError: if it fails, with the last lines of the log.
    """
    command = [sys.executable, str(SCRIPT), *words[1:]]
    if log is None:
        failed = subprocess.run(command, check=False).returncode
    else:
        with log.open("ab") as output:
            failed = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if failed:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_SHOWN:] if log else []
        raise ValueError("\n".join([f"Exit code {failed} of: python {' '.join(words)}", *lines]))


def read_result(folder: Path) -> dict[str, Any]:
    """Scores, protocol, seconds, parameters and plan of a run, from the files that it wrote."""
    split, results = read_scores(folder)
    scores = {name: value for name, value in results.items() if name.startswith(split) and not name.endswith(NOISE)}
    return {
        "split": split,
        "scores": scores,
        "protocol": results[f"{split}_protocol"],
        "train_seconds": round(read_json(folder / "train_results.json")["train_runtime"], 1),
        "parameters": sizes(folder)["parameters"],
        "sampling": read_json(folder / "run_facts.json")["sampling"],
    }


def without_paths(words: Sequence[str]) -> list[str]:
    """The command with placeholders for the folders of this machine."""
    shown = list(words)
    for flag, name in (("--data_root", "DATA"), ("--output_dir", "OUT")):
        if flag in shown:
            shown[shown.index(flag) + 1] = name
    return [Path(word).name if Path(word).is_absolute() else word for word in shown]


def hardware() -> dict[str, Any]:
    """The machine and versions that the figures belong to."""
    cpu = next(
        (line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), platform.machine()
    )
    found = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16": found or "none",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def cpu_lines() -> list[str]:
    """Lines of /proc/cpuinfo where there is one."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
