"""A recipe of published data sets as it stands, read by their Hub ids from a Hub on loopback, the encoder too.

The fixtures are a few made-up rows in the schema that each data set has on the Hub: class names in Parquet features,
SST-2's test labels of -1, TREC's script on main with its Parquet conversion beside it, one configuration of many of
Universal Dependencies, JSON lines for the STS benchmark.
"""

import gzip
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from card_validation import card_errors
from datasets import ClassLabel, Dataset, Features, List, Value
from loopback_hub import LoopbackHub, read_folder
from tiny_models import WORDS

ROWS = {"train": 60, "validation": 12, "test": 16}
NER = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
UPOS = "NOUN PUNCT ADP NUM SYM SCONJ ADJ PART DET CCONJ PROPN PRON X _ ADV INTJ VERB AUX".split()
TREC = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]
TEXT = Value("string")

pytestmark = pytest.mark.slow


def words(rng: random.Random) -> list[str]:
    """Some words that the tiny tokenizer knows."""
    return rng.choices(WORDS, k=rng.randint(3, 9))


def tags(names: list[str], count: int, rng: random.Random) -> list[int]:
    """A tag for each word: all but the first are of the first kind."""
    return [rng.randrange(len(names)) if place == 0 else 0 for place in range(count)]


def ag_news(rng: random.Random, split: str, row: int) -> dict[str, Any]:
    """A row of AG News."""
    return {"text": " ".join(words(rng)), "label": row % 4}


def sst2(rng: random.Random, split: str, row: int) -> dict[str, Any]:
    """A row of SST-2; the labels of test are not published."""
    return {"idx": row, "sentence": " ".join(words(rng)), "label": -1 if split == "test" else row % 2}


def trec(rng: random.Random, split: str, row: int) -> dict[str, Any]:
    """A row of TREC."""
    return {"text": " ".join(words(rng)), "coarse_label": row % 6, "fine_label": row % 3}


def conll2003(rng: random.Random, split: str, row: int) -> dict[str, Any]:
    """A row of CoNLL-2003."""
    tokens = words(rng)
    kinds = {f"{kind}_tags": tags(NER, len(tokens), rng) for kind in ("pos", "chunk", "ner")}
    return {"id": str(row), "tokens": tokens, **kinds}


def ud_ewt(rng: random.Random, split: str, row: int) -> dict[str, Any]:
    """A row of Universal Dependencies."""
    tokens = words(rng)
    return {"idx": str(row), "text": " ".join(tokens), "tokens": tokens, "upos": tags(UPOS, len(tokens), rng)}


def stsb(rng: random.Random, split: str, row: int) -> dict[str, Any]:
    """A row of the STS benchmark."""
    return {"score": rng.random() * 5, "sentence1": " ".join(words(rng)), "sentence2": " ".join(words(rng))}


def make_rows(make: Callable[..., dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The rows of a split; the same ones every time."""
    rng = random.Random(f"{make.__name__} {split}")
    return [make(rng, split, row) for row in range(ROWS[split])]


def parquet(make: Callable[..., dict[str, Any]], split: str, features: dict[str, Any]) -> bytes:
    """A split as a Parquet file with features."""
    file = io.BytesIO()
    Dataset.from_list(make_rows(make, split), features=Features(features)).to_parquet(file)
    return file.getvalue()


def json_lines(make: Callable[..., dict[str, Any]], split: str) -> bytes:
    """A split as packed JSON lines."""
    return gzip.compress("\n".join(map(json.dumps, make_rows(make, split))).encode())


def card(**fields: Any) -> bytes:
    """A data set's README.md."""
    return f"---\n{json.dumps(fields)}\n---\n# A data set\n".encode()


def tag_lists(*columns: str, names: list[str]) -> dict[str, Any]:
    """Features of columns of tags."""
    return {column: List(ClassLabel(names=names)) for column in columns}


def add_data_sets(hub: LoopbackHub) -> None:
    """The six data sets of `six_tasks.yaml`, under their ids."""
    features: dict[str, Any] = {"text": TEXT, "label": ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])}
    files = {f"data/{split}-00000-of-00001.parquet": parquet(ag_news, split, features) for split in ("train", "test")}
    hub.add("fancyzhx/ag_news", {**files, "README.md": card(license="unknown", language=["en"])}, "datasets")

    features = {"idx": Value("int32"), "sentence": TEXT, "label": ClassLabel(names=["negative", "positive"])}
    files = {f"data/{split}-00000-of-00001.parquet": parquet(sst2, split, features) for split in ROWS}
    hub.add("stanfordnlp/sst2", {**files, "README.md": card(license="cc-by-4.0", language="en")}, "datasets")

    features = {"text": TEXT, "coarse_label": ClassLabel(names=TREC), "fine_label": ClassLabel(names=["a", "b", "c"])}
    files = {f"default/{split}/0000.parquet": parquet(trec, split, features) for split in ("train", "test")}
    hub.add("CogComp/trec", {"trec.py": b"raise SystemExit('the script was run')\n"}, "datasets")
    hub.add("CogComp/trec", files, "datasets", branch="refs/convert/parquet")

    features = {"id": TEXT, "tokens": List(TEXT), **tag_lists("pos_tags", "chunk_tags", "ner_tags", names=NER)}
    files = {f"data/{split}-00000-of-00001.parquet": parquet(conll2003, split, features) for split in ROWS}
    hub.add("lhoestq/conll2003", {**files, "README.md": card(language=["en"])}, "datasets")

    features = {"idx": TEXT, "text": TEXT, "tokens": List(TEXT), **tag_lists("upos", names=UPOS)}
    configs = [{"config_name": "de_gsd", "data_files": [{"split": "train", "path": "de_gsd/train.parquet"}]}]
    paths = [{"split": split, "path": f"en_ewt/{split}.parquet"} for split in ROWS]
    configs.append({"config_name": "en_ewt", "data_files": paths})
    files = {f"en_ewt/{split}.parquet": parquet(ud_ewt, split, features) for split in ROWS}
    files |= {"de_gsd/train.parquet": b"not asked for", "README.md": card(configs=configs, language=["de", "en"])}
    hub.add("universal-dependencies/universal_dependencies", files, "datasets")

    files = {f"{split}.jsonl.gz": json_lines(stsb, split) for split in ROWS}
    hub.add("mteb/stsbenchmark-sts", {**files, "README.md": card(language=["en"])}, "datasets")


