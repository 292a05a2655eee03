"""`publish_hf.py` as a user runs it: from a run's folder to a Hub on loopback, and back through every door by id.

The client's environment is read at import, so both directions are processes of their own; the reader's has an empty
cache and cannot import this project.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from card_validation import card_errors
from loopback_hub import LoopbackHub
from numpy.testing import assert_allclose

import publish_hf
import train_hf
from saved_model import open_model

RECIPE = """
encoder: {encoder}
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 32, validation: 8, test: 12}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 32, validation: 8, test: 12}}
num_train_epochs: 1
per_device_train_batch_size: 16
bf16: false
report_to: none
sample_texts: ["Maria flew to Oslo.", "Will it rain?"]
"""
NAME = "tester/news"
TEXTS = ["Maria flew to Oslo.", "The new phone is fast, and the team is very good today."]

READER = """
import json, sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
import numpy as np
from huggingface_hub import HfApi
from transformers import AutoModel, AutoTokenizer, pipeline

name, revision, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
options = {"trust_remote_code": True, "revision": revision}
model, tokenizer = AutoModel.from_pretrained(name, **options), AutoTokenizer.from_pretrained(name, **options)
found = {"module": type(model).__module__, "encode": model.encode(texts, tokenizer).tolist()}
pipes = {**options, "model": name, "device": "cpu"}
answers = pipeline("multitask", **pipes)(texts, bf16=False)
found["multitask"] = [{"topic": answer["topic"], "entities": answer["entities"]} for answer in answers]
found["stock topic"] = pipeline("text-classification", **pipes)(texts)
found["stock entities"] = pipeline("token-classification", **pipes, aggregation_strategy="first")(texts)
if "modules.json" in HfApi().list_repo_files(name, revision=revision):
    from sentence_transformers import SentenceTransformer
    found["sentence_transformer"] = SentenceTransformer(name, device="cpu", **options).encode(texts).tolist()
