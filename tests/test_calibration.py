"""Temperatures: the fit is the optimum, errors are as in the paper, every door has them, and no answer changes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from test_ranks import launch
from test_trainer_multitask import arguments, data_of, new_model, new_trainer
from tiny_models import TINY_TASKS, tiny_tokenizer
from transformers import AutoModelForTokenClassification, pipeline

import evaluate_hf
import train_hf
from arguments_multitask import ModelArguments
from calibration import (
    LEAST_ROWS,
    calibrate,
    confidences,
    expected_calibration_error,
    fit_temperature,
    labelled_logits,
    negative_log_likelihood,
)
from configuration_multitask import MultiTaskConfig
from data_collator import MultiTaskDataCollator
from handler import EndpointHandler
from modeling_multitask import MultiTaskForSequenceClassification, MultiTaskModel
from native_export import write_native
from trained_start import extend_trained

TEMPERATURES = {"joint": 1.7, "ner": 2.5, "tags": 3.0, "topic": 0.4, "upos": 0.5}
TEXTS = ["Anna won the game in Berlin.", "Rain, and no sun.", "The new phone is very fast and not cold"]


def sample(temperature, several, rows=20_000, classes=4, seed=0):
    """Logits, and labels that are drawn from the probabilities at a temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=3.0, size=(rows, classes))
    if several:
        return logits, (generator.uniform(size=logits.shape) < expit(logits / temperature)).astype(float)
    cumulated = softmax(logits / temperature, axis=1).cumsum(axis=1)
    return logits, (generator.uniform(size=(rows, 1)) > cumulated).sum(axis=1).clip(max=classes - 1)


# The fit


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature, several):
    logits, labels = sample(temperature, several)
    found, problem = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05) and problem == ""
    before, after = (expected_calibration_error(*confidences(logits / t, labels)) for t in (1.0, found))
    assert after < 0.02
    assert temperature == 1.0 or before > 2 * after


@pytest.mark.parametrize("several", [False, True])
def test_the_fitted_temperature_is_the_least_likelihoods(several):
    logits, labels = sample(2.0, several, rows=500)
    found, _ = fit_temperature(logits, labels)
    least = negative_log_likelihood(logits, labels, found)
    for factor in (0.98, 1.02, 0.5, 2.0):
        assert least < negative_log_likelihood(logits, labels, found * factor)


@pytest.mark.parametrize("several", [False, True])
def test_the_likelihood_is_that_of_torchs_losses(several):
    logits, labels = sample(2.0, several, rows=50)
    loss = torch.nn.functional.binary_cross_entropy_with_logits if several else torch.nn.functional.cross_entropy
    expected = float(loss(torch.tensor(logits) / 1.3, torch.tensor(labels)))
    assert negative_log_likelihood(logits, labels, 1.3) == pytest.approx(expected)


@pytest.mark.parametrize("several", [False, True])
def test_what_cannot_be_fitted_is_said_in_words(several):
    logits, labels = sample(1.0, several, rows=LEAST_ROWS)
    assert fit_temperature(logits, labels)[1] == ""
    few = fit_temperature(logits[1:], labels[1:])
    assert few[0] is None and f"{LEAST_ROWS - 1} labelled rows or words are too few" in few[1]
    right = (logits > 0).astype(float) if several else logits.argmax(axis=1)
    sure = fit_temperature(logits, right)
    assert sure[0] is None and f"all {LEAST_ROWS} answers are right" in sure[1]
    wrong = 1 - right if several else logits.argmin(axis=1)
    lost = fit_temperature(logits, wrong)
    assert lost[0] is None and "lies beyond" in lost[1]
    one_class = fit_temperature(np.ones((LEAST_ROWS, 1)), np.zeros(LEAST_ROWS, dtype=int))
    assert one_class[0] is None


# The error


def test_the_error_of_a_small_example_is_the_one_by_hand():
    """Two bins of 15: (0.5333, 0.6] with 2 answers, 1 right, mean 0.58; (0.8667, 0.9333] with 2, both right, 0.9."""
    confidence, is_right = np.array([0.56, 0.6, 0.9, 0.9]), np.array([True, False, True, True])
    assert expected_calibration_error(confidence, is_right) == pytest.approx(0.5 * 0.08 + 0.5 * 0.1)
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0
    assert expected_calibration_error(np.array([0.0]), np.array([False])) == 0.0


