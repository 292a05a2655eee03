"""The commands, run as a user runs them: train, reload elsewhere, evaluate, refuse to overwrite, resume."""

import json
import math
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from card_validation import card_errors
from elsewhere import run_elsewhere
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

import evaluate_hf
import train_hf
from arguments_multitask import ModelArguments, read_task
from model_card import build_card
from modeling_multitask import MultiTaskModel
from saved_model import open_model
from task_data import load_tasks
from training_run import build_model, shares_of_groups

RECIPE = """
encoder: {encoder}
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 32, validation: 8, test: 12}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 32, validation: 8, test: 12}}
  similarity:
    dataset: builtin:similarity
    columns: {{text: sentence1, text_pair: sentence2, label: score}}
    max_rows: {{train: 32, validation: 8, test: 12}}
  anchor:
    kind: feature-extraction
    dataset: builtin:sentiment
    max_rows: {{train: 32, validation: 8, test: 12}}
num_train_epochs: 2
per_device_train_batch_size: 16
logging_steps: 2
bf16: false
report_to: none
sample_texts: [Maria flew to Oslo.]
"""

LOAD = """
import json, sys
# `make install` installs the project editable, by a finder on the import path; this process must do without it
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer
folder, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
batch = tokenizer(["Will it rain in Oslo?", "No."], padding=True, return_tensors="pt")
output = model(**batch)
save_file({"embedding": output.sentence_embedding, **output.logits}, out)
answer = model.predict(["Will it rain in Oslo?"], tokenizer)[0]
print(json.dumps({"answers": sorted(answer), "module": type(model).__module__}))
"""

DOORS = """
from sentence_transformers import SentenceTransformer
from transformers import pipeline
text = "Maria flew to Oslo."
for folder in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = {"model": folder, "trust_remote_code": True}
    found[folder] = {
        "multitask": pipeline(**options)(text, bf16=False),
        "handler": module.EndpointHandler(folder)({"inputs": text, "parameters": {"bf16": False}}),
        "topic": pipeline("text-classification", **options)(text)[0],
        "entities": [(e["entity_group"], e["start"], e["end"]) for e in pipeline(
            "token-classification", aggregation_strategy="first", **options)(text)],
        "embedding": SentenceTransformer(folder, trust_remote_code=True, device="cpu").encode(text).tolist(),
    }
"""


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one run of the command wrote."""
    folder = tmp_path_factory.mktemp("trained")
    train_hf.main([str(recipe), "--output_dir", str(folder)])
    return folder


def results(folder: Path, split: str) -> dict[str, Any]:
    """The result file of a split."""
    return json.loads((folder / f"{split}_results.json").read_text())


def test_a_run_writes_model_results_protocol_and_plots(trained: Path) -> None:
    """Every promised file is there, the scores are named by task, and the protocol says what they are of."""
    scores = results(trained, "test")
    assert {"test_topic_accuracy", "test_entities_f1", "test_similarity_spearman", "test_anchor_mean_cosine"} <= set(
        scores
    )
    assert scores["test_topic_rows"] == scores["test_protocol"]["topic"]["rows_scored"] == 12
    assert "seqeval" in scores["test_protocol"]["entities"]["scorer"]
    primaries = ("topic_accuracy", "entities_f1", "similarity_spearman", "anchor_mean_cosine")
    assert scores["test_mean_score"] == pytest.approx(sum(scores[f"test_{name}"] for name in primaries) / 4)
    assert {"eval_mean_score", "eval_loss"} <= set(results(trained, "eval"))
    names = {path.name for path in trained.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modeling_multitask.py", "all_results.json"} <= names
    assert {"curves.png", "confusion_topic.png", "confusion_entities.png"} <= names
    pickled = {path.name for path in trained.glob("*") if path.suffix in (".bin", ".pkl", ".pt", ".pth")}
    assert pickled == {"training_args.bin"}, "Trainer writes that one; nothing of ours is pickled"


def test_the_card_can_be_written_again_from_the_folder_alone(trained: Path) -> None:
    """No number in it was typed: files and model give the same card, and other files another one."""
    model, tokenizer = open_model(str(trained), offline=True)
    again = build_card(trained, trained.name, partial(model.predict, tokenizer=tokenizer, bf16=False))
    written = (trained / "README.md").read_text()
    assert again.content == written
    assert card_errors(written) == [] and "{{" not in written


def test_the_model_index_of_the_card_holds_the_scores_of_the_result_file(trained: Path) -> None:
    """Parsed by the Hub's own client."""
    scores = results(trained, "test")
    found = {
        (result.task_name, result.metric_name): result
        for result in ModelCard.load(trained / "README.md").data.eval_results
    }
    assert {("topic", "accuracy"), ("entities", "f1"), ("similarity", "spearman"), ("anchor", "mean_cosine")} <= set(
        found
    )
    for (task, metric), result in found.items():
        assert result.metric_value == pytest.approx(scores[f"test_{task}_{metric}"], abs=5e-5)
        assert result.dataset_args == {"rows": scores["test_protocol"][task]["rows_scored"]}
        assert result.task_type == MultiTaskModel.config_class.from_pretrained(trained).tasks[task]["kind"]


