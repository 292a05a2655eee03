"""Teachers: whose answers arrive at which item and token, what the loss makes of them, and when labels take over.

Teachers are tiny models that are saved here: of this project, and of transformers with another tokenizer.
"""

import copy
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ranks import largest_difference, on_ranks
from test_trainer_multitask import arguments, data_of, new_model, new_trainer
from tiny_models import TINY_TASKS, tiny_config, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, TrainerCallback

import train_hf
from arguments_multitask import MultiTaskTrainingArguments, read_task
from configuration_multitask import check_task
from data_collator import MultiTaskDataCollator
from distillation_multitask import (
    Teacher,
    TeacherAnnealing,
    add_teachers,
    embedding_teachers,
    logits_of_tokens,
    logits_of_words,
    open_teacher,
)
from losses_multitask import losses_of, r_drop_losses, taught_losses, teacher_losses
from modeling_multitask import MultiTaskModel
from saved_model import open_model
from task_data import load_tasks
from task_features import build_features
from task_sampler import TaskSamplingDataset

TOPIC = {"dataset": "builtin:topic"}
ANCHOR = {**TOPIC, "kind": "feature-extraction"}
ENTITIES = {"dataset": "builtin:entities", "columns": {"tokens": "tokens", "label": "ner_tags"}}
SIMILARITY = {
    "dataset": "builtin:similarity",
    "columns": {"text": "sentence1", "text_pair": "sentence2", "label": "score"},
}
MAX_LENGTH = 64


def load(tasks, rows=20):
    """Built-in tasks, capped."""
    caps = {"train": rows, "validation": 8, "test": 8}
    return load_tasks({name: read_task(name, {"max_rows": caps, **task}) for name, task in tasks.items()})


def save(model, folder: Path, family="bert") -> str:
    """A folder with a model and the tokenizer of its family."""
    model.save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return str(folder)


def of_transformers(auto_class, labels, folder: Path, family="roberta", seed=1) -> str:
    """A folder with a random classifier of transformers, its answers far apart."""
    config = tiny_config(family)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto_class.from_config(config).eval()
        for parameter in model.classifier.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return save(model, folder, family)


def taught(loaded, sources):
    """Training features of loaded tasks with the answers of their teachers."""
    features = build_features(loaded, tiny_tokenizer("bert"), MAX_LENGTH)
    add_teachers(features, loaded, sources, tiny_tokenizer("bert"), MAX_LENGTH)
    return features


@pytest.fixture(scope="module")
def topic():
    """A task of one class a text, with its rows."""
    return load({"topic": TOPIC})


@pytest.fixture(scope="module")
def ours(topic, tmp_path_factory) -> str:
    """A folder of ours that answers `topic`, and another task besides."""
    tasks = {"topic": topic["topic"].spec, "other": TINY_TASKS["tags"]}
    model = new_model(tasks, seed=3).eval()
    torch.nn.init.normal_(model.heads["topic"].out.weight, std=0.5)
    return save(model, tmp_path_factory.mktemp("ours"))


# What teachers answer


def test_each_row_has_what_a_teacher_of_ours_says_of_its_text(topic, ours) -> None:
    """One text at a time, so that neither order nor padding can hide behind the batch."""
    features = taught(topic, {"topic": ours})
    teacher = open_teacher("topic", topic["topic"].spec, ours)
    texts = {row["row"]: row["text"] for row in topic["topic"].splits["train"]}
    answers = []
    for item in features.train["topic"]:
        inputs = teacher.tokenizer(texts[item["row"]], return_tensors="pt")
        with torch.no_grad():
            expected = teacher.model(**inputs, tasks=["topic"]).logits["topic"][0]
        answers.append(torch.tensor(item["teacher_logits"]["topic"]))
        torch.testing.assert_close(answers[-1], expected, atol=1e-5, rtol=0)
    assert torch.stack(answers).std(dim=0).min() > 0.01, "the premise: answers differ from row to row"
    assert f"Task 'topic' learns from the answers of {Path(ours).name} beside its labels." in features.notes


