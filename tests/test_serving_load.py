"""The load benchmark measures what it says: every answer is checked, and refusals are counted apart."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_the_benchmark_checks_every_answer_and_writes_every_phase(model_folder: Path, tmp_path: Path) -> None:
    texts = [f"Anna won game {number} in Berlin, and {number % 7} people of the team ran." for number in range(50)]
    (tmp_path / "texts").write_text("\n".join(texts))
    words = [model_folder, "--text_file", tmp_path / "texts", "--output", tmp_path / "out.json", "--clients", 8]
    words += ["--requests", 200, "--overload", 1, "--max_queue", 512]
    command = [sys.executable, "benchmarks/serving_load.py", *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["single"]["outcomes"] == {"right": 50} and report["joined"]["outcomes"] == {"right": 200}
    assert report["overload"]["outcomes"].keys() <= {"right", "429", "503"}
    joined = report["joined"]["per_second"]
    assert report["ratios"]["joined_to_single"] == joined / report["single"]["per_second"]
    assert report["ratios"]["joined_to_offline"] == joined / report["offline_per_second"]
    assert report["settings"]["server"] == ["--max_queue", "512"]


@pytest.mark.slow
def test_the_benchmark_finds_wrong_answers(model_folder: Path) -> None:
    """An answer that belongs to another text is counted as wrong."""
    script = """
import asyncio, sys
sys.path.insert(0, "benchmarks")
from serving_load import Load, served
from prediction_engine import open_engine
texts = ["Anna won the game in Berlin.", "It was a cold old phone and the rain was bad."]
model, tokenizer = open_engine(sys.argv[1])
expected = model.predict(texts, tokenizer, bf16=False)
with served(sys.argv[1], ["--bf16", "false"]) as (port, process):
    print(asyncio.run(Load(port, texts, expected[::-1], 0.001).closed(2, 10))["outcomes"])
"""
    command = [sys.executable, "-c", script, str(model_folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{'wrong': 10}", done.stderr[-3000:]
