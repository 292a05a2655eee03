"""Every script of `examples/` runs in a process and folder of its own and prints what its door gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
PRINTS = {
    "add_a_task": ["urgency (not trained yet): {'label': ", "topic: as before", "ner: as before"],
    "auto_classes": ["topic: {'label': ", "similarity: answers pairs of texts", "(24,)", "cosine: ", "'ner': (2, "],
    "endpoint_handler": ['"label": ', "refused: Unknown tasks ['wether']"],
    "graphs": [
        "inputs and files: ('input_ids', 'attention_mask'",
        "model's is below 1e-4",
        "topic: {'label': ",
        "ner: [",
    ],
    "multitask_pipeline": ["'topic': {'label': ", "and 24 numbers", "'similarity'"],
    "native_folders": [
        "ner: BertForTokenClassification answers",
        "topic: A plain folder must compute",
        "embedding: BertModel",
    ],
    "sentence_embeddings": ["dimension: 24 - texts are cut to 128 tokens", "Maria plays football."],
    "stock_pipelines": ["ner [", "topic [{'label': ", "rating [{'label': 'score'", "token states: "],
}
NEED_THIS_PROJECT = {"graphs", "native_folders"}
"""They write other forms of a folder; all others open one with its own code alone."""


def test_there_is_a_claim_for_every_example() -> None:
    assert set(PRINTS) == {path.stem for path in EXAMPLES}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_elsewhere(path: Path, model_folder: Path, tmp_path: Path) -> None:
    if path.stem == "sentence_embeddings":
        pytest.importorskip("sentence_transformers")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    if path.stem in NEED_THIS_PROJECT:
        environment |= {"PYTHONPATH": str(REPOSITORY)}
    script = tmp_path / path.name
    script.write_bytes(path.read_bytes())
    command = [sys.executable, "-W", "error", str(script), str(model_folder)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for printed in PRINTS[path.stem]:
        assert printed in done.stdout
