"""Several processes train and score what one does: started by `accelerate launch` as a user types it, over gloo.

Where weights are compared, no dropout, float32 and plain gradient descent: Adam turns the rounding noise of a gradient
that is zero (the keys' biases) into steps of the learning rate.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train_on_ranks
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

import evaluate_hf
import train_hf

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
CPU = "accelerate_configs/cpu_2_processes.yaml"
LAST = "checkpoint-60"
"""The weights after all 60 steps; those of the folder itself are the best checkpoint's."""
SECONDS = 600
"""After which a run counts as stalled; on an idle core each takes a twentieth of that."""

RECIPE = """
encoder: {encoder}
projection_dim: 16
head_dropout: 0.0
grouping: none
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 40, validation: 9, test: 37}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 40, validation: 9, test: 37}}
  similarity:
    dataset: builtin:similarity
    columns: {{text: sentence1, text_pair: sentence2, label: score}}
    max_rows: {{train: 40, validation: 9, test: 37}}
num_train_epochs: 4
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
optim: sgd
learning_rate: 0.05
metric_for_best_model: eval_loss
bf16: false
report_to: none
"""


def launch(script: str, *argv: Any, processes: int | None = None) -> subprocess.CompletedProcess:
    """`accelerate launch` with the configuration for the CPU; fails with its output, or where it stalls."""
    launcher = Path(sys.executable).with_name("accelerate")
    count = ["--num_processes", str(processes)] if processes else []
    command = [str(part) for part in (launcher, "launch", "--config_file", CPU, *count, script, *argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True, **pipes)
    try:
        out, err = running.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)  # the ranks too
        out, err = running.communicate()
        pytest.fail(f"{command} has stalled:\n{err[-4000:]}")
    assert running.returncode == 0, f"{command} ended with {running.returncode}:\n{err[-6000:]}"
    return subprocess.CompletedProcess(command, 0, out, err)


def on_ranks(what: str, folder: Path, *argv: Any, processes: int = 2) -> list[dict[str, Any]]:
    """The reports of all ranks of a run of `train_on_ranks`."""
    launch("tests/train_on_ranks.py", what, folder, *argv, processes=processes)
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("rank_*.json"))]
    assert [(report["rank"], report["world_size"]) for report in reports] == [(r, processes) for r in range(processes)]
    return reports


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a saved model."""
    return load_file(folder / "model.safetensors")


def largest_difference(first: Path, second: Path) -> float:
    """The largest difference between the weights of two saved models."""
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def results(folder: Path, split: str = "test") -> dict[str, Any]:
    """The numbers of a result file that do not depend on the clock."""
    read = json.loads((folder / f"{split}_results.json").read_text())
    return {name: read[name] for name in read if not name.endswith(("_runtime", "_per_second", "_time", "_protocol"))}


@pytest.fixture(scope="module")
def one_process(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run of one process, 8 rows a batch."""
    folder = tmp_path_factory.mktemp("one")
    train_hf.main([str(recipe), "--output_dir", str(folder)])
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_a_configuration(path: Path) -> None:
    config = load_config_from_file(str(path))  # refuses unknown keys, but not those of the nested mappings
    assert isinstance(config, ClusterConfig) and config.num_processes > 1
    known = {action.dest for action in launch_command_parser()._actions}
    assert {f"fsdp_{key.removeprefix('fsdp_')}" for key in config.fsdp_config} <= known


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_opens_with_its_launch_line_and_says_if_nobody_ran_it(path: Path) -> None:
    text = path.read_text()
    comment = text[: text.index("compute_environment")]
    assert f"accelerate launch --config_file accelerate_configs/{path.name}" in comment
    assert comment.startswith("# Not run by us") == (path != REPOSITORY / CPU)


def test_the_configurations_differ_in_what_they_are_for() -> None:
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS}
    assert configs["cpu_2_processes"]["use_cpu"] and configs["cpu_2_processes"]["num_processes"] == 2
    assert configs["multi_gpu"]["distributed_type"] == "MULTI_GPU" and not configs["multi_gpu"].get("use_cpu")
    assert configs["fsdp2"]["distributed_type"] == "FSDP" and configs["fsdp2"]["fsdp_config"]["fsdp_version"] == 2
    assert configs["multi_node"]["num_machines"] > 1


@pytest.mark.slow
def test_the_documented_launch_line_trains_on_two_processes_what_one_trains(
    recipe: Path, one_process: Path, tmp_path: Path
) -> None:
    """`train_hf.py` itself: the same global batches, the same weights, everything printed and written once."""
    batches = ["--per_device_train_batch_size", 4]
    done = launch("train_hf.py", recipe, "--use_cpu", "--output_dir", tmp_path, *batches)
    assert "15 steps x 8 rows" in done.stdout, "two processes of 4 rows"
    for line in ("Plan", "mean score", "Saved to"):
        assert len(re.findall(f"^{line}", done.stdout, flags=re.MULTILINE)) == 1, line
    assert done.stderr.count("Tokenising topic:   0%") == 3, "a bar for each split, not for each process too"
    assert largest_difference(one_process, tmp_path) < 1e-5, "the best checkpoint"
    assert largest_difference(one_process / LAST, tmp_path / LAST) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in one_process.iterdir()}
    ours, theirs = results(tmp_path), results(one_process)
    losses_and_rows = [name for name in theirs if name.endswith(("_loss", "_rows"))]
    assert len(losses_and_rows) == 6
    assert {name: ours[name] for name in losses_and_rows} == pytest.approx(
        {name: theirs[name] for name in losses_and_rows}, rel=1e-4
    )


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8)])
@pytest.mark.slow
def test_accumulation_trains_what_the_whole_batch_trains(
    recipe: Path, one_process: Path, tmp_path: Path, batch: int, accumulation: int
) -> None:
    batches = ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulation)]
    trainer = train_hf.main([str(recipe), "--output_dir", str(tmp_path), *batches])
    assert trainer.state.global_step == 60
    assert largest_difference(one_process / LAST, tmp_path / LAST) < 1e-5