def test_a_classifier_of_transformers_answers_in_the_order_of_the_tasks_labels(topic, tmp_path) -> None:
    """It has another tokenizer, and its labels stand backwards."""
    labels = topic["topic"].spec["labels"]
    source = of_transformers(AutoModelForSequenceClassification, labels[::-1], tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    texts = {row["row"]: row["text"] for row in topic["topic"].splits["train"]}
    for item in taught(topic, {"topic": source}).train["topic"]:
        with torch.no_grad():
            expected = model(**tiny_tokenizer("roberta")(texts[item["row"]], return_tensors="pt")).logits[0].flip(0)
        torch.testing.assert_close(torch.tensor(item["teacher_logits"]["topic"]), expected, atol=1e-5, rtol=0)


def test_reordered_labels_of_a_teacher_change_no_answer_and_no_loss(topic, ours, tmp_path) -> None:
    labels = topic["topic"].spec["labels"]
    order = [2, 0, 1]
    spec = copy.deepcopy(topic["topic"].spec) | {"labels": [labels[index] for index in order]}
    model = new_model({"topic": spec, "other": TINY_TASKS["tags"]}, seed=3).eval()
    original = open_teacher("topic", topic["topic"].spec, ours).model
    state = original.state_dict()
    for name in ("heads.topic.out.weight", "heads.topic.out.bias"):
        state[name] = state[name][order]
    model.load_state_dict(state)
    other = save(model, tmp_path)
    one, two = (taught(topic, {"topic": source}).train["topic"] for source in (ours, other))
    assert one["teacher_logits"][:] == two["teacher_logits"][:]
    assert open_teacher("topic", topic["topic"].spec, other).order == [1, 2, 0], "the premise: they stand otherwise"


def test_other_labels_are_refused_with_both_lists(topic, tmp_path) -> None:
    source = of_transformers(AutoModelForSequenceClassification, ["LABEL_0", "LABEL_1", "LABEL_2"], tmp_path)
    with pytest.raises(ValueError, match="has Technology, Weather, Other, .* has LABEL_0, LABEL_1, LABEL_2. Rename"):
        open_teacher("topic", topic["topic"].spec, source)


def test_a_teacher_of_another_kind_is_refused_with_its_tasks(topic, tmp_path) -> None:
    source = save(new_model({"rating": TINY_TASKS["rating"]}), tmp_path)
    with pytest.raises(ValueError, match="'rating' has problem_type 'regression', not .* tasks: rating"):
        open_teacher("topic", topic["topic"].spec, source)
    with pytest.raises(ValueError, match="can have a model of this project"):
        encoder = of_transformers(AutoModelForSequenceClassification, ["a", "b"], tmp_path / "classifier")
        open_teacher("similarity", check_task("similarity", TINY_TASKS["similarity"]), encoder)


def test_the_head_is_the_one_of_the_tasks_name_else_that_of_task_name(topic, tmp_path) -> None:
    spec = topic["topic"].spec
    source = save(new_model({"first": spec, "second": spec, "topic": spec}, task_name="second"), tmp_path)
    assert open_teacher("topic", spec, source).head == "topic"
    assert open_teacher("news", spec, source).head == "second"


def test_no_code_of_a_teachers_folder_runs(topic, tmp_path) -> None:
    """Neither of a model of ours nor of an unknown kind of model."""
    trap = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    source = Path(save(new_model({"topic": topic["topic"].spec}), tmp_path / "ours"))
    for module in source.glob("*.py"):
        module.write_text(trap)
    open_teacher("topic", topic["topic"].spec, str(source))
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"model_type": "strange", "auto_map": {"AutoConfig": "trap.Config"}}')
    (strange / "trap.py").write_text(trap)
    with pytest.raises(ValueError, match="teacher .* cannot be opened"):
        open_teacher("topic", topic["topic"].spec, str(strange))
    assert not (tmp_path / "ran").exists()