def test_the_error_is_that_of_a_loop_over_bins():
    confidence, is_right = confidences(*sample(2.0, several=False, rows=1000))
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(is_right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, is_right) == pytest.approx(expected)


def test_the_confidence_of_a_yes_or_no_is_that_of_what_was_said():
    confidence, is_right = confidences(np.array([[2.0, -2.0], [0.5, -1.0]]), np.array([[1.0, 1.0], [0.0, 0.0]]))
    assert confidence == pytest.approx(expit([2.0, 2.0, 0.5, 1.0]))
    assert is_right.tolist() == [True, False, False, True]


# What it is fitted on


@pytest.mark.parametrize("name", ["ner", "tags", "topic"])
def test_logits_are_those_of_labelled_rows_and_first_sub_words(tmp_path, name):
    """Batches of 8, the last one smaller, against one pass over all rows."""
    model = new_model(TINY_TASKS)
    rows = data_of(TINY_TASKS, 21)[name]
    if name == "ner":  # as evaluation data: some tokens of a row carry no label
        for row in rows:
            row["labels"]["ner"][2] = -100
    trainer = new_trainer(arguments(tmp_path), model, None)
    logits, labels = labelled_logits(trainer, name, rows)
    batch = MultiTaskDataCollator(trainer.data_collator.tokenizer, TINY_TASKS)(rows)
    with torch.no_grad():
        expected = model.eval()(**batch).logits[name]
    there = batch["labels"][name] != -100 if name == "ner" else slice(None)
    assert logits == pytest.approx(expected[there].numpy(), abs=1e-5)
    assert np.array_equal(labels, batch["labels"][name][there].numpy())


def test_calibrating_sets_temperatures_of_heads_with_classes_alone(tmp_path):
    model = new_model(TINY_TASKS)
    model.config.tasks["topic"]["temperature"] = 9.0  # of an earlier fit: not taken into account
    trainer = new_trainer(arguments(tmp_path), model, None)
    report = calibrate(trainer, data_of({n: TINY_TASKS[n] for n in ("topic", "tags", "ner", "rating", "anchor")}, 30))
    specs = model.config.tasks
    assert (
        {name for name, spec in specs.items() if "temperature" in spec}
        == {name for name in specs if f"calibration_{name}_temperature" in report}
        <= {"tags", "ner"}
    )
    assert report["calibration_topic_rows"] == 30
    assert "Task 'topic' is not calibrated: 30 labelled rows or words are too few" in report["calibration_notes"][0]
    assert len(report["calibration_notes"]) == 3


