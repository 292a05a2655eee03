"""`train_hf.py --push_to_hub` with every hub strategy, against a Hub on loopback: each pushed commit opens by id.

The client's environment is read at import, so each run is a process of its own; so is the reader, with an empty cache.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from card_validation import card_errors
from loopback_hub import LoopbackHub

import train_hf

RECIPE = """
encoder: {encoder}
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 32, validation: 8, test: 12}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 32, validation: 8, test: 12}}
num_train_epochs: 2
per_device_train_batch_size: 32
bf16: false
report_to: none
"""
READER = """
import json, sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
from transformers import AutoModel, AutoTokenizer
found = {}
for name, revision in json.loads(sys.argv[1]):
    options = {"trust_remote_code": True, "revision": revision}
    model, tokenizer = AutoModel.from_pretrained(name, **options), AutoTokenizer.from_pretrained(name, **options)
    found[revision] = sorted(model.predict(["Maria flew to Oslo."], tokenizer)[0])
print(json.dumps(found))
"""
OF_TRAINING = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    """A Hub, a repository on it for each strategy."""
    with LoopbackHub() as running:
        yield running


@pytest.fixture(scope="module")
def run(hub: LoopbackHub, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a strategy to the folder of its run, which pushed to `tester/<strategy>`."""
    folders: dict[str, Path] = {}

    def folder_of(strategy: str) -> Path:
        if strategy not in folders:
            folders[strategy] = tmp_path_factory.mktemp(strategy) / "out"
            words = ["--output_dir", str(folders[strategy]), "--push_to_hub", "--hub_model_id", f"tester/{strategy}"]
            words += ["--hub_strategy", strategy, "--hub_private_repo", "true", "--hub_always_push"]
            done = subprocess.run(
                [sys.executable, str(Path(train_hf.__file__)), str(recipe), *words],
                cwd=folders[strategy].parent,
                env=hub.environment(folders[strategy].parent / "home", hub.token),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        return folders[strategy]

    return folder_of


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_what_is_pushed_opens_and_has_our_card_at_every_commit(
    hub: LoopbackHub, run: Callable[[str], Path], tmp_path: Path, strategy: str
) -> None:
    """In the middle of training as at its end; the stub that Trainer writes is never pushed."""
    folder = run(strategy)
    repository = hub.repository(f"tester/{strategy}")
    assert repository.is_private
    pushed = [commit for commit in repository.history() if "config.json" in commit.files]
    titles = {commit.title.partition(",")[0] for commit in pushed}
    assert titles == {"Model save", "End of training"} | ({"Training in progress"} if strategy != "end" else set())
    for commit in pushed:
        card = commit.files["README.md"].decode()
        assert card_errors(card) == [] and "What this page can run" in card, commit.title
    wanted = [(f"tester/{strategy}", commit.sha) for commit in pushed]
    done = subprocess.run(
        [sys.executable, "-P", "-c", READER, json.dumps(wanted)],
        cwd=tmp_path,
        env=hub.environment(tmp_path / "home", hub.token),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = ["entities", "sentence_embedding", "topic"]
    assert json.loads(done.stdout.splitlines()[-1]) == {commit.sha: answers for commit in pushed}
    for name in ("README.md", "model.safetensors", "test_results.json"):
        assert pushed[0].files[name] == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("strategy", "with_state"),
    [
        ("end", set()),
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-2", "checkpoint-4"}),
    ],
)
def test_only_the_checkpoint_strategies_push_what_a_run_goes_on_from(
    hub: LoopbackHub, run: Callable[[str], Path], strategy: str, with_state: set[str]
) -> None:
    run(strategy)
    files = hub.repository(f"tester/{strategy}").files()
    folders = {Path(path).parent.as_posix() for path in files if Path(path).name in OF_TRAINING}
    assert folders == with_state
    for folder in folders:
        assert {f"{folder}/{name}" for name in OF_TRAINING} <= files.keys()


def test_the_card_at_the_end_has_the_scores(hub: LoopbackHub, run: Callable[[str], Path]) -> None:
    """And names the repository, not the folder."""
    folder = run("end")
    card = hub.repository("tester/end").files()["README.md"].decode()
    accuracy = json.loads((folder / "test_results.json").read_text())["test_topic_accuracy"]
    assert f"| topic | test | 12 | accuracy | {accuracy:.4f} |" in card
    assert 'from_pretrained("tester/end", trust_remote_code=True)' in card