def test_a_teacher_whose_head_is_not_in_its_file_is_refused(topic, encoder_folder) -> None:
    """A bare encoder: transformers would make a random head."""
    labels = topic["topic"].spec["labels"]
    spec = {**topic["topic"].spec, "labels": ["LABEL_0", "LABEL_1"]}
    assert len(labels) == 3
    with pytest.raises(ValueError, match="not in the file: classifier"):
        open_teacher("topic", spec, str(encoder_folder("bert")))


def test_tags_of_another_tokenizer_arrive_at_the_tokens_of_the_same_words(tmp_path) -> None:
    """A word's first token has the teacher's logits at its first token there; later ones cannot begin an entity."""
    loaded = load({"ner": ENTITIES})
    labels = loaded["ner"].spec["labels"]
    source = of_transformers(AutoModelForTokenClassification, labels, tmp_path)
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(source).eval(), tiny_tokenizer("roberta")
    words_by_row = {row["row"]: row["tokens"] for row in loaded["ner"].splits["train"]}
    features = taught(loaded, {"ner": source}).train["ner"]
    begins = [index for index, label in enumerate(labels) if label.startswith("B-")]
    later_tokens = 0
    for item in features:
        words = words_by_row[item["row"]]
        inputs = tokenizer(" ".join(words), return_offsets_mapping=True, return_tensors="pt")
        offsets = inputs.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            expected = logits_of_words(words, offsets, model(**inputs).logits[0].numpy())
        student = tiny_tokenizer("bert")(" ".join(words), return_offsets_mapping=True)
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
        answers = np.array(item["teacher_logits"]["ner"], np.float32)
        assert len(answers) == len(item["input_ids"])
        assert np.isnan(answers[[0, -1]]).all()
        for token, (start, end) in enumerate(student["offset_mapping"]):
            if start == end:
                continue
            if start in starts:
                word = list(starts).index(start)
                np.testing.assert_allclose(answers[token], expected[word], atol=1e-5)
            else:
                later_tokens += 1
                assert np.isneginf(answers[token][begins]).all()
                assert np.logaddexp.reduce(answers[token]) == pytest.approx(
                    np.logaddexp.reduce(answers[token - 1]), abs=1e-4
                )
    assert later_tokens > 10, "the premise: words of several tokens"


def test_the_first_token_of_a_word_speaks_for_it_and_a_word_without_token_is_not_answered() -> None:
    logits = np.arange(8, dtype=np.float32).reshape(4, 2)
    found = logits_of_words(["ab", "c", "d"], [(0, 0), (0, 1), (1, 2), (3, 4)], logits)
    np.testing.assert_equal(found, [[2, 3], [6, 7], [math.nan, math.nan]])


def test_on_later_tokens_the_probability_of_beginning_goes_to_being_inside() -> None:
    """The example of the docstring."""
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    found = np.exp(logits_of_tokens([None, 0, 0], logits, [0, 2, 2]))
    np.testing.assert_allclose(found, [[math.nan] * 3, [0.5, 0.3, 0.2], [0.5, 0.0, 0.5]], atol=1e-6)


def test_a_similarity_is_taught_by_a_cosine_of_a_model_of_ours(tmp_path) -> None:
    loaded = load({"similarity": SIMILARITY})
    source = save(new_model({"similarity": loaded["similarity"].spec}, seed=5).eval(), tmp_path)
    features = taught(loaded, {"similarity": source}).train["similarity"]
    texts = {row["row"]: (row["text"], row["text_pair"]) for row in loaded["similarity"].splits["train"]}
    teacher = open_teacher("similarity", loaded["similarity"].spec, source)
    for item in features:
        answer = teacher.model.predict([texts[item["row"]]], teacher.tokenizer, bf16=False)[0]["similarity"]["score"]
        assert item["teacher_logits"]["similarity"] == pytest.approx(answer, abs=1e-5)


