"""The inference benchmark measures what it says: the same texts and answers for all, and every figure in its file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from datasets import Dataset

from graph_export import PRECISIONS

ROWS = {
    "ag_news/test": {"text": ["Siemens shares fell in Frankfurt."] * 4},
    "sst2/validation": {"sentence": ["A dull film."] * 4},
    "conll2003/test": {"tokens": [["Anna", "won", "in", "Paris", "."]] * 4},
    "stsb/test": {"sentence1": ["A man is playing a guitar."] * 4},
}


@pytest.mark.slow
def test_the_benchmark_writes_the_rates_of_every_system_and_their_ratios(encoder_folder, tmp_path: Path):
    for source, columns in ROWS.items():
        (tmp_path / source).parent.mkdir()
        Dataset.from_dict(columns).to_parquet(tmp_path / f"{source}.parquet")
    words = ["--data_root", tmp_path, "--encoder", encoder_folder("bert"), "--texts", 16, "--repeats", 2, "--graphs"]
    command = [
        sys.executable,
        "benchmarks/inference_speed.py",
        *map(str, words),
        "--output",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["settings"]["texts"] == 16
    for dtype in ("float32", "bfloat16"):
        rates = report["repeats"][dtype]
        assert {name: len(own) for name, own in rates.items()} == dict.fromkeys(
            ("predict", "separate", "encode", "sentence_transformer"), 2
        )
        times = sorted(ours / theirs for ours, theirs in zip(rates["predict"], rates["separate"], strict=True))
        assert report["ratios"][f"{dtype} predict / separate"] == pytest.approx(sum(times) / 2)
    graphs = report["repeats"]["graphs"]
    assert report["repeats"]["graphs, forward"].keys() == graphs.keys()
    assert graphs.keys() == {f"torch {own}" for own in ("fp32", "bf16")} | {
        f"{form} {precision}" for form, precisions in PRECISIONS.items() for precision in precisions
    }
    times = sorted(int8 / fp32 for int8, fp32 in zip(graphs["onnx int8"], graphs["torch fp32"], strict=True))
    assert report["ratios"]["onnx int8 / torch fp32, predict"] == pytest.approx(sum(times) / 2)
    one, eight = (report["milliseconds_per_sentence"][name] for name in ("1 head", "8 heads"))
    assert 0 < one["p50"] <= one["p95"] and 0 < eight["p50"] <= eight["p95"]
    assert "--data_root DATA" in report["command"]
