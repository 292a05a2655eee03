"""`task_sources`: every format gives the same rows, and what cannot be read is refused in the user's words."""

from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from arguments_multitask import TaskArguments
from example_data import EXAMPLES, write_files
from task_sources import Source, choose_splits, hub_access, hub_or_local

ROWS = [{"text": "It rains", "label": "weather"}, {"text": 'She said "no"', "label": "other"}]
CSV = 'text,label\nIt rains,weather\n"She said ""no""",other\n'
TSV = CSV.replace(",", "\t")
JSON_LINES = '{"text": "It rains", "label": "weather"}\n{"text": "She said \\"no\\"", "label": "other"}\n'
JSON_LIST = f"[{JSON_LINES.strip().replace(chr(10), ',')}]"
CONLL = "-DOCSTART- -X-\n\nAnna B-PER\nsleeps O\n\nBerlin B-LOC\n"


def write(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return str(path)


def read(dataset: str | dict[str, str], data_root: Path | None = None, **fields: object) -> Source:
    task = TaskArguments(dataset=dataset, **fields)
    return hub_or_local("topic", task, None if data_root is None else str(data_root))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", CSV), ("a.tsv", TSV), ("a.jsonl", JSON_LINES), ("a.json", JSON_LINES), ("b.json", JSON_LIST)],
)
def test_a_file_of_any_format_is_the_train_split(tmp_path: Path, name: str, content: str) -> None:
    source = read(write(tmp_path, name, content))
    assert {split: rows.to_list() for split, rows in source.splits.items()} == {"train": ROWS}
    assert source.location == str(tmp_path / name) and source.notes == []