def test_rows_that_two_tasks_share_have_the_answers_of_both_teachers_or_of_one(tmp_path) -> None:
    aligned = {
        "topic": {"dataset": "builtin:topic_sentiment", "columns": {"label": "topic"}},
        "mood": {"dataset": "builtin:topic_sentiment", "columns": {"label": "sentiment"}},
    }
    loaded = load(aligned)
    source = save(new_model({name: task.spec for name, task in loaded.items()}, seed=3).eval(), tmp_path)
    both = taught(loaded, {"topic": source, "mood": source}).train["mood+topic"]
    one = taught(loaded, {"topic": source}).train["mood+topic"]
    assert both.features["teacher_logits"].keys() == {"mood", "topic"}
    assert one.features["teacher_logits"].keys() == {"topic"}
    for first, second in zip(both["teacher_logits"], one["teacher_logits"], strict=True):
        assert first["topic"] == second["topic"]
    assert both["labels"][:] == one["labels"][:]


def test_answers_are_cached_under_the_weights_of_the_teacher(ours, tmp_path, monkeypatch) -> None:
    """The same teacher is not asked again about rows of a file; one of other weights is."""
    file = tmp_path / "topics.csv"
    file.write_text("text,label\n" + "Rain in Oslo.,Weather\nA fast phone.,Technology\nHello.,Other\n" * 10)
    asked = []
    answer = Teacher.answer
    monkeypatch.setattr(Teacher, "answer", lambda self, *given: asked.append(1) or answer(self, *given))

    def answers(source):
        loaded = load({"topic": {"dataset": str(file), "labels": ["Technology", "Weather", "Other"]}})
        return taught(loaded, {"topic": source}).train["topic"]["teacher_logits"][:]

    first = answers(ours)
    assert len(asked) == 1, "the premise"
    assert answers(ours) == first and len(asked) == 1
    model = open_model(ours, offline=True)[0]
    model.heads["topic"].out.bias.data[0] += 1.0
    second = answers(save(model, tmp_path / "other"))
    assert len(asked) == 2 and second != first


def test_a_task_that_is_only_scored_has_nothing_to_be_taught(tmp_path) -> None:
    loaded = load({"topic": TOPIC, "similarity": {**SIMILARITY, "splits": {"train": None}}})
    source = save(new_model({"similarity": loaded["similarity"].spec}), tmp_path)
    with pytest.raises(ValueError, match="'similarity' has no training rows"):
        taught(loaded, {"similarity": source})


# The batch


def test_answers_are_padded_with_nan_to_the_shape_of_the_logits() -> None:
    tasks = {name: TINY_TASKS[name] for name in ("ner", "rating", "topic")}
    collator = MultiTaskDataCollator(tiny_tokenizer("bert"), tasks)
    features = [
        {"input_ids": [2, 7, 3], "labels": {"topic": 1}, "teacher_logits": {"topic": [1.0, 2.0, 3.0]}},
        {
            "input_ids": [2, 8, 9, 3],
            "labels": {"ner": [-100, 0, 1, -100]},
            "teacher_logits": {"ner": [[0.5] * 5] * 4, "topic": None},
        },
        {"input_ids": [2, 3], "labels": {"rating": 0.5}, "teacher_logits": {"rating": 0.25}},
        {"input_ids": [2, 3], "labels": {"rating": 0.5}},
    ]
    answers = collator(features)["teacher_logits"]
    assert {name: tuple(value.shape) for name, value in answers.items()} == {
        "ner": (4, 4, 5),
        "rating": (4,),
        "topic": (4, 3),
    }
    assert answers["topic"][0].tolist() == [1.0, 2.0, 3.0] and answers["topic"][1:].isnan().all()
    assert (answers["ner"][1] == 0.5).all() and answers["ner"][[0, 2, 3]].isnan().all()
    assert answers["rating"][2] == 0.25 and answers["rating"][[0, 1, 3]].isnan().all()
    assert "teacher_logits" not in collator([{"input_ids": [2, 3], "labels": {"rating": 0.5}}])


# The loss

