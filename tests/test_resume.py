"""Runs that are killed, told to end or run out of disk go on to the very weights of the unbroken run; real processes.

Dropout is on, workers read ahead (and stay between epochs), two micro-batches make a step, evaluation comes in between.
"""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import tiny_encoder, tiny_tokenizer

import train_hf
from run_checkpoints import INCOMPLETE_MARKER, checkpoint_problems, list_checkpoints

pytestmark = pytest.mark.slow

RECIPE = """
encoder: {encoder}
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: {rows}, validation: 8, test: 8}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: {rows}, validation: 8, test: 8}}
  similarity:
    dataset: builtin:similarity
    columns: {{text: sentence1, text_pair: sentence2, label: score}}
    max_rows: {{train: {rows}, validation: 8, test: 8}}
num_train_epochs: 2
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
dataloader_num_workers: 1
dataloader_persistent_workers: true
eval_strategy: steps
eval_steps: 4
save_strategy: steps
save_steps: 5
load_best_model_at_end: false
bf16: false
report_to: none
"""
STEPS_PER_EPOCH = 12
KILLS = (7, 13, 23)
"""Steps in whose middle a run is killed: none is a save (5, 10, ...) or the end of an epoch (12, 24)."""

LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port {port}"
)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Run:
    """The training command on one recipe and a number of processes, and the folders it writes."""

    def __init__(self, folder: Path, repository: Path, ranks: int):
        self.folder, self.repository, self.ranks = folder, repository, ranks
        tiny_encoder("bert", dropout=0.1).save_pretrained(folder / "encoder")
        tiny_tokenizer("bert").save_pretrained(folder / "encoder")
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(RECIPE.format(encoder=folder / "encoder", rows=32 * ranks))

    def __call__(self, name: str, *words: str, event: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run to the end or to an event of `run_that_ends.py`; `resume` in `words` goes on from the last checkpoint."""
        launch = LAUNCH.format(port=free_port()).split() if self.ranks > 1 else []
        script = ["train_hf.py"] if event is None else ["tests/run_that_ends.py", event]
        words = [*words, "--use_cpu", "--output_dir", str(self.folder / name)]
        if "resume" in words:
            words[words.index("resume") : words.index("resume") + 1] = ["--resume_from_checkpoint", "last"]
        return subprocess.run(
            [sys.executable, *launch, *script, str(self.recipe), *words],
            cwd=self.repository,
            env={**train_environment(), "PYTHONPATH": str(self.repository)},
            capture_output=True,
            text=True,
            check=False,
        )

    def weights(self, name: str) -> str:
        """The sha256 of the final weights in one of its folders."""
        return hashlib.sha256((self.folder / name / "model.safetensors").read_bytes()).hexdigest()

    def checkpoints(self, name: str) -> list[str]:
        """The names of the checkpoints in one of its folders, the latest first, with a `!` behind incomplete ones."""
        folders = list_checkpoints(self.folder / name)
        return [folder.name + ("!" if checkpoint_problems(folder, self.ranks) else "") for folder in folders]


def train_environment() -> dict[str, str]:
    """The environment of this process, without what a launcher of the test run itself may have left in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Callable[[int], Run]:
    """A function from a number of processes to their `Run`, whose folder `unbroken` holds a run to the end."""
    runs: dict[int, Run] = {}

    def run_with(ranks: int) -> Run:
        if ranks not in runs:
            runs[ranks] = Run(tmp_path_factory.mktemp(f"ranks{ranks}"), repository, ranks)
            done = runs[ranks]("unbroken")
            assert done.returncode == 0, done.stderr
            assert runs[ranks].checkpoints("unbroken") == ["checkpoint-24", "checkpoint-20"]
        return runs[ranks]

    return run_with


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_three_times_ends_with_the_weights_of_the_unbroken_one(run_of, ranks):
    run = run_of(ranks)
    for number, step in enumerate(KILLS):
        killed = run("killed", *(["resume"] if number else []), event=f"kill {step}")
        assert killed.returncode != 0 and "SIGKILL" in killed.stderr or killed.returncode == -9, killed.stderr
        newest = step - step % 5
        assert run.checkpoints("killed")[0] == f"checkpoint-{newest}", "the premise: killed behind a save"
        assert step % STEPS_PER_EPOCH != 0 and step != newest, "the premise: inside an epoch, away from a save"
    done = run("killed", "resume")
    assert done.returncode == 0, done.stderr
    assert f"Going on from {run.folder / 'killed' / 'checkpoint-20'}" in done.stderr
    assert run.weights("killed") == run.weights("unbroken")


STAGES = ["--stages", "[{epochs: 1, freeze: [encoder]}, {epochs: 1, freeze: [embeddings]}]", "--num_train_epochs", "2"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_in_each_of_its_stages_ends_with_the_weights_of_the_unbroken_one(run_of, ranks):
    """In the first stage, in the first step of the second, behind the checkpoint at its border, and later in it."""
    run = run_of(ranks)
    done = run("staged", *STAGES)
    assert done.returncode == 0, done.stderr
    for number, (step, newest) in enumerate([(7, 5), (13, 12), (17, 15)]):
        killed = run("killed_stages", *STAGES, *(["resume"] if number else []), event=f"kill {step}")
        assert killed.returncode != 0 and "SIGKILL" in killed.stderr or killed.returncode == -9, killed.stderr
        assert run.checkpoints("killed_stages")[0] == f"checkpoint-{newest}"
    done = run("killed_stages", *STAGES, "resume")
    assert done.returncode == 0, done.stderr
    assert run.weights("killed_stages") == run.weights("staged") != run.weights("unbroken")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_disk_that_fills_while_saving_leaves_the_checkpoint_before_to_go_on_from(run_of, file):
    """Even if only one checkpoint is kept: the older one goes when the newer one is complete."""
    run, name = run_of(1), f"full_{file}"
    full = run(name, "--save_total_limit", "1", event=f"fill 7 {file} 0")
    assert full.returncode == 1 and "Error" in full.stderr, full.stderr
    assert run.checkpoints(name) == ["checkpoint-10!", "checkpoint-5"]
    assert (run.folder / name / "checkpoint-10" / INCOMPLETE_MARKER).exists()
    done = run(name, "resume", "--save_total_limit", "1")
    assert done.returncode == 0, done.stderr
    passed_over, going_on = (run.folder / name / f"checkpoint-{step}" for step in (10, 5))
    assert f"Passed over an incomplete checkpoint: {passed_over}: " in done.stderr
    assert f"Going on from {going_on}" in done.stderr
    assert run.weights(name) == run.weights("unbroken")
    assert run.checkpoints(name) == ["checkpoint-24"]


def test_the_checkpoint_before_stays_until_every_rank_has_written_its_part(run_of):
    """Here the second rank cannot write its random state, while the first one could write everything."""
    run = run_of(2)
    full = run("full_rank", "--save_total_limit", "1", event="fill 7 rng_state_1.pth 1")
    assert full.returncode == 1, full.stderr
    assert run.checkpoints("full_rank") == ["checkpoint-10!", "checkpoint-5"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_saves_on_every_rank_and_ends_the_process(run_of, ranks):
    """The signal comes to one rank, in the middle of step 7; no evaluation and no final model follow."""
    run = run_of(ranks)
    ended = run("told", "--enable_jit_checkpoint", "true", event="terminate 7")
    assert ended.returncode == (143 if ranks == 1 else 1), ended.stderr
    assert "Stopped by SIGTERM after step 7" in ended.stderr
    assert run.checkpoints("told") == ["checkpoint-7", "checkpoint-5"]
    assert not (run.folder / "told" / "model.safetensors").exists()
    done = run("told", "resume")
    assert done.returncode == 0, done.stderr
    assert run.weights("told") == run.weights("unbroken")


def test_a_changed_recipe_is_refused_by_the_command_unless_it_may_change(run_of, caplog, capsys):
    run = run_of(1)
    words = [str(run.recipe), "--output_dir", str(run.folder / "unbroken"), "--resume_from_checkpoint", "last"]
    changed = ["--learning_rate", "0.5", "--tasks.topic.max_rows.train", "24", "--dry_run"]
    with pytest.raises(SystemExit, match="2"):
        train_hf.main([*words, *changed])
    lines = capsys.readouterr().err.splitlines()
    assert "- learning_rate: 0.0001 -> 0.5" in lines and "- tasks.topic.max_rows.train: 32 -> 24" in lines
    assert "- facts.rows.topic: 32 -> 24" in lines and "--resume_changed_recipe" in lines[-1]
    train_hf.main([*words, *changed, "--resume_changed_recipe", "true"])
    assert "- learning_rate: 0.0001 -> 0.5" in caplog.text and "does not end where" in caplog.text
    caplog.clear()
    train_hf.main([*words, "--logging_steps", "1", "--dry_run"])
    assert "->" not in caplog.text


def test_last_without_a_complete_checkpoint_is_an_error_of_the_command(run_of, tmp_path, capsys):
    words = [str(run_of(1).recipe), "--output_dir", str(tmp_path), "--resume_from_checkpoint"]
    with pytest.raises(SystemExit, match="2"):
        train_hf.main([*words, "last"])
    assert "It holds no checkpoint at all.\nLeave --resume_from_checkpoint away" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train_hf.main([*words, "nowhere"])
    assert "nowhere: there is no such folder" in capsys.readouterr().err