def test_the_frozen_teacher_is_the_encoder_before_training(trained: Path) -> None:
    """A little training leaves the embedding near where it was, which the distillation task measures."""
    assert 0.5 < results(trained, "test")["test_anchor_mean_cosine"] < 1.0


def test_the_saved_folder_answers_bit_equal_in_another_process_without_this_project(
    trained: Path, tmp_path: Path
) -> None:
    """Embedding and every head's logits; the subprocess runs elsewhere, isolated from the sources."""
    from safetensors.torch import load_file

    script = tmp_path / "load.py"
    script.write_text(LOAD)
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(trained), str(tmp_path / "out.safetensors")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["module"].startswith("transformers_modules.")
    assert facts["answers"] == ["anchor", "entities", "sentence_embedding", "topic"]
    model = MultiTaskModel.from_pretrained(trained).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    with torch.no_grad():
        output = model(**tokenizer(["Will it rain in Oslo?", "No."], padding=True, return_tensors="pt"))
    there = load_file(tmp_path / "out.safetensors")
    assert set(there) == {"embedding", *output.logits}
    for name, tensor in {"embedding": output.sentence_embedding, **output.logits}.items():
        assert torch.equal(there[name].nan_to_num(7.0), tensor.nan_to_num(7.0)), name


@pytest.mark.slow
def test_every_checkpoint_opens_through_every_door_in_another_process(trained: Path, tmp_path: Path) -> None:
    """sentence-transformers, stock and own pipelines and the handler answer as `predict` does, from each folder."""
    pytest.importorskip("sentence_transformers")
    folders = [trained, *sorted(trained.glob("checkpoint-*"))]
    assert len(folders) > 1, "premise: there are checkpoints"
    found = run_elsewhere(DOORS, tmp_path, *map(str, folders))
    embeddings = set()
    for folder in folders:
        answers = found[str(folder)]
        model = MultiTaskModel.from_pretrained(folder)
        (own,) = model.predict(["Maria flew to Oslo."], AutoTokenizer.from_pretrained(folder), bf16=False)
        embedding = pytest.approx(own["sentence_embedding"].tolist(), abs=1e-6)
        score = pytest.approx(own["topic"]["score"], abs=1e-5)
        for door in (answers["multitask"], answers["handler"]):
            assert door["sentence_embedding"] == embedding
            assert (door["topic"]["label"], door["topic"]["score"]) == (own["topic"]["label"], score)
        assert answers["embedding"] == embedding
        assert answers["topic"] == {"label": own["topic"]["label"], "score": score}
        spans = [[span["entity_group"], span["start"], span["end"]] for span in own["entities"]]
        assert answers["entities"] == spans
        embeddings.add(str(answers["embedding"]))
    assert len(embeddings) > 1, "premise: training moved the weights between checkpoints"


def test_evaluating_the_saved_model_repeats_the_scores_of_the_run(trained: Path, recipe: Path, tmp_path: Path) -> None:
    """Same rows, same scorer, labels by name: the same numbers, now from the folder alone."""
    out = tmp_path / "evaluation"
    evaluate_hf.main([str(trained), "--data", str(recipe), "--output_dir", str(out), "--tasks", "topic", "entities"])
    again, before = results(out, "test"), results(trained, "test")
    for key in ("test_topic_accuracy", "test_topic_macro_f1", "test_entities_f1", "test_entities_word_accuracy"):
        assert again[key] == pytest.approx(before[key], abs=1e-12)
    assert "test_similarity_spearman" not in again