# Every door


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved model of all kinds of tasks, with temperatures."""
    path = tmp_path_factory.mktemp("calibrated")
    model = MultiTaskModel.from_pretrained(model_folder)
    for name, temperature in TEMPERATURES.items():
        model.config.tasks[name]["temperature"] = temperature
    model.save_pretrained(path)
    tiny_tokenizer("bert").save_pretrained(path)
    return path


def opened(path):
    """A model in evaluation mode and its tokenizer."""
    return MultiTaskModel.from_pretrained(path).eval(), tiny_tokenizer("bert")


def test_saved_temperatures_divide_logits_and_leave_loss_and_embedding(folder, model_folder):
    (model, tokenizer), (plain, _) = opened(folder), opened(model_folder)
    assert {n: s["temperature"] for n, s in model.config.tasks.items() if "temperature" in s} == TEMPERATURES
    rows = [row for name, spec in TINY_TASKS.items() for row in data_of({name: spec}, 3)[name]]
    batch = MultiTaskDataCollator(tokenizer, TINY_TASKS)(rows)
    batch["labels"].pop("anchor")  # its teacher is of another size
    one, other = model(**batch), plain(**batch)
    assert torch.equal(one.loss, other.loss) and torch.equal(one.sentence_embedding, other.sentence_embedding)
    for name, logits in one.logits.items():
        assert torch.equal(logits.nan_to_num(), (other.logits[name] / TEMPERATURES.get(name, 1.0)).nan_to_num()), name


@pytest.mark.parametrize("bf16", [False, True])
def test_no_answer_changes_and_scores_are_those_at_the_temperature(folder, model_folder, bf16):
    (model, tokenizer), (plain, _) = opened(folder), opened(model_folder)
    texts = [*TEXTS, (TEXTS[0], TEXTS[1])]
    options = {"tokenizer": tokenizer, "bf16": bf16}
    for one, other in zip(model.predict(texts, **options), plain.predict(texts, **options), strict=True):
        assert one["topic"]["label"] == other["topic"]["label"] and one["tags"]["labels"] == other["tags"]["labels"]
        for name in ("ner", "upos"):
            assert [(p["word"], p.get("entity")) for p in one[name]] == [
                (p["word"], p.get("entity")) for p in other[name]
            ]
        for name in ("topic", *(["joint"] if "joint" in one else [])):
            spec = plain.config.tasks[name]
            before = np.log([other[name]["scores"][label] for label in spec["labels"]])
            after = [one[name]["scores"][label] for label in spec["labels"]]
            assert after == pytest.approx(softmax(before / TEMPERATURES[name]), abs=1e-6), name
        assert one["rating"] == other["rating"]


def test_logits_that_differ_in_bfloat16_stay_different():
    """A division in bfloat16 would make equal numbers of neighbours, and the answer another."""
    model = new_model({"topic": {**TINY_TASKS["topic"], "temperature": 1.3}})
    logits = torch.arange(1.0, 2.0, 2**-7, dtype=torch.bfloat16)
    assert len(logits.unique()) == 128 > len((logits / 1.3).unique()), "the premise"
    assert len(model.calibrated("topic", logits).unique()) == 128


def test_stock_pipelines_views_handler_and_native_folders_give_the_scores_of_predict(folder, tmp_path):
    model, tokenizer = opened(folder)
    expected = model.predict(TEXTS, tokenizer, bf16=False)
    options = {"model": str(folder), "trust_remote_code": True}
    multitask = pipeline("multitask", **options)(TEXTS, bf16=False)
    served = EndpointHandler(str(folder))({"inputs": TEXTS, "parameters": {"bf16": False}})
    topics = pipeline("text-classification", model_kwargs={"task_name": "topic"}, top_k=None, **options)(TEXTS)
    tags = pipeline("text-classification", model_kwargs={"task_name": "tags"}, top_k=None, **options)(TEXTS)
    words = {"aggregation_strategy": "first"}
    spans = pipeline("token-classification", model_kwargs={"task_name": "ner"}, **words, **options)(TEXTS)
    write_native(model, tokenizer, tmp_path, "ner")
    native = pipeline("token-classification", model=str(tmp_path), **words)(TEXTS)
    assert type(AutoModelForTokenClassification.from_pretrained(tmp_path)).__name__ == "BertForTokenClassification"
    assert any(answer["ner"] for answer in expected), "the premise: there are spans to compare"
    for place, answer in enumerate(expected):
        for found in (multitask, served):
            assert found[place]["topic"]["scores"] == pytest.approx(answer["topic"]["scores"], abs=1e-6)
        for found, name in ((topics, "topic"), (tags, "tags")):
            assert {one["label"]: one["score"] for one in found[place]} == pytest.approx(
                answer[name]["scores"], abs=1e-6
            )
        for found in (spans, native):
            assert [one["entity_group"] for one in found[place]] == [one["entity_group"] for one in answer["ner"]]
            scores = [float(one["score"]) for one in found[place]]
            assert scores == pytest.approx([one["score"] for one in answer["ner"]], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("graph_format", ["onnx", "openvino"])
def test_a_graph_gives_the_scores_of_predict(folder, tmp_path, graph_format):
    pytest.importorskip({"onnx": "onnxruntime"}.get(graph_format, graph_format))
    from graph_export import export_graph
    from graph_model import GraphModel

    model, tokenizer = opened(folder)
    export_graph(model, tokenizer, tmp_path, graph_format, "fp32")
    graph = GraphModel.from_pretrained(tmp_path)
    found = graph.predict(TEXTS, tokenizer)
    for one, other in zip(found, model.predict(TEXTS, tokenizer, bf16=False), strict=True):
        for name in ("topic", "tags"):
            assert one[name]["scores"] == pytest.approx(other[name]["scores"], abs=1e-4)
        assert [s["score"] for s in one["upos"]] == pytest.approx([s["score"] for s in other["upos"]], abs=1e-4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"kind": "text-classification", "labels": ["a", "b"], "temperature": 0.0},
            "temperature must be a finite number",
        ),
        (
            {"kind": "text-classification", "problem_type": "regression", "temperature": 2.0},
            "a regression task has none",
        ),
        ({"kind": "sentence-similarity", "temperature": 2.0}, "has no field 'temperature'"),
    ],
)
def test_a_temperature_that_cannot_be_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskConfig(tasks={"one": spec})


def test_a_task_that_goes_on_learning_loses_its_temperature_and_the_others_keep_theirs(folder):
    config = MultiTaskForSequenceClassification.config_class
    specs = {name: config(tasks={name: TINY_TASKS[name]}).tasks[name] for name in ("topic", "ner")}
    model, _ = extend_trained(ModelArguments(init_from=str(folder)), specs, True, [])
    found = {name: spec["temperature"] for name, spec in model.config.tasks.items() if "temperature" in spec}
    assert found == {name: value for name, value in TEMPERATURES.items() if name not in specs}


# The command

RECIPE = """
encoder: {encoder}
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 96, validation: 60, test: 60}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 96, validation: 30, test: 30}}
  similarity:
    dataset: builtin:similarity
    columns: {{text: sentence1, text_pair: sentence2, label: score}}
    max_rows: {{train: 32, validation: 8, test: 8}}