@pytest.mark.parametrize(("batch", "accumulation", "checkpointing"), [(4, 1, False), (4, 1, True), (2, 2, False)])
@pytest.mark.slow
def test_two_ranks_have_equal_weights_and_those_of_one_process(
    recipe: Path, one_process: Path, encoder_folder, tmp_path: Path, batch: int, accumulation: int, checkpointing: bool
) -> None:
    """Bit-equal among themselves, without a search for unused parameters, with activation checkpointing and without."""
    options = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
    options += ["--load_best_model_at_end", False]  # else every rank would read the same file
    reports = on_ranks("command", tmp_path, recipe, *options, "--activation_checkpointing", checkpointing)
    for report in reports:
        assert report["steps"] == 60
        assert report["find_unused"] is False
        assert report["checkpointing"] is checkpointing
    assert reports[0]["sha256"] == reports[1]["sha256"]
    assert largest_difference(one_process / LAST, tmp_path) < 1e-5
    start = load_file(encoder_folder("bert") / "model.safetensors")
    moved = max(
        float((value - start[name.removeprefix("encoder.")]).abs().max())
        for name, value in weights(tmp_path).items()
        if name.startswith("encoder.")
    )
    assert moved > 1e-2, "the premise: training moves the weights by far more than 1e-5"


STAGES = "[{epochs: 1, freeze: [encoder]}, {epochs: 1, freeze: [layers:1]}, {epochs: 2}]"
"""Two borders, at each of which something thaws."""


@pytest.mark.parametrize(("batch", "accumulation", "bf16"), [(4, 1, False), (2, 2, True)])
@pytest.mark.slow
def test_ranks_stay_equal_over_the_borders_of_stages(
    recipe: Path, tmp_path: Path, batch: int, accumulation: int, bf16: bool
) -> None:
    """Each epoch's hashes are of the ranks' own weights, before any is saved or read; in float32 as one process."""
    options = ["--stages", STAGES, "--load_best_model_at_end", "false", "--bf16", str(bf16).lower()]
    batches = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
    reports = on_ranks("epochs", tmp_path / "two", recipe, *options, *batches)
    first, second = (report["epochs"] for report in reports)
    assert [epoch["step"] for epoch in first] == [15, 30, 45, 60]
    assert [epoch["sha256"] for epoch in first] == [epoch["sha256"] for epoch in second]
    assert not any(name.startswith("encoder.") for name in first[0]["moved"])
    in_second = {name.rpartition(".layer.")[2][0] for name in first[1]["moved"] if name.startswith("encoder.")}
    assert in_second == {"1"}, "the second layer of two"
    assert any(name.startswith("encoder.embeddings.") for name in first[2]["moved"])
    if not bf16:
        train_hf.main([str(recipe), *options, "--output_dir", str(tmp_path / "one")])
        assert largest_difference(tmp_path / "one" / LAST, tmp_path / "two" / LAST) < 1e-5


@pytest.mark.slow
def test_a_task_that_one_rank_never_meets_stalls_nothing(tmp_path: Path) -> None:
    """Rank 0 has no row of `topic` in 60 steps, rank 1 nothing else: no head is without a gradient anywhere."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_on_ranks.sided(one)["met"] == ["ner", "rating", "similarity", "topic"]
    reports = on_ranks("sided", two)
    assert [report["met"] for report in reports] == [["ner", "rating", "similarity"], ["topic"]]
    assert [report["steps"] for report in reports] == [60, 60]
    assert [report["find_unused"] for report in reports] == [False, False]
    assert reports[0]["sha256"] == reports[1]["sha256"]
    assert largest_difference(one, two) < 1e-5


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_number_of_ranks(tmp_path: Path, processes: int) -> None:
    """37 rows of every kind of task in batches of 8, and 3 rows: each is scored once, metrics and losses are equal."""
    alone = train_on_ranks.evaluation(tmp_path / "one")["metrics"]
    rows = {name: value for name, value in alone.items() if name.endswith("_rows")}
    assert sorted(rows.values()) == [3] * 7 + [37] * 7
    for report in on_ranks("evaluation", tmp_path / "many", processes=processes):
        metrics = report["metrics"]
        assert metrics.keys() == alone.keys()
        for name, value in alone.items():
            # losses are computed in float32, everything else here in float64
            tolerance = 1e-6 if name.endswith("_loss") else 1e-12
            assert metrics[name] == pytest.approx(value, rel=0, abs=tolerance, nan_ok=True), name


@pytest.mark.slow
def test_evaluating_a_saved_model_on_two_processes_repeats_the_scores_of_one(
    one_process: Path, recipe: Path, tmp_path: Path
) -> None:
    """`evaluate_hf.py`: scores and losses, one table, one result file, no question whether code may run."""
    options = [str(one_process), "--data", str(recipe), "--batch_size", "8"]
    evaluate_hf.main([*options, "--output_dir", str(tmp_path / "one")])
    done = launch("evaluate_hf.py", *options, "--output_dir", tmp_path / "two")
    assert done.stdout.count("mean score") == 1
    assert "run the custom code" not in done.stdout
    # exact in the test above; float32 and other padding may exchange two neighbours in a rank correlation
    assert results(tmp_path / "two") == pytest.approx(results(tmp_path / "one"), abs=1e-3)
    assert results(tmp_path / "two")["test_similarity_rows"] == 37