FORMS = {
    "topic": ((6, 3), (6,), torch.long),
    "ner": ((6, 4, 5), (6, 4), torch.long),
    "tags": ((6, 4), (6, 4), torch.float32),
    "rating": ((6, 1), (6,), torch.float32),
    "similarity": ((6,), (6,), torch.float32),
}
"""Task -> shapes of logits and labels of six items, and the labels' type."""


def example(name, **loss):
    """Specification, logits with gradient, labels, and a teacher's answers of the same shape."""
    spec = check_task(name, {**TINY_TASKS[name], "loss": loss})
    shape, label_shape, dtype = FORMS[name]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    labels = torch.randint(0, 2, label_shape, generator=generator).to(dtype)
    if name == "ner":
        labels[:, 0] = -100
    teacher = torch.randn(shape, generator=generator)
    return spec, logits, labels, teacher.squeeze(-1) if name == "rating" else teacher


@pytest.mark.parametrize("name", FORMS)
def test_at_the_end_of_annealing_only_labels_count_bit_for_bit(name) -> None:
    spec, logits, labels, teacher = example(name)
    losses = taught_losses(spec, logits, labels, teacher, 1.0)
    assert torch.equal(losses, losses_of(spec)(spec, logits, labels))
    (with_teacher,) = torch.autograd.grad(losses.mean(), logits)
    (alone,) = torch.autograd.grad(losses_of(spec)(spec, logits, labels).mean(), logits)
    assert torch.equal(with_teacher, alone)


@pytest.mark.parametrize("name", FORMS)
def test_a_model_that_says_what_its_teacher_says_learns_nothing_from_it(name) -> None:
    """At the start of annealing, where labels do not count; and the premise: from another teacher it does."""
    loss = {"distillation_temperature": 3.0} if name in ("topic", "ner", "tags") else {}
    spec, logits, labels, other = example(name, **loss)
    same = logits.detach().squeeze(-1) if name == "rating" else logits.detach()
    (gradient,) = torch.autograd.grad(taught_losses(spec, logits, labels, same, 0.0).sum(), logits)
    assert gradient.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(taught_losses(spec, logits, labels, other, 0.0).sum(), logits)
    assert gradient.abs().max() > 0.05


@pytest.mark.parametrize("name", FORMS)
def test_the_share_of_the_labels_goes_linearly_from_its_first_to_its_last_number(name) -> None:
    spec, logits, labels, teacher = example(name, label_share=[0.2, 0.6])
    of_labels, quarter = losses_of(spec)(spec, logits, labels), taught_losses(spec, logits, labels, teacher, 0.25)
    pure = {**spec, "loss": {**spec["loss"], "label_share": [0.0, 0.0]}}
    of_teacher = taught_losses(pure, logits, labels, teacher, 0.25)
    torch.testing.assert_close(quarter, 0.3 * of_labels + 0.7 * of_teacher)


def test_items_that_a_teacher_says_nothing_of_learn_from_their_labels() -> None:
    spec, logits, labels, teacher = example("topic")
    teacher[2] = math.nan
    losses, alone = taught_losses(spec, logits, labels, teacher, 0.0), losses_of(spec)(spec, logits, labels)
    assert losses[2] == alone[2] and (losses != alone).sum() == 5
    nothing = taught_losses(spec, logits, labels, torch.full_like(teacher, math.nan), 0.0)
    assert torch.equal(nothing, alone)


def test_of_tags_only_labelled_tokens_count_that_the_teacher_knows() -> None:
    """Also where a tag cannot stand (-inf); special tokens and words behind the teacher's limit are NaN."""
    spec, logits, labels, teacher = example("ner")
    teacher[:, :, 1] = -math.inf
    teacher[:, 3] = math.nan
    losses = taught_losses(spec, logits, labels, teacher, 0.0)
    probabilities = teacher[:, 1:3].softmax(-1)
    expected = -(probabilities * logits[:, 1:3].log_softmax(-1)).sum(-1).mean(1)
    torch.testing.assert_close(losses, expected)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert gradient.isfinite().all() and (gradient[:, [0, 3]] == 0).all()


