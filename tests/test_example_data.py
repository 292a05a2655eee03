"""`example_data`: the same rows everywhere, no test words in train, and files that read back as they were."""

import collections
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

import example_data
from configuration_multitask import has_entities
from example_data import EXAMPLES, FORMATS, SPLIT_ROWS, generate, main, named_rows, write_files

CLASS_COLUMNS = {
    "topic": ["label"],
    "sentence_type": ["label"],
    "sentiment": ["label"],
    "topic_sentiment": ["topic", "sentiment"],
}
LOADERS = {"csv": ("csv", {}), "tsv": ("csv", {"delimiter": "\t"}), "jsonl": ("json", {}), "parquet": ("parquet", {})}
LOADERS["conll"] = ("conll", {"column_names": ["tokens", "ner_tags"]})


@pytest.fixture(scope="module")
def data() -> dict[str, DatasetDict]:
    """Every example data set."""
    return {name: generate(name) for name in EXAMPLES}


def texts(dataset: Dataset) -> list[str]:
    """What a model reads of each row."""
    columns = [column for column in example_data.TEXT_COLUMNS if column in dataset.column_names]
    return [" ".join(str(row[column]) for column in columns) for row in dataset]


def entities(dataset: Dataset) -> set[tuple[str, str]]:
    """The (type, lower-cased text) of every entity."""
    names = dataset.features["ner_tags"].feature.names
    spans: list[tuple[str, list[str]]] = []
    for row in dataset:
        for token, tag in zip(row["tokens"], row["ner_tags"], strict=True):
            if names[tag].startswith("B-"):
                spans.append((names[tag][2:], [token.lower()]))
            elif names[tag].startswith("I-"):
                spans[-1][1].append(token.lower())
    return {(entity, " ".join(words)) for entity, words in spans}


def digest(data: dict[str, DatasetDict]) -> str:
    """A checksum over every row of every data set."""
    rows = [list(dataset) for name in sorted(data) for dataset in data[name].values()]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("name", EXAMPLES)
def test_sizes_are_as_promised_and_no_text_stands_twice(data: dict[str, DatasetDict], name: str) -> None:
    assert {split: len(dataset) for split, dataset in data[name].items()} == SPLIT_ROWS
    everything = [text for dataset in data[name].values() for text in texts(dataset)]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_slot_is_left_and_every_text_starts_well(data: dict[str, DatasetDict], name: str) -> None:
    for dataset in data[name].values():
        for text in texts(dataset):
            assert not set("{}|/\t\n") & set(text), text
            assert "  " not in text, text


def test_the_same_seed_gives_the_same_rows_in_every_process(data: dict[str, DatasetDict], repository: Path) -> None:
    code = (
        "import test_example_data as test\nprint(test.digest({name: test.generate(name) for name in test.EXAMPLES}))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{repository}:{repository / 'tests'}", "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == digest(data)


def test_another_seed_gives_other_rows() -> None:
    assert texts(generate("topic", seed=1)["train"]) != texts(generate("topic", seed=0)["train"])


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name in CLASS_COLUMNS for column in CLASS_COLUMNS[name]]
)
def test_classes_are_balanced_in_every_split(data: dict[str, DatasetDict], name: str, column: str) -> None:
    for dataset in data[name].values():
        assert isinstance(dataset.features[column], ClassLabel)
        counts = collections.Counter(dataset[column])
        assert set(counts) == set(range(dataset.features[column].num_classes))
        assert max(counts.values()) - min(counts.values()) <= 1 + len(counts)


@pytest.mark.parametrize("name", ["topic", "sentence_type", "sentiment"])
def test_the_last_mark_alone_does_not_give_the_class_away(data: dict[str, DatasetDict], name: str) -> None:
    train, test = data[name]["train"], data[name]["test"]
    by_mark = collections.defaultdict(collections.Counter)
    for text, label in zip(train["text"], train["label"], strict=True):
        by_mark[text[-1] if text[-1] in ".?!" else ""][label] += 1
    guesses = [by_mark[text[-1] if text[-1] in ".?!" else ""].most_common(1)[0][0] for text in test["text"]]
    share = sum(guess == label for guess, label in zip(guesses, test["label"], strict=True)) / len(test)
    assert share < 0.6
    if name == "sentence_type":
        question, command = 1, 2
        assert any(row["label"] == question and not row["text"].endswith("?") for row in test)
        assert any(row["label"] == command and row["text"].endswith("?") for row in test)
        assert sum(row["label"] == command and row["text"].endswith("!") for row in test) < 40


