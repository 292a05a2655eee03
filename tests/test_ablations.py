"""The ablations change what their lines say, and the guide's tables are those that the result files make."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from recipe_arguments import parse_arguments

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import ablations  # noqa: E402


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name, lines in ablations.TABLES.items() for variant in lines]
)
def test_a_line_changes_weights_balancing_or_sampling_alone(name: str, variant: str, tmp_path: Path) -> None:
    run = ablations.run_of(variant, ablations.TABLES[name][variant], 3, "DATA", tmp_path)
    plain = ablations.run_of("plain", [], 3, "DATA", tmp_path)
    (_, data, args), (_, base, base_args) = (
        parse_arguments([one.recipe, *one.options, "--output_dir", "unused"]) for one in (run, plain)
    )
    assert data.sampling_strategy == ("shares" if name == "balancing" else variant.split("`")[1])
    assert args.loss_balancing == next((one for one in ("uncertainty", "dwa") if f"`{one}`" in variant), "none")
    assert ("none" in variant) == (data.grouping == "none")
    for task, spec in data.tasks.items():
        weight = (spec.loss or {}).get("weight", 1)
        assert weight == (1 if "equal" in variant else (base.tasks[task].loss or {}).get("weight", 1)), task
        assert spec.max_rows == base.tasks[task].max_rows
    assert (args.seed, args.learning_rate) == (3, base_args.learning_rate)
    assert bool(data.sampling_shares) == (data.sampling_strategy == "shares")


def test_runs_of_the_results_file_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []

    def train(run: ablations.Run, variant: str, seed: int) -> dict[str, Any]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((variant, seed))
        scores = dict.fromkeys([*ablations.ROWS, "mean"], seed / 10)
        return {"variant": variant, "seed": seed, "primary": scores, "command": run.command}

    monkeypatch.setattr(ablations, "measured", train)
    guide = tmp_path / "guide.md"
    guide.write_text("<!-- benchmarks/ablations.py balancing -->\n<!-- end of balancing -->\n")
    words = ["balancing", "--data_root", str(tmp_path), "--work", str(tmp_path / "work"), "--guide", str(guide)]
    words += ["--seeds", "1", "2", "--output", str(tmp_path / "results.json")]
    seen = []
    while len(seen) < len(ablations.TABLES["balancing"]) * 2:  # each attempt is broken off after three runs
        monkeypatch.setattr(sys, "argv", ["ablations.py", *words])
        try:
            ablations.main()
        except KeyboardInterrupt:
            assert trained
        seen += trained
        trained.clear()
    assert seen == [(variant, seed) for variant in ablations.TABLES["balancing"] for seed in (1, 2)]
    report = json.loads((tmp_path / "results.json").read_text())
    assert [(run["variant"], run["seed"]) for run in report["runs"]] == seen
    assert guide.read_text() == ablations.guide_with(guide.read_text(), "balancing", report)
    words[words.index("--seeds") + 1 :] = ["2", "--output", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *words])
    ablations.main()  # asked for one seed alone, it trains nothing and keeps the other
    again = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert not trained and sorted(map(str, again)) == sorted(map(str, report["runs"]))


def test_the_table_has_means_and_the_difference_seed_by_seed() -> None:
    def run(variant: str, seed: int, score: float) -> dict[str, Any]:
        return {"variant": variant, "seed": seed, "primary": dict.fromkeys([*ablations.ROWS, "mean"], score)}

    runs = [run("a", 1, 0.5), run("a", 2, 0.6), run("a", 3, 0.9), run("b", 1, 0.51), run("b", 2, 0.58)]
    report = {"runs": runs, "command": "python x", "hardware": {"cpu": "a CPU", "threads": 1}}
    lines = ablations.table(report).splitlines()
    assert lines[2].startswith("| a | 0.550 |") and lines[2].endswith("| 0.550 | - |")
    assert lines[3].startswith("| b | 0.545 |") and lines[3].endswith("| -0.50 (+1.00, -2.00) |")
    assert lines[-1] == "Means over seeds 1, 2; `python x`; a CPU, 1 thread(s)."


@pytest.mark.parametrize("name", ablations.TABLES)
def test_the_guide_has_the_table_of_the_results(name: str) -> None:
    path = BENCHMARKS / "results" / f"ablation_{name}.json"
    text = ablations.GUIDE.read_text()
    begin = f"<!-- benchmarks/ablations.py {name} -->"
    assert text.count(begin) == 1
    if path.exists():
        assert ablations.guide_with(text, name, json.loads(path.read_text())) == text
    else:
        assert "Not measured yet." in text.partition(begin)[2][:60]