print(json.dumps(found, default=float))
"""


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, with its checkpoint and logs."""
    folder = tmp_path_factory.mktemp("trained") / "news"
    train_hf.main([str(recipe), "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    """A Hub for the module; each test has a name of its own on it."""
    with LoopbackHub() as running:
        yield running


def run(hub: LoopbackHub, home: Path, *words: str, token: str | None = LoopbackHub.token) -> Any:
    """The command in a process of its own, in an empty folder."""
    script = str(Path(publish_hf.__file__))
    command = [sys.executable, script, *words]
    environment = {**hub.environment(home / "home", token), "NO_COLOR": "1"}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)


def read_elsewhere(hub: LoopbackHub, home: Path, revision: str) -> dict[str, Any]:
    """What a process with an empty cache finds under the id, at a revision."""
    command = [sys.executable, "-P", "-c", READER, NAME, revision, json.dumps(TEXTS)]
    environment = hub.environment(home / "home", hub.token)
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def published(trained: Path, hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the command printed."""
    words = [str(trained), NAME, "--tag", "v1", "--license", "apache-2.0", "--base_model", "tester/encoder"]
    done = run(hub, tmp_path_factory.mktemp("publisher"), *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_dry_run_lists_the_files_and_the_target_and_asks_nobody(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check in a fresh process is part of it; this process cannot reach anything but its own machine."""
    before = sorted(path.name for path in trained.iterdir())
    publish_hf.main([str(trained), NAME, "--dry_run"])
    told = capsys.readouterr().out
    assert f"{(trained / 'model.safetensors').stat().st_size:,}  model.safetensors" in told
    assert "largest difference of an answer is 0." in told
    assert "would go to tester/news, branch main, private.\nNothing was sent." in told
    assert "training_args.bin" not in told and "checkpoint" not in told
    assert sorted(path.name for path in trained.iterdir()) == before


@pytest.mark.parametrize("name", ["news", "a/b/c", "../news", "a b/c"])
def test_a_name_that_no_repository_can_have_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        publish_hf.main([str(tmp_path), name, "--dry_run"])
    assert f"A repository is named owner/name; got '{name}'" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        publish_hf.main([str(tmp_path / "none"), NAME])
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["main", "v1"])
def test_every_door_opens_by_id_and_answers_as_the_folder_does(
    trained: Path, published: str, hub: LoopbackHub, tmp_path: Path, revision: str
) -> None:
    found = read_elsewhere(hub, tmp_path, revision)
    assert found["module"].startswith("transformers_modules.tester.")
    model, tokenizer = open_model(str(trained), offline=True)
    here = model.predict(TEXTS, tokenizer, bf16=False)
    assert_allclose(found["encode"], model.encode(TEXTS, tokenizer), atol=1e-6)
    for piped, stock, answer in zip(found["multitask"], found["stock topic"], here, strict=True):
        assert piped["topic"]["label"] == stock["label"] == answer["topic"]["label"]
        assert stock["score"] == pytest.approx(answer["topic"]["score"], abs=1e-5)
    for piped, stock, answer in zip(found["multitask"], found["stock entities"], here, strict=True):
        spans = [(span["entity_group"], span["start"], span["end"]) for span in answer["entities"]]
        assert [(span["entity_group"], span["start"], span["end"]) for span in piped["entities"]] == spans
        assert [(span["entity_group"], span["start"], span["end"]) for span in stock] == spans
    assert any(answer["entities"] for answer in here), "the premise: there are spans to compare"
    if "sentence_transformer" in found:
        assert_allclose(found["sentence_transformer"], model.encode(TEXTS, tokenizer), atol=1e-6)


@pytest.mark.slow
def test_what_is_published_is_what_a_reader_needs_and_names_no_folder_of_this_machine(
    trained: Path, published: str, hub: LoopbackHub
) -> None:
    files = hub.repository(NAME).files()
    assert {"config.json", "model.safetensors", "modeling_multitask.py", "tokenizer.json", "README.md"} <= files.keys()
    assert {"test_results.json", "run_facts.json", "curves.png", "confusion_topic.png"} <= files.keys()
    assert files["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]
    assert ("modules.json" in files) == (trained / "modules.json").exists()
    assert ("handler.py" in files) == (trained / "handler.py").exists()
    for name, content in files.items():
        assert str(trained.parent).encode() not in content, name
    assert "commit/" in published and len(hub.repository(NAME).history()) == 2


@pytest.mark.slow
def test_the_published_card_says_its_new_name_and_what_was_stated(published: str, hub: LoopbackHub) -> None:
    card = hub.repository(NAME).files()["README.md"].decode()
    assert card_errors(card) == []
    assert "license: apache-2.0" in card and "base_model: tester/encoder" in card
    assert f'AutoModel.from_pretrained("{NAME}", trust_remote_code=True)' in card
    assert f"https://huggingface.co/{NAME}/blob/main/test_results.json" in card


@pytest.mark.slow
def test_native_heads_open_by_id_without_remote_code_and_the_models_card_links_them(
    trained: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    """The head of `topic` has no plain class, and the command says so."""
    for _ in range(2):  # a second time changes nothing
        done = run(hub, tmp_path, str(trained), "tester/heads", "--native_heads", "--public")
        assert done.returncode == 0, done.stderr[-3000:]
    assert "No repository for the task 'topic'" in done.stdout
    siblings = ["tester/heads-entities", "tester/heads-sentence_embedding"]
    card = hub.repository("tester/heads").files()["README.md"].decode()
    for name in siblings:
        assert f"(https://huggingface.co/{name})" in card
        assert card_errors(hub.repository(name).files()["README.md"].decode()) == []
        assert len(hub.repository(name).history()) == 2 and not hub.repository(name).is_private
    code = (
        "import json, sys; from transformers import AutoModel, pipeline\n"
        'answers = pipeline("token-classification", model=sys.argv[1], aggregation_strategy="first", device="cpu")\n'
        "states = AutoModel.from_pretrained(sys.argv[2])\n"
        "print(json.dumps(answers(json.loads(sys.argv[3])), default=float))"
    )
    command = [sys.executable, "-P", "-c", code, *siblings, json.dumps(TEXTS)]
    environment = hub.environment(tmp_path / "reader", hub.token)
    read = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr[-3000:]
    model, tokenizer = open_model(str(trained), offline=True)
    found = [
        [(span["entity_group"], span["start"]) for span in spans] for spans in json.loads(read.stdout.splitlines()[-1])
    ]
    here = model.predict(TEXTS, tokenizer, tasks=["entities"], bf16=False)
    assert found == [[(span["entity_group"], span["start"]) for span in answer["entities"]] for answer in here]


@pytest.mark.slow
def test_where_the_model_cannot_go_no_sibling_is_made(trained: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    """A tag that is taken on the model's repository alone."""
    first = run(hub, tmp_path, str(trained), "tester/tagged", "--tag", "v1")
    assert first.returncode == 0, first.stderr[-3000:]
    done = run(hub, tmp_path, str(trained), "tester/tagged", "--tag", "v1", "--native_heads")
    assert done.returncode == 2 and "Choose another --tag" in done.stderr, done.stderr[-3000:]
    assert [name for _, name in hub.repositories if name.startswith("tester/tagged")] == ["tester/tagged"]


@pytest.mark.slow
def test_publishing_again_changes_nothing(trained: Path, published: str, hub: LoopbackHub, tmp_path: Path) -> None:
    before = hub.repository(NAME).branches["main"]
    done = run(hub, tmp_path, str(trained), NAME, "--license", "apache-2.0", "--base_model", "tester/encoder")
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.repository(NAME).branches["main"] == before


@pytest.mark.slow
def test_a_folder_that_answers_otherwise_elsewhere_is_not_published(
    trained: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    """Here the project's own code opens it; whoever reads it would run the folder's."""
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(trained), str(broken)], check=True)
    code = broken / "modeling_multitask.py"
    code.write_text(code.read_text().replace("self.out(self.dropout", "0.5 * self.out(self.dropout"))
    hub.requests.clear()
    done = run(hub, tmp_path, str(broken), "tester/broken")
    assert done.returncode == 2 and "must answer elsewhere as it does here" in done.stderr, done.stderr[-3000:]
    assert hub.requests == []


@pytest.mark.slow
def test_without_a_token_it_says_so_in_one_line(trained: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    """The other refusals of the Hub are told in the same way; `test_hub_repository` has them all."""
    done = run(hub, tmp_path, str(trained), "tester/other", token=None)
    assert done.returncode == 2, done.stderr[-3000:]
    told = done.stderr.strip().splitlines()[-1]
    assert told.startswith("publish_hf.py: error: ") and "there is none. Log in with `hf auth login`" in told
    assert "Traceback" not in done.stderr and ("models", "tester/other") not in hub.repositories