def test_every_held_out_word_and_template_stays_out_of_train() -> None:
    lists = [*example_data.WORDS.values(), *example_data.AGENTS, *example_data.ACTIONS, *example_data.PLACES]
    for words in lists:
        if " | " in words:
            train, validation, test = (set(example_data.split_words(words, split)) for split in SPLIT_ROWS)
            assert not train & validation and not (train | validation) & test, words
    groups = [example_data.TOPIC, example_data.SENTENCE_TYPE, example_data.SENTIMENT, example_data.TOPIC_SENTIMENT]
    families = [template for group in groups for template in group.values()]
    for templates in [*families, example_data.ENTITIES, example_data.SCENES, example_data.NEGATED_SCENES]:
        assert not set(templates.of("train")) & set(templates.of("test"))


def test_every_word_list_is_used_and_every_slot_has_one() -> None:
    source = Path(example_data.__file__).read_text()
    for name in example_data.WORDS:
        assert f"{{{name}}}" in source or name in example_data.TOPICS, f"nothing uses the word list {name!r}"


def test_entities_are_well_formed_and_new_in_test(data: dict[str, DatasetDict]) -> None:
    names = data["entities"]["train"].features["ner_tags"].feature.names
    assert has_entities(names)
    for dataset in data["entities"].values():
        for row in dataset:
            tags = [names[tag] for tag in row["ner_tags"]]
            assert len(tags) == len(row["tokens"])
            for before, tag in zip(["O", *tags], tags, strict=False):
                assert not tag.startswith("I-") or before[2:] == tag[2:], row
    seen, new = entities(data["entities"]["train"]), entities(data["entities"]["test"])
    assert {entity for entity, _ in new} == set(example_data.ENTITY_TYPES)
    assert not {text for _, text in seen} & {text for _, text in new}


def test_some_names_are_of_several_types_and_some_rows_are_lower_case(data: dict[str, DatasetDict]) -> None:
    spans = entities(data["entities"]["train"])
    assert {("PER", "jordan"), ("LOC", "jordan"), ("ORG", "apple")} <= spans
    spans = entities(data["entities"]["test"])
    assert {("PER", "washington"), ("LOC", "washington"), ("ORG", "orange")} <= spans
    rows = data["entities"]["test"]["tokens"]
    assert 0.05 < sum(all(token == token.lower() for token in row) for row in rows) / len(rows) < 0.25


def test_similarity_scores_fill_the_range(data: dict[str, DatasetDict]) -> None:
    for dataset in data["similarity"].values():
        scores = dataset["score"][:]
        assert min(scores) >= 0.0 and max(scores) == 1.0
        assert all(sum(low <= score < low + 0.25 for score in scores) > 10 for low in (0.0, 0.25, 0.5))
        assert all(row["sentence1"] != row["sentence2"] for row in dataset)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'sentiment'"):
        generate("sentiments")


@pytest.mark.parametrize("name", EXAMPLES)
def test_written_files_read_back_as_the_same_rows(data: dict[str, DatasetDict], name: str, tmp_path: Path) -> None:
    suffix, render = FORMATS[name]
    for split, dataset in data[name].items():
        (tmp_path / f"{split}.{suffix}").write_bytes(render(dataset))
    loader, options = LOADERS[suffix]
    files = {split: str(tmp_path / f"{split}.{suffix}") for split in SPLIT_ROWS}
    read = load_dataset(loader, data_files=files, cache_dir=str(tmp_path / "cache"), **options)
    for split, dataset in data[name].items():
        assert list(named_rows(read[split])) == list(named_rows(dataset))


def test_the_command_writes_every_file_and_explains_the_columns(tmp_path: Path) -> None:
    main([str(tmp_path / "new" / "folder")])
    written = {path.relative_to(tmp_path / "new" / "folder").as_posix() for path in tmp_path.rglob("*.*")}
    wanted = {f"{name}/{split}.{FORMATS[name][0]}" for name in EXAMPLES for split in SPLIT_ROWS}
    assert written == wanted | {"README.md"}
    readme = (tmp_path / "new" / "folder" / "README.md").read_text()
    for name in EXAMPLES:
        for column in generate(name)["test"].column_names:
            assert f"`{column}`" in next(line for line in readme.splitlines() if line.startswith(f"| `{name}`"))


def test_other_files_are_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path)
    write_files(tmp_path)  # the same content is no obstacle
    own = tmp_path / "topic" / "train.csv"
    own.write_text("text,label\nmine,Other\n")
    (tmp_path / "README.md").unlink()
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    error = capsys.readouterr().err
    assert "1 differ" in error and "train.csv" in error and "--force" in error
    assert own.read_text() == "text,label\nmine,Other\n"
    assert not (tmp_path / "README.md").exists(), "a refusal writes nothing at all"
    main([str(tmp_path), "--force"])
    assert "mine,Other" not in own.read_text()