def test_a_parquet_file_keeps_its_class_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["other", "weather"])})
    Dataset.from_list(ROWS, features).to_parquet(tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet")).splits["train"].features == features


def test_a_conll_file_gives_words_and_tags(tmp_path: Path) -> None:
    rows = read(write(tmp_path, "a.conll", CONLL)).splits["train"].to_list()
    assert rows == [
        {"tokens": ["Anna", "sleeps"], "tags": ["B-PER", "O"]},
        {"tokens": ["Berlin"], "tags": ["B-LOC"]},
    ]


def test_a_conll_file_of_four_columns_has_the_names_of_conll_2003(tmp_path: Path) -> None:
    source = read(write(tmp_path, "a.txt", "Anna NNP B-NP B-PER\n"), format="conll")
    assert source.splits["train"].column_names == ["tokens", "pos_tags", "chunk_tags", "ner_tags"]


def test_rows_of_a_file_stay_on_disk(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.csv", CSV)).splits["train"].cache_files


def test_the_text_NA_is_a_text_and_an_empty_cell_is_missing(tmp_path: Path) -> None:
    rows = read(write(tmp_path, "a.csv", "text,label\nNA,None\n,null\n")).splits["train"]
    assert rows.to_list() == [{"text": "NA", "label": "None"}, {"text": None, "label": "null"}]


def test_a_loose_quotation_mark_in_a_tsv_file_swallows_no_rows(tmp_path: Path) -> None:
    source = read(write(tmp_path, "a.tsv", 'text\tlabel\n"5 inch\tx\na\ty\n"b\tz\n'))
    assert source.splits["train"]["text"][:] == ['"5 inch', "a", '"b']
    assert source.notes == [
        "Task 'topic': quotation marks in a.tsv do not pair up in each line, so they are read as plain characters."
    ]


def test_a_file_without_header_gets_column_names(tmp_path: Path) -> None:
    rows = read(write(tmp_path, "a.csv", "3,It rains\n"), column_names=["label", "text"]).splits["train"]
    assert rows.to_list() == [{"label": 3, "text": "It rains"}]


def test_splits_may_be_files_of_different_formats(tmp_path: Path) -> None:
    files = {"train": write(tmp_path, "a.csv", CSV), "test": write(tmp_path, "b.jsonl", JSON_LINES)}
    source = read(files)
    assert [rows.to_list() for rows in source.splits.values()] == [ROWS, ROWS]
    assert source.location == "files"


def test_a_folder_holds_a_file_a_split(tmp_path: Path) -> None:
    write(tmp_path, "runs [old]/train.csv", CSV)
    write(tmp_path, "runs [old]/dev.csv", CSV)
    write(tmp_path, "runs [old]/notes.csv", "not a split")
    source = read(str(tmp_path / "runs [old]"))
    assert {split: rows.to_list() for split, rows in source.splits.items()} == {"dev": ROWS, "train": ROWS}


def test_a_folder_may_be_as_datasets_are_on_the_hub_or_as_save_to_disk_writes_them(tmp_path: Path) -> None:
    rows = DatasetDict({"train": Dataset.from_list(ROWS)})
    (tmp_path / "hub/data").mkdir(parents=True)
    rows["train"].to_parquet(tmp_path / "hub/data/train-00000-of-00001.parquet")
    rows.save_to_disk(tmp_path / "disk")
    for folder in ("hub", "disk"):
        assert read(str(tmp_path / folder)).splits["train"].to_list() == ROWS


def test_the_folders_that_example_data_writes_can_be_read(tmp_path: Path) -> None:
    write_files(tmp_path)
    for name in EXAMPLES:
        on_disk, built_in = read(str(tmp_path / name)), read(f"builtin:{name}")
        assert {split: len(rows) for split, rows in on_disk.splits.items()} == {
            split: len(rows) for split, rows in built_in.splits.items()
        }
        assert built_in.location == "builtin"


@pytest.mark.parametrize("fields", [{"dataset": "someone/news"}, {"dataset": "someone/other", "name": "news"}])
def test_data_root_stands_in_for_the_hub(tmp_path: Path, fields: dict[str, str]) -> None:
    write(tmp_path, "news/train.csv", CSV)
    source = read(data_root=tmp_path, **fields)
    assert source.splits["train"].to_list() == ROWS and source.location == "data_root/news"
    assert source.notes == [
        f"Task 'topic': its rows come from data_root/news in place of {fields['dataset']!r} on the Hub."
    ]


def test_a_local_path_that_exists_comes_before_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "root/news/train.csv", CSV)
    write(tmp_path, "news/train.csv", CSV + "More,other\n")
    monkeypatch.chdir(tmp_path)
    assert len(read("news", tmp_path / "root").splits["train"]) == 3


@pytest.mark.parametrize("name", ["../news", "..", ".", "", "a/b", "/etc", "a\\b", "C:news"])
def test_a_name_leads_nowhere_but_below_data_root(tmp_path: Path, name: str) -> None:
    write(tmp_path, "news/train.csv", CSV)
    (tmp_path / "root").mkdir()
    with pytest.raises(ValueError, match="must be the plain name of a folder below data_root"):
        read("someone/news", tmp_path / "root", name=name)


def test_a_dataset_id_that_ends_in_dots_leads_nowhere_either(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain name of a folder below data_root; got '..'"):
        read("someone/..missing/..", tmp_path)


def test_what_is_nowhere_is_refused_with_all_places_that_were_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'someone/missing' \(config None\) cannot be read: .*local path, the folder"):
        read("someone/missing", tmp_path)


@pytest.mark.parametrize("dataset", ["missing.csv", "./missing", "a/b/missing", "~/missing", "data/missing.jsonl"])
def test_a_path_that_is_not_there_is_never_looked_for_on_the_hub(dataset: str) -> None:
    with pytest.raises(ValueError, match="is a path, but neither a file nor a folder is there"):
        read(dataset)


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("a.txt", CSV, {}, r"format of 'a.txt' cannot be told .* Write `format:`"),
        ("a.jsonl", '{"text": ', {}, "a.jsonl as json cannot be read"),
        ("a.csv", "text,label\na,b\nc,d,e,f\n", {}, "a.csv as csv cannot be read"),
        ("a.csv", "text,label\n", {}, "a.csv as csv cannot be read: .* no data"),
        ("a.conll", "\n\n", {}, "a split needs rows; a.conll holds none"),
        ("a.conll", "Anna B-PER\nsleeps\n", {}, "line 2 has 1: 'sleeps'"),
        (
            "a.conll",
            "New York B-LOC\n",
            {"column_names": ["tokens", "ner_tags"]},
            "columns tokens, ner_tags; line 1 has 3",
        ),
        ("a.conll", "1 Anna Anna PROPN X\n", {}, "need names; line 1 has 5. Write `column_names:`"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: str, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=f"Task 'topic': .*{message}"):
        read(write(tmp_path, name, content), **fields)


def test_a_missing_file_of_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the file of test must exist"):
        read({"train": write(tmp_path, "a.csv", CSV), "test": str(tmp_path / "b.csv")})


def test_two_files_of_one_split_are_refused_unless_the_format_is_given(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", CSV)
    write(tmp_path, "train.jsonl", JSON_LINES)
    with pytest.raises(ValueError, match=r"the folder holds train.csv and train.jsonl. Write `format:`"):
        read(str(tmp_path))
    assert read(str(tmp_path), format="json").splits["train"].to_list() == ROWS


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder .* cannot be read: .* Name its files train.csv"):
        read(str(tmp_path))


def test_data_root_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data_root must be a folder; .*missing"):
        read("someone/news", tmp_path / "missing")


def test_unknown_example_data_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="no example data 'builtin:topics'; .* Did you mean 'topic'"):
        read("builtin:topics")


def test_offline_asks_nothing_of_the_hub_and_leaves_the_setting_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), hub_access(offline=True):
        assert datasets.config.HF_HUB_OFFLINE
        raise KeyError
    assert not datasets.config.HF_HUB_OFFLINE
    with pytest.raises(ValueError, match="or leave out --offline"):
        hub_or_local("topic", TaskArguments(dataset="someone/missing"), offline=True)


@pytest.mark.parametrize(
    ("wanted", "available", "chosen"),
    [
        ({}, ["train", "validation", "test"], {"train": "train", "validation": "validation", "test": "test"}),
        ({}, ["test", "dev", "train", "extra"], {"train": "train", "validation": "dev", "test": "test"}),
        ({"test": "validation"}, ["train", "validation", "test"], {"train": "train", "test": "validation"}),
        ({"test": None}, ["train", "test"], {"train": "train"}),
        ({"validation": None, "test": "validation"}, ["train", "validation"], {"train": "train", "test": "validation"}),
        ({"train": "unlabelled"}, ["unlabelled", "train"], {"train": "unlabelled"}),
    ],
)
def test_splits_are_read_under_our_names(
    wanted: dict[str, str | None], available: list[str], chosen: dict[str, str]
) -> None:
    assert choose_splits("topic", wanted, available)[0] == chosen


def test_the_notes_say_which_splits_are_renamed_unread_or_read_twice() -> None:
    _, notes = choose_splits("t", {"validation": "dev", "test": "dev"}, ["train", "dev", "extra"])
    assert notes == [
        "Task 't': validation is the source's split 'dev'.",
        "Task 't': test is the source's split 'dev'.",
        "Task 't': not read from the source: extra.",
        "Task 't': validation and test are the same rows, so scores on one say nothing new about the other.",
    ]


def test_a_split_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="'tests', but the source's splits are train, test. Did you mean 'test'"):
        choose_splits("topic", {"test": "tests"}, ["train", "test"])
    with pytest.raises(ValueError, match=r"none of the source's splits \(en, de\) is read"):
        choose_splits("topic", {}, ["en", "de"])
