"""The search: its space, that it can be broken off, and that the best recipe trains to the score that it won with."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("optuna", reason="the extra `search` is not installed")

import search_hf
import train_hf
from hyperparameter_search import RecipeDumper, corners, read_space, read_words, suggest, with_values
from recipe_arguments import RecipeLoader

RECIPE = """
encoder: {encoder}
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 48, validation: 24, test: 8}}}}
  similarity:
    dataset: builtin:similarity
    columns: {{text: sentence1, text_pair: sentence2, label: score}}
    max_rows: {{train: 48, validation: 24, test: 8}}
num_train_epochs: 2
per_device_train_batch_size: 16
bf16: false
report_to: none
search:
  learning_rate: {{low: 1e-4, high: 1e-2, log: true}}
  tasks.topic.loss.weight: [0.5, 1, 2]
  sampling_strategy: [temperature, uniform]
  per_device_train_batch_size: {{low: 8, high: 16, step: 8}}
"""


class Chooser:
    """A trial that takes the highest, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def _ask(self, *words: Any, **options: Any) -> Any:
        self.asked.append((*words, options))
        return words[-1]

    suggest_int = suggest_float = _ask

    def suggest_categorical(self, name: str, values: list[Any]) -> Any:
        return values[-1]


def test_ranges_of_whole_numbers_are_whole_and_logarithms_and_steps_are_passed_on() -> None:
    trial = Chooser()
    space = {
        "learning_rate": {"low": 1e-5, "high": 1, "log": True},
        "num_train_epochs": {"low": 1, "high": 4, "step": 2},
        "read_case": [True, False],
    }
    assert suggest(trial, read_space(space)) == {"learning_rate": 1, "num_train_epochs": 4, "read_case": False}
    assert trial.asked == [("learning_rate", 1e-5, 1, {"log": True}), ("num_train_epochs", 1, 4, {"step": 2})]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (None, "A search needs the arguments to vary"),
        ({}, "A search needs the arguments to vary"),
        ({"output_dir": ["a", "b"]}, "output_dir is where a run writes"),
        ({"learning_rate": 1e-4}, "learning_rate must be a list of values .* got 0.0001"),
        ({"learning_rate": []}, "learning_rate must be a list of values"),
        ({"freeze": [["encoder"]]}, "freeze must be a list of values"),
        ({"learning_rate": {"low": 1e-4}}, "needs numbers low < high; got low 0.0001, high None"),
        ({"learning_rate": {"low": 2, "high": 1}}, "needs numbers low < high"),
        ({"learning_rate": {"low": 1, "hihg": 2}}, "Did you mean 'high'"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "low is above 0"),
        ({"learning_rate": {"low": 1, "high": 4, "log": True, "step": 1}}, "there is no step"),
        ({"learning_rate": {"low": 1, "high": 4, "step": 0}}, "step must be a number above 0"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_space(space)


def test_every_value_and_both_ends_are_among_the_corners() -> None:
    points = corners({"a": [1, 2, 3], "b": {"low": 0.1, "high": 0.2}, "c": [True]})
    assert {point["a"] for point in points} == {1, 2, 3} and {point["b"] for point in points} == {0.1, 0.2}
    assert all(point["c"] is True for point in points) and len(points) == 3


def test_values_are_set_by_dotted_name_in_a_copy() -> None:
    recipe = {"tasks": {"topic": {"dataset": "d"}}, "seed": 1}
    found = with_values(recipe, {"tasks.topic.loss.weight": 2, "learning_rate": 0.1})
    assert found == {"tasks": {"topic": {"dataset": "d", "loss": {"weight": 2}}}, "seed": 1, "learning_rate": 0.1}
    assert recipe == {"tasks": {"topic": {"dataset": "d"}}, "seed": 1}
    with pytest.raises(ValueError, match="there is no task 'topics'.*Did you mean 'topic'"):
        with_values(recipe, {"tasks.topics.loss.weight": 2})


def test_a_command_line_is_read_as_the_recipe_would_be() -> None:
    words = ["--nano", "--learning-rate", "1e-3", "--seed=7", "--tasks.topic.loss.weight", "2", "--eval_strategy", "no"]
    expected = {"nano": True, "learning_rate": 1e-3, "seed": 7, "tasks.topic.loss.weight": 2, "eval_strategy": "no"}
    assert read_words(words) == expected
    with pytest.raises(ValueError, match="follow a --name; got 'more'"):
        read_words(["--seed", "7", "more"])


def test_a_written_recipe_is_read_as_what_it_was() -> None:
    """Words that YAML 1.1 takes for something else, and text that looks like a number."""
    recipe = {"a": "no", "b": "1e-4", "c": 1e-5, "d": "12:30", "e": None, "f": True, "g": "true", "h": ["on", "3"]}
    written = yaml.dump(recipe, Dumper=RecipeDumper)
    assert yaml.load(written, Loader=RecipeLoader) == recipe


@pytest.fixture(scope="module")
def searched(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of three trials."""
    folder = tmp_path_factory.mktemp("search")
    search_hf.main([str(recipe), "--trials", "3", "--output_dir", str(folder), "--seed", "5"])
    return folder


def trials_of(folder: Path) -> dict[str, Any]:
    """What a search wrote down."""
    return json.loads((folder / "trials.json").read_text())


@pytest.mark.slow
def test_the_best_recipe_trains_to_the_score_of_its_trial(searched: Path, tmp_path: Path) -> None:
    """`train_hf.py` as it is, on the file as it is: the very score, so trials differ by their values alone."""
    found = trials_of(searched)
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2]
    assert found["best"]["score"] == max(trial["score"] for trial in found["trials"])
    assert len({trial["score"] for trial in found["trials"]}) > 1, "the premise: values matter"
    best = yaml.safe_load((searched / "best_recipe.yaml").read_text())
    assert best["seed"] == 5 and "search" not in best
    assert best["tasks"]["topic"]["loss"]["weight"] == found["best"]["values"]["tasks.topic.loss.weight"]
    train_hf.main([str(searched / "best_recipe.yaml"), "--output_dir", str(tmp_path)])
    assert json.loads((tmp_path / "eval_results.json").read_text())["eval_mean_score"] == found["best"]["score"]
    assert {path.name for path in searched.iterdir()} == {"best_recipe.yaml", "search.db", "trials.json"}


@pytest.mark.slow
def test_a_search_that_is_broken_off_ends_as_the_unbroken_one(
    searched: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the second trial, then taken up; then nothing is left to do."""
    options = [str(recipe), "--trials", "3", "--output_dir", str(tmp_path), "--seed", "5"]
    trained: list[Any] = []

    def train_or_break(run: Any, trainer: Any, train=search_hf.train_model) -> Any:
        trained.append(run.args.learning_rate)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(run, trainer)

    monkeypatch.setattr(search_hf, "train_model", train_or_break)
    with pytest.raises(KeyboardInterrupt):
        search_hf.main(options)
    assert not (tmp_path / "trials.json").exists()
    search_hf.main(options)
    assert len(trained) == 4 and trained[1] == trained[2]
    assert trials_of(tmp_path) == trials_of(searched)
    search_hf.main(options)
    assert len(trained) == 4


@pytest.mark.slow
def test_a_trial_that_diverges_scores_nothing_and_the_search_goes_on(recipe: Path, tmp_path: Path) -> None:
    words = ["--search", "{learning_rate: [1e-3, 1e30]}", "--seed", "1", "--max_grad_norm", "0", "--optim", "sgd"]
    search_hf.main([str(recipe), "--trials", "3", "--output_dir", str(tmp_path), *words])
    found = trials_of(tmp_path)
    assert {trial["values"]["learning_rate"]: trial["score"] == 0.0 for trial in found["trials"]} == {
        1e-3: False,
        1e30: True,
    }


def test_a_study_of_another_space_or_a_value_that_cannot_be_is_refused_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_hf, "score_of", lambda recipe, folder: 0.5)
    options = [str(recipe), "--trials", "1", "--output_dir", str(tmp_path)]
    search_hf.main(options)
    for words, message in (
        (["--search.learning_rate.high", "0.1"], "holds a search of another recipe or space"),
        (["--weight_decay", "0.5"], "holds a search of another recipe or space"),
        (["--search.pooling", "[mean, cls, meen]"], "pooling must be one of"),
        (["--search.learnig_rate", "[1, 2]"], "Did you mean 'learning_rate'"),
        (["--search.tasks", "3"], "tasks"),
    ):
        with pytest.raises(SystemExit, match="2"):
            search_hf.main([*options, *words])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error, error