num_train_epochs: 3
learning_rate: 0.003
per_device_train_batch_size: 16
bf16: false
report_to: none
"""


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two runs of the command: as it is, and calibrated."""
    folders = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("calibrated")
    for folder, options in zip(folders, ([], ["--calibrate", "true"]), strict=True):
        train_hf.main([str(recipe), "--output_dir", str(folder), *options])
    return folders


def results(folder, split="test"):
    """The numbers of a result file that do not depend on the clock."""
    read = json.loads((folder / f"{split}_results.json").read_text())
    return {name: read[name] for name in read if not name.endswith(("_runtime", "_per_second", "_time", "_protocol"))}


@pytest.mark.slow
def test_a_calibrated_run_has_the_weights_and_metrics_of_the_plain_one(runs):
    plain, calibrated = runs
    assert (plain / "model.safetensors").read_bytes() == (calibrated / "model.safetensors").read_bytes()
    before, after = results(plain), results(calibrated)
    errors = {f"test_{task}_ece{suffix}" for task in ("topic", "entities") for suffix in ("", "_uncalibrated")}
    assert after.keys() - before.keys() == errors
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_results_card_and_configuration_of_a_calibrated_run_agree(runs, recipe, tmp_path):
    _, folder = runs
    tasks = json.loads((folder / "config.json").read_text())["tasks"]
    fitted = results(folder, "calibration")
    card = (folder / "README.md").read_text()
    for task in ("topic", "entities"):
        assert tasks[task]["temperature"] == fitted[f"calibration_{task}_temperature"] != 1.0
        assert fitted[f"calibration_{task}_nll"] < fitted[f"calibration_{task}_nll_uncalibrated"]
        scores = results(folder)
        row = [f"{scores[f'test_{task}_ece{suffix}']:.4f}" for suffix in ("_uncalibrated", "")]
        assert f"| {task} | {tasks[task]['temperature']:.3f} | {row[0]} | {row[1]} |" in card
    assert "Scores of entities, topic are calibrated" in card and "Scores are not calibrated" not in card
    assert "Scores are not calibrated" in (runs[0] / "README.md").read_text()
    evaluate_hf.main([str(folder), "--data", str(recipe), "--output_dir", str(tmp_path)])
    assert results(tmp_path) == pytest.approx(results(folder), abs=1e-4)


@pytest.mark.slow
def test_two_ranks_fit_the_temperatures_of_one(runs, recipe, tmp_path):
    """Evaluation only differs in how rows are shared out: the trained model is scored and fitted again."""
    options = ["--init_from", runs[0], "--learning_rate", "1e-12", "--num_train_epochs", "1", "--calibrate", "true"]
    options = [str(option) for option in options]
    train_hf.main([str(recipe), "--output_dir", str(tmp_path / "one"), *options])
    launch("train_hf.py", recipe, "--use_cpu", "--output_dir", tmp_path / "two", *options)
    one, two = (results(tmp_path / name, "calibration") for name in ("one", "two"))
    assert one["calibration_topic_rows"] == two["calibration_topic_rows"] == 60
    for task in ("topic", "entities"):
        assert two[f"calibration_{task}_temperature"] == pytest.approx(one[f"calibration_{task}_temperature"], rel=1e-3)
        assert math.isfinite(results(tmp_path / "two")[f"test_{task}_ece"])