def test_temperature_changes_what_is_learnt_but_hardly_how_much() -> None:
    """For small logits the gradient is that of T = 1 (Hinton et al. 2015, equation 4): hence the factor T^2."""
    spec, logits, _, teacher = example("topic", distillation_temperature=50.0)
    small, target = (logits * 0.01).detach().requires_grad_(), 0.01 * teacher
    (warm,) = torch.autograd.grad(teacher_losses(spec, small, target).sum(), small)
    (plain,) = torch.autograd.grad(teacher_losses(example("topic")[0], small, target).sum(), small)
    torch.testing.assert_close(warm, plain, rtol=0.02, atol=1e-5)


def test_with_r_drop_both_passes_learn_from_the_teacher_and_the_divergence_keeps_its_weight() -> None:
    spec, first, labels, teacher = example("topic", r_drop=2.0)
    second = first.detach() + 0.3 * teacher

    def item_loss(spec, logits, labels):
        return taught_losses(spec, logits, labels, teacher, 0.4)

    mixed = (item_loss(spec, first, labels) + item_loss(spec, second, labels)) / 2
    plain = (losses_of(spec)(spec, first, labels) + losses_of(spec)(spec, second, labels)) / 2
    with_teacher = r_drop_losses(spec, first, second, labels, item_loss)
    torch.testing.assert_close(with_teacher - mixed, r_drop_losses(spec, first, second, labels) - plain)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_models_loss_has_each_tasks_teacher_at_the_progress_that_was_set(bf16) -> None:
    """In mixed precision too: at the end equal bit for bit to no teacher, before it in between."""
    tasks = {name: TINY_TASKS[name] for name in ("ner", "topic")}
    model = new_model(tasks).train()
    batch = MultiTaskDataCollator(tiny_tokenizer("bert"), tasks)(
        [*data_of(tasks, 4)["ner"], *data_of(tasks, 4)["topic"]]
    )
    answers = {"topic": torch.randn(8, 3, generator=torch.Generator().manual_seed(0))}

    def loss(progress, **given):
        model.training_progress = progress
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(**batch, **given)

    plain, start, half, end = loss(0.0), *(loss(part, teacher_logits=answers) for part in (0.0, 0.5, 1.0))
    assert torch.equal(end.loss, plain.loss) and not torch.equal(start.loss, plain.loss)
    torch.testing.assert_close(half.loss, (start.loss + end.loss) / 2)
    assert torch.equal(start.task_losses["ner"], plain.task_losses["ner"])


# Recipes


def test_what_says_how_to_learn_from_a_teacher_needs_one() -> None:
    with pytest.raises(ValueError, match="loss.label_share says how it learns from a teacher; name one"):
        read_task("topic", {**TOPIC, "loss": {"label_share": [0, 1]}})
    read_task("topic", {**TOPIC, "loss": {"label_share": [0, 1]}, "distill_from": "folder"})
    with pytest.raises(ValueError, match="label_share"):
        read_task("anchor", {**ANCHOR, "loss": {"label_share": [0, 1]}, "distill_from": "folder"})


@pytest.mark.parametrize("share", [0.5, [0.5], [0, 2], ["a", 1]])
def test_a_label_share_is_two_numbers_between_0_and_1(share) -> None:
    with pytest.raises(ValueError, match=r"loss\.label_share"):
        check_task("topic", {**TINY_TASKS["topic"], "loss": {"label_share": share}})


# Embeddings


def embedding_model(folder: Path, seed: int, **config) -> str:
    """A saved model of ours with random embeddings."""
    return save(new_model({"topic": TINY_TASKS["topic"]}, seed=seed, **config), folder)