@pytest.fixture(scope="module")
def trained(repository: Path, encoder_folder: Callable[[str], Path], tmp_path_factory) -> tuple[Path, LoopbackHub]:
    """The folder of a nano run of the recipe, with nothing but ids to go by, and the Hub that it asked."""
    home = tmp_path_factory.mktemp("by_id")
    with LoopbackHub() as hub:
        add_data_sets(hub)
        hub.add("tester/tiny-bert", read_folder(encoder_folder("bert")))
        words = ["--nano", "--encoder", "tester/tiny-bert", "--bf16", "false", "--report_to", "none"]
        done = subprocess.run(
            [sys.executable, "train_hf.py", "recipes/six_tasks.yaml", *words, "--output_dir", str(home / "six")],
            cwd=repository,
            env=hub.environment(home / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return home / "six", hub


def facts_of(folder: Path) -> dict[str, Any]:
    """Where each task's rows came from, by the run."""
    return json.loads((folder / "run_facts.json").read_text())["data"]


def test_a_recipe_trains_from_ids_alone_and_scores_the_splits_it_names(trained: tuple[Path, LoopbackHub]) -> None:
    folder, hub = trained
    scores = json.loads((folder / "test_results.json").read_text())["test_protocol"]
    rows = {task: about["rows_scored"] for task, about in scores.items()}
    assert rows.pop("sentiment") == ROWS["validation"], "its test labels are all -1, so it is scored on validation"
    assert set(rows.values()) == {ROWS["test"]} and len(rows) == 5
    assert {about["location"] for about in scores.values()} == {"hub"}
    assert ("GET", "/api/models/tester/tiny-bert") in hub.requests
    assert not [path for _, path in hub.requests if "de_gsd" in path and "resolve" in path]


def test_the_commit_that_was_read_is_written_down(trained: tuple[Path, LoopbackHub]) -> None:
    """Also where the recipe names no revision; of the named one, the commit that it stood for."""
    folder, hub = trained
    for task, source in facts_of(folder).items():
        branch = source["revision"] or "main"
        assert source["commit"] == hub.repository(source["dataset"], "datasets").branches[branch], task
    assert facts_of(folder)["question"]["revision"] == "refs/convert/parquet"


def test_licences_are_the_recipes_else_those_of_the_data_sets_cards(trained: tuple[Path, LoopbackHub]) -> None:
    licences = {task: source["license"] for task, source in facts_of(trained[0]).items()}
    assert licences == {
        "topic": "research and other non-commercial use",
        "sentiment": "cc-by-4.0",
        "question": None,
        "ner": "Reuters corpus terms, research use",
        "pos": "annotations CC BY-SA 4.0, texts of various owners",
        "similarity": "scores CC BY-SA 4.0, each text source its own terms",
    }


def test_the_card_names_the_data_with_commit_and_licence(trained: tuple[Path, LoopbackHub]) -> None:
    folder, hub = trained
    text = (folder / "README.md").read_text()
    assert card_errors(text) == []
    for task, source in facts_of(folder).items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {task} | {source['dataset']}"))
        assert f"| {source['commit']} | {source['license'] or 'not stated'} |" in line
        assert f"revision: {source['commit']}" in text and f"\n- {source['dataset']}\n" in text
    assert "base_model: tester/tiny-bert" in text
    assert "\nlanguage:\n- en\n" in text or "\nlanguage: en\n" in text, "not those of the other configurations"