def test_evaluating_leaves_out_what_only_a_teacher_could_label_and_says_so(
    trained: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All other tasks are scored; asked for by name, it is refused."""
    evaluate_hf.main([str(trained), "--data", str(recipe), "--output_dir", str(tmp_path)])
    assert "Not scored: anchor. They learnt" in capsys.readouterr().out
    scored = results(tmp_path, "test")["test_protocol"]
    assert set(scored) == set(results(trained, "test")["test_protocol"]) - {"anchor"}
    with pytest.raises(SystemExit):
        evaluate_hf.main([str(trained), "--data", str(recipe), "--output_dir", str(tmp_path), "--tasks", "anchor"])
    assert "there is no teacher to compute them" in capsys.readouterr().err


def test_the_tokenizers_lower_limit_stands_in_the_configuration(encoder_folder, tmp_path: Path) -> None:
    """Other clients read it there; the encoder alone could read more."""
    shutil.copytree(encoder_folder("bert"), tmp_path, dirs_exist_ok=True)
    AutoTokenizer.from_pretrained(tmp_path, model_max_length=40).save_pretrained(tmp_path)
    model, tokenizer = build_model(ModelArguments(encoder=str(tmp_path)), {}, offline=True)
    assert model.config.max_seq_length == model.length_limit == model.max_length(tokenizer) == 40


def test_the_dry_run_prints_the_plan_and_writes_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows, shares, padding and what was inferred."""
    train_hf.main([str(recipe), "--output_dir", str(tmp_path / "none"), "--dry_run"])
    printed = capsys.readouterr().out
    assert "inferred" in printed and "padding" in printed and "passes" in printed
    assert not (tmp_path / "none").exists()


def test_tasks_that_read_the_same_rows_share_one_number() -> None:
    """It stands at either of them, or in parts at both; none, or one of a task that is not trained, is refused."""
    topic, keep = {"dataset": "builtin:topic"}, {"dataset": "builtin:topic", "kind": "feature-extraction"}
    entities = {"dataset": "builtin:entities", "columns": {"tokens": "tokens", "label": "ner_tags"}}
    columns = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}
    scored = {"dataset": "builtin:similarity", "columns": columns, "splits": {"train": None}}
    tasks = {"topic": topic, "keep": keep, "ner": entities, "sts": scored}
    loaded = load_tasks({name: read_task(name, task) for name, task in tasks.items()})
    for shares in ({"topic": 2, "ner": 3}, {"keep": 2, "ner": 3}, {"topic": 1.5, "keep": 0.5, "ner": 3}):
        assert shares_of_groups(loaded, shares) == {"keep+topic": 2, "ner": 3}
    with pytest.raises(ValueError, match="Without one: keep or topic.$"):
        shares_of_groups(loaded, {"ner": 3})
    with pytest.raises(ValueError, match="not positive: keep, ner; without training rows: sts.$"):
        shares_of_groups(loaded, {"topic": 2, "keep": -1, "ner": math.inf, "sts": 1})


def test_a_trained_model_is_not_replaced_unasked(
    trained: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the ways out; the weights stay."""
    before = (trained / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(SystemExit, match="2"):
        train_hf.main([str(recipe), "--output_dir", str(trained)])
    told = capsys.readouterr().err
    assert "holds a trained model already" in told and "--overwrite_output" in told
    assert (trained / "model.safetensors").stat().st_mtime_ns == before


def test_settings_that_would_destroy_the_plan_are_refused_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before anything is written."""
    with pytest.raises(SystemExit, match="2"):
        train_hf.main([str(recipe), "--output_dir", str(tmp_path / "none"), "--label_smoothing_factor", "0.1"])
    told = capsys.readouterr().err
    assert "train_hf.py: error:" in told and "set loss.label_smoothing of a task" in told
    assert not (tmp_path / "none").exists()


def test_resuming_from_the_last_checkpoint_ends_with_the_same_weights(
    trained: Path, recipe: Path, tmp_path: Path
) -> None:
    """A run that is stopped after its first epoch and goes on is the unbroken run, bit by bit."""
    from safetensors.torch import load_file

    steps = sorted(int(path.name.rpartition("-")[2]) for path in trained.glob("checkpoint-*"))
    assert len(steps) == 2, "the premise: a checkpoint an epoch"
    folder = tmp_path / "resumed"
    folder.mkdir()
    (folder / f"checkpoint-{steps[0]}").symlink_to(trained / f"checkpoint-{steps[0]}")
    train_hf.main([str(recipe), "--output_dir", str(folder), "--resume_from_checkpoint", "last"])
    unbroken = load_file(trained / f"checkpoint-{steps[1]}" / "model.safetensors")
    resumed = load_file(folder / f"checkpoint-{steps[1]}" / "model.safetensors")
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "topic_sentiment_aligned"])
def test_the_offline_recipes_run_in_nano_form(name: str, repository: Path, tmp_path: Path) -> None:
    """With the real encoder from the package extra, through the real command line."""
    done = subprocess.run(
        [sys.executable, "train_hf.py", f"recipes/{name}.yaml", "--nano", "--output_dir", str(tmp_path / name)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mean score" in done.stdout and (tmp_path / name / "test_results.json").is_file()
    assert "installed package" in done.stderr or "package" in done.stderr


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["news_entities", "no_regret", "preserved_embedding", "sentiment_entities", "six_tasks"]
)
def test_the_published_recipes_run_in_nano_form(name: str, repository: Path, data_root: Path, tmp_path: Path) -> None:
    """On published data read through `--data_root`."""
    words = ["train_hf.py", f"recipes/{name}.yaml", "--nano", "--output_dir", str(tmp_path / name), "--data_root"]
    done = subprocess.run(
        [sys.executable, *words, str(data_root)], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mean score" in done.stdout