def test_the_embedding_of_another_model_is_learnt_and_without_one_the_models_own(tmp_path) -> None:
    """Labels are the named model's embeddings of each row's text; two tasks may have different teachers."""
    student, tokenizer = open_model(embedding_model(tmp_path / "student", 1), offline=True)
    other = embedding_model(tmp_path / "other", 2)
    loaded = load({"own": ANCHOR, "others": ANCHOR})
    teachers = embedding_teachers(loaded, {"others": other}, student, tokenizer, offline=True)
    texts = {row["row"]: row["text"] for row in loaded["own"].splits["train"]}
    features = build_features(loaded, tokenizer, MAX_LENGTH, teachers=teachers)
    vectors = {"own": student.encode, "others": open_model(other, offline=True)[0].encode}
    for item in features.train["others+own"]:
        for name, encode in vectors.items():
            expected = encode([texts[item["row"]]], tokenizer=tokenizer)[0]
            np.testing.assert_allclose(item["labels"][name], expected, atol=1e-5)
    assert not np.allclose(item["labels"]["own"], item["labels"]["others"], atol=0.01)
    assert teachers["others"].digest and not teachers["own"].digest
    assert "Task 'others': its teacher is other." in features.notes


def test_a_sentence_encoder_that_is_none_of_ours_teaches_its_embedding(tmp_path) -> None:
    model = new_model({"topic": TINY_TASKS["topic"]})
    folder = save(model.encoder, tmp_path / "encoder")
    teacher = embedding_teachers(load({"keep": ANCHOR}), {"keep": folder}, model, None, offline=True)["keep"]
    text = "Oil prices fell"
    expected = MultiTaskModel.from_backbone(folder).encode([text], tokenizer=tiny_tokenizer("bert"))
    np.testing.assert_allclose(teacher.embed([text]), expected, atol=1e-6)


def test_a_teacher_of_embeddings_that_does_not_fit_is_refused(tmp_path) -> None:
    """Of another size, or where the data holds embeddings; the message has both ways out."""
    student = new_model({"topic": TINY_TASKS["topic"]})
    size = student.config.embedding_size
    small = embedding_model(tmp_path / "small", 1, projection_dim=size // 2)
    loaded = load({"keep": ANCHOR})
    with pytest.raises(ValueError, match=rf"'keep'.* {size} numbers; those of .*small are {size // 2}\. .*projection"):
        embedding_teachers(loaded, {"keep": small}, student, None, offline=True)
    rows = loaded["keep"].splits["train"]
    loaded["keep"].splits["train"] = rows.add_column("label", [[0.0] * size] * len(rows))
    with pytest.raises(ValueError, match="it has both. Remove distill_from"):
        embedding_teachers(loaded, {"keep": small}, student, None, offline=True)


# Runs


class Noted(TrainerCallback):
    """Notes `training_progress` at each micro-batch, by a hook on the model."""

    def __init__(self, model):
        self.seen = []
        model.register_forward_pre_hook(lambda module, given: self.seen.append(module.training_progress))


def run_noted(folder, **options):
    """Progress at each forward pass of 6 steps of 8 rows, and the trainer."""
    tasks = {name: TINY_TASKS[name] for name in ("ner", "topic")}
    model = new_model(tasks)
    noted = Noted(model)
    sampling = TaskSamplingDataset(data_of(tasks, 24), rows_per_step=8, num_epochs=1)
    args = arguments(folder, MultiTaskTrainingArguments, **options)
    trainer = new_trainer(args, model, sampling, callbacks=[TeacherAnnealing()])
    trainer.train(options.get("resume_from_checkpoint"))
    return noted.seen


def test_progress_is_the_part_of_the_steps_that_is_over_in_every_micro_batch_and_after_a_resume(tmp_path) -> None:
    whole = run_noted(tmp_path / "whole", save_strategy="steps", save_steps=4)
    assert whole == pytest.approx([step / 6 for step in range(6)])
    halves = run_noted(tmp_path / "halves", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert halves == [part for part in whole for _ in range(2)]
    resumed = run_noted(tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed == whole[4:]


RECIPE = """
encoder: {encoder}
head_dropout: 0.1
tasks:
  topic:
    dataset: builtin:topic
    max_rows: {{train: 40, validation: 9, test: 9}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 40, validation: 9, test: 9}}
num_train_epochs: 3
per_device_train_batch_size: 8
optim: sgd
learning_rate: 0.05
load_best_model_at_end: false
save_strategy: steps
save_steps: 10
save_total_limit: null
bf16: false
report_to: none
"""
PLAIN = ["--head_dropout", "0", "--grouping", "none"]
"""For runs whose micro-batches differ: dropout and padding would too."""


@pytest.fixture(scope="module")
def teachers(recipe: Path, tmp_path_factory) -> list[str]:
    """Two trained tasks' folders, each of its own, as arguments of the run that learns from them."""
    folder = tmp_path_factory.mktemp("teachers")
    words = []
    for name, other in (("topic", "entities"), ("entities", "topic")):
        single = folder / f"{name}.yaml"
        text = recipe.read_text()
        start = text.index(f"  {other}:")
        end = text.index("  entities:") if other == "topic" else text.index("num_train_epochs")
        single.write_text(text[:start] + text[end:])
        train_hf.main([str(single), "--output_dir", str(folder / name)])
        words += [f"--tasks.{name}.distill_from", str(folder / name)]
    return words


def weights_of(folder: Path) -> str:
    """The sha256 of saved weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_run_learns_from_the_folders_that_single_runs_wrote(recipe, teachers, tmp_path, capsys) -> None:
    """It ends elsewhere than without, and where only labels count, exactly there; the saved model opens as any."""
    main = train_hf.main
    main([str(recipe), *teachers, "--output_dir", str(tmp_path / "taught")])
    assert "'topic' learns from the answers of" in capsys.readouterr().out
    main([str(recipe), "--output_dir", str(tmp_path / "plain")])
    labels_alone = [word for name in ("topic", "entities") for word in (f"--tasks.{name}.loss.label_share", "[1, 1]")]
    main([str(recipe), *teachers, *labels_alone, "--output_dir", str(tmp_path / "labels")])
    assert largest_difference(tmp_path / "taught", tmp_path / "plain") > 1e-3
    assert largest_difference(tmp_path / "labels", tmp_path / "plain") < 1e-6


@pytest.mark.slow
def test_a_resumed_run_with_teachers_ends_with_the_weights_of_the_unbroken_one(
    recipe, teachers, tmp_path, capsys
) -> None:
    """And a teacher that changed in between is refused."""
    words = [str(recipe), *teachers, "--output_dir", str(tmp_path)]
    train_hf.main(words)
    unbroken = weights_of(tmp_path)
    again = ["--resume_from_checkpoint", str(tmp_path / "checkpoint-10")]
    train_hf.main([*words, *again])
    assert weights_of(tmp_path) == unbroken
    words[2] = teachers[3]  # the teacher of entities has no such head
    with pytest.raises(SystemExit):
        train_hf.main([*words, *again])
    assert "needs a teacher of the same task" in capsys.readouterr().err
    other = tmp_path / "other"
    model = open_teacher("topic", load({"topic": TOPIC})["topic"].spec, teachers[1]).model
    model.heads["topic"].out.bias.data += torch.tensor([0.5, 0.0, 0.0])
    words[2] = save(model, other)
    with pytest.raises(SystemExit):
        train_hf.main([*words, *again])
    assert "facts.teachers.topic" in capsys.readouterr().err


@pytest.mark.slow
def test_accumulation_and_two_ranks_learn_from_teachers_what_one_process_does(recipe, teachers, tmp_path) -> None:
    words = [str(recipe), *teachers, *PLAIN]
    train_hf.main([*words, "--output_dir", str(tmp_path / "one")])
    batches = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"]
    train_hf.main([*words, *batches, "--output_dir", str(tmp_path / "accumulated")])
    assert largest_difference(tmp_path / "one", tmp_path / "accumulated") < 1e-5
    reports = on_ranks("command", tmp_path / "ranks", *words, *batches[:2])
    assert reports[0]["sha256"] == reports[1]["sha256"]
    assert largest_difference(tmp_path / "one", tmp_path / "ranks") < 1e-5
