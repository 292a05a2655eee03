"""A saved folder opens in a fresh process, elsewhere, without this project: same bits, every class, every pipeline."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import run_elsewhere
from numpy.testing import assert_allclose
from safetensors.torch import load_file
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from cased_vocabulary import cased_tokenizer
from configuration_multitask import MultiTaskConfig
from modeling_multitask import MultiTaskForTokenClassification, MultiTaskModel

TEXTS = ["Anna won the game in Paris.", "The new phone is fast, and the team is very good today."]
PAIR = (TEXTS[0], TEXTS[1])
TASKS: dict[str, Any] = {
    **TINY_TASKS,
    "joint": {"kind": "text-classification", "labels": ["no", "yes"], "text_pair": True, "head": "mlp"},
}

READER = """
import numpy as np, torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers import AutoTokenizer, pipeline

folder, out, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tensors = {}


def plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def keep(prefix, output):
    tensors[prefix + "embedding"] = output.sentence_embedding
    tensors.update({prefix + name: logits for name, logits in output.logits.items()})


torch.set_grad_enabled(False)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
found["tasks"] = list(config.tasks)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
batch = tokenizer(texts, padding=True, return_tensors="pt")
pairs = {"pair_input_ids": batch["input_ids"].flip(0), "pair_attention_mask": batch["attention_mask"].flip(0)}
pairs["pair_items"] = torch.arange(len(texts))
model, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
found["report"] = {key: sorted(map(str, value)) for key, value in report.items()}
found["class"] = type(model).__name__
found["module"] = type(model).__module__
keep("", model(**batch, **pairs))
found["predict"] = plain(model.predict([*texts, tuple(texts)], tokenizer, bf16=False))
found["encode"] = plain(model.encode(texts, tokenizer))
found["multitask"] = pipeline("multitask", model=folder, trust_remote_code=True, device="cpu")(
    texts, batch_size=2, bf16=False)

for auto, task in ((AutoModelForSequenceClassification, "topic"), (AutoModelForSequenceClassification, "tags"),
                   (AutoModelForTokenClassification, "ner"), (AutoModelForTokenClassification, "upos")):
    view = auto.from_pretrained(folder, trust_remote_code=True, task_name=task)
    tensors["view." + task] = view(**batch).logits
    found["labels." + task] = [view.config.id2label[i] for i in range(len(view.config.id2label))]
options = {"trust_remote_code": True, "device": "cpu"}
found["stock topic"] = pipeline(
    "text-classification", model=folder, model_kwargs={"task_name": "topic"}, **options)(texts)
found["stock tags"] = pipeline(
    "text-classification", model=folder, model_kwargs={"task_name": "tags"}, **options)(texts[0], top_k=None)
found["stock ner"] = plain(pipeline("token-classification", model=folder, model_kwargs={"task_name": "ner"},
                                    aggregation_strategy="first", **options)(texts[0]))
for entity in found["stock ner"]:
    entity["score"] = float(entity["score"])

model.save_pretrained(out + "/again")
tokenizer.save_pretrained(out + "/again")
keep("again.", AutoModel.from_pretrained(out + "/again", trust_remote_code=True)(**batch, **pairs))
view.save_pretrained(out + "/view")
keep("view_saved.", AutoModel.from_pretrained(out + "/view", trust_remote_code=True)(**batch, **pairs))
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out + "/tensors.safetensors")
"""


@pytest.fixture(scope="module", params=["uncased", "cased"])
def model_and_tokenizer(request: pytest.FixtureRequest) -> tuple[MultiTaskModel, PreTrainedTokenizerFast]:
    """A projected, normalising model with one task of every kind, its heads drawn wide; with and without case."""
    encoder = tiny_encoder("bert")
    config = MultiTaskConfig(
        encoder_config=encoder.config,
        tasks=copy.deepcopy(TASKS),
        pooling="mean_sqrt_len",
        projection_dim=24,
        normalize_embeddings=True,
        max_seq_length=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MultiTaskModel(config, encoder=encoder).eval()
        for parameter in model.heads.parameters():
            nn.init.normal_(parameter, std=0.5)
        tokenizer = tiny_tokenizer("bert")
        if request.param == "cased":
            tokenizer, bases, cases = cased_tokenizer(tokenizer)
            model.read_case(bases, cases)
            nn.init.normal_(model.get_input_embeddings().case.weight, std=0.5)
    return model, tokenizer


@pytest.fixture(scope="module")
def model(model_and_tokenizer) -> MultiTaskModel:
    """The model."""
    return model_and_tokenizer[0]


@pytest.fixture(scope="module")
def tokenizer(model_and_tokenizer) -> PreTrainedTokenizerFast:
    """Its tokenizer."""
    return model_and_tokenizer[1]


@pytest.fixture(scope="module")
def read_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that opens a folder in a fresh process and returns the folder with what that process found."""

    def read(folder: Path) -> Path:
        out = tmp_path_factory.mktemp("elsewhere")
        run_elsewhere(READER, out, str(folder), str(out), json.dumps(TEXTS))
        return out

    return read


@pytest.fixture(scope="module")
def saved(model: MultiTaskModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory) -> Path:
    """The folder that `save_pretrained` writes."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(saved: Path, read_elsewhere: Callable[[Path], Path]) -> Path:
    """What the fresh process wrote."""
    return read_elsewhere(saved)


@pytest.fixture(scope="module")
def found(elsewhere: Path) -> dict[str, Any]:
    """What the fresh process answered."""
    return json.loads((elsewhere / "found.json").read_text())


@pytest.fixture(scope="module")
def expected(model: MultiTaskModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Embedding and logits of every head in this process, on one thread as in the other."""
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    pairs: dict[str, Any] = {f"pair_{name}": batch[name].flip(0) for name in ("input_ids", "attention_mask")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        output = model(**batch, **pairs, pair_items=torch.arange(len(TEXTS)))
        alone = model(**batch).logits  # another number of rows: other bits
    torch.set_num_threads(threads)
    views = {f"view.{name}": alone[name] for name in ("topic", "tags", "ner", "upos")}
    return {"embedding": output.sentence_embedding, **output.logits, **views}


def test_the_fresh_process_cannot_import_this_project(found: dict[str, Any]):
    assert found["importable"] == []
    assert found["module"].startswith("transformers_modules.")


def test_every_weight_is_found_and_none_is_left_over(found: dict[str, Any], model: MultiTaskModel):
    assert found["class"] == "MultiTaskModel"
    assert found["tasks"] == list(model.config.tasks)
    assert not any(found["report"].values()), found["report"]
    assert {"missing_keys", "unexpected_keys"} <= found["report"].keys()


@pytest.mark.parametrize("prefix", ["", "again.", "view_saved."], ids=["opened", "saved again", "saved from a view"])
def test_embedding_and_logits_of_every_head_are_bit_equal(elsewhere: Path, expected, prefix: str):
    tensors = load_file(elsewhere / "tensors.safetensors")
    for name in ("embedding", *TASKS):
        assert not expected[name].isnan().any()
        assert torch.equal(tensors[prefix + name], expected[name]), name


@pytest.mark.parametrize("name", ["topic", "tags", "ner", "upos"])
def test_the_one_head_auto_classes_answer_with_the_named_head(elsewhere: Path, found, expected, name: str):
    assert torch.equal(load_file(elsewhere / "tensors.safetensors")[f"view.{name}"], expected[f"view.{name}"])
    assert found[f"labels.{name}"] == TASKS[name]["labels"]


def test_predict_and_encode_work_there_as_here(found: dict[str, Any], model: MultiTaskModel, tokenizer):
    here = model.predict([*TEXTS, PAIR], tokenizer, bf16=False)
    assert "joint" in here[2] and "similarity" in here[2], "premise"
    for there, answer in zip(found["predict"], here, strict=True):
        assert there.keys() == answer.keys()
        assert [(s["entity_group"], s["start"], s["end"]) for s in there["ner"]] == [
            (s["entity_group"], s["start"], s["end"]) for s in answer["ner"]
        ]
        assert there["topic"]["label"] == answer["topic"]["label"]
        assert there["topic"]["score"] == pytest.approx(answer["topic"]["score"], abs=1e-6)
        assert there["tags"]["labels"] == answer["tags"]["labels"]
        assert_allclose(there["sentence_embedding"], answer["sentence_embedding"], atol=1e-6)
    assert found["predict"][2]["joint"]["scores"] == pytest.approx(here[2]["joint"]["scores"], abs=1e-6)
    assert_allclose(found["encode"], model.encode(TEXTS, tokenizer), atol=1e-6)
    assert_allclose(np.linalg.norm(found["encode"], axis=1), 1, atol=1e-6)


def test_the_multitask_pipeline_gives_what_predict_gives(found: dict[str, Any]):
    for piped, predicted in zip(found["multitask"], found["predict"], strict=False):
        assert piped.keys() == predicted.keys()
        assert piped["topic"]["label"] == predicted["topic"]["label"]
        assert_allclose(piped["sentence_embedding"], predicted["sentence_embedding"], atol=1e-6)


def test_the_stock_pipelines_answer_with_the_named_head(found: dict[str, Any], model: MultiTaskModel, tokenizer):
    here = model.predict(TEXTS, tokenizer, bf16=False)
    for stock, answer in zip(found["stock topic"], here, strict=True):
        assert stock["label"] == answer["topic"]["label"]
        assert stock["score"] == pytest.approx(answer["topic"]["score"], abs=1e-5)
    scores = {entry["label"]: entry["score"] for entry in found["stock tags"]}
    assert scores == pytest.approx(here[0]["tags"]["scores"], abs=1e-5)  # sigmoids: the head has several labels
    spans = [(span["entity_group"], span["start"], span["end"]) for span in here[0]["ner"]]
    assert spans and [(span["entity_group"], span["start"], span["end"]) for span in found["stock ner"]] == spans


CODE = {
    "configuration_multitask.py",
    "handler.py",
    "losses_multitask.py",
    "modeling_multitask.py",
    "pipeline_multitask.py",
    "sentence_transformers_files.py",
}
SENTENCE_TRANSFORMERS = {
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
}


def files_of(folder: Path) -> set[str]:
    """The files in a folder, by their path in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_holds_safetensors_code_and_json_and_no_pickle(saved: Path, elsewhere: Path):
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    model = {"config.json", "model.safetensors"} | CODE | SENTENCE_TRANSFORMERS
    assert files_of(saved) == model | tokenizer
    assert files_of(elsewhere / "again") == model | tokenizer
    assert files_of(elsewhere / "view") == model


def test_a_process_that_is_not_the_main_one_writes_nothing(model: MultiTaskModel, tmp_path: Path):
    model.save_pretrained(tmp_path, is_main_process=False)
    assert files_of(tmp_path) == set()


def test_saving_with_an_upload_uploads_once_everything_is_there(model: MultiTaskModel, tmp_path: Path, monkeypatch):
    uploads: list[tuple[dict[str, Any], set[str]]] = []
    folder = tmp_path / "named"
    monkeypatch.setattr(model, "push_to_hub", lambda **options: uploads.append((options, files_of(folder))))
    model.save_pretrained(folder, push_to_hub=True, private=True)
    model.save_pretrained(folder, push_to_hub=True, repo_id="ann/other", is_main_process=True)
    model.save_pretrained(folder, push_to_hub=True, is_main_process=False)
    assert [options for options, _ in uploads] == [{"repo_id": "named", "private": True}, {"repo_id": "ann/other"}]
    assert uploads[0][1] == {"config.json", "model.safetensors"} | CODE | SENTENCE_TRANSFORMERS


def test_saving_again_writes_the_same_files(saved: Path, elsewhere: Path):
    for name in CODE | SENTENCE_TRANSFORMERS:
        assert (elsewhere / "again" / name).read_bytes() == (saved / name).read_bytes()
    first, again = (json.loads((folder / "config.json").read_text()) for folder in (saved, elsewhere / "again"))
    for config in (first, again):
        config["encoder_config"].pop("dtype")  # an encoder that was never loaded does not know its own
    assert again == first


def test_a_folder_saved_from_a_one_head_view_opens_with_every_auto_class(model, tmp_path: Path):
    model.save_pretrained(tmp_path / "whole")
    view = MultiTaskForTokenClassification.from_pretrained(tmp_path / "whole", task_name="upos")
    view.save_pretrained(tmp_path / "view")
    whole, from_view = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "view"))
    assert from_view["auto_map"] == whole["auto_map"]
    assert from_view["custom_pipelines"] == whole["custom_pipelines"]
    assert from_view["tasks"] == whole["tasks"]


def test_no_path_of_this_machine_is_published(saved: Path):
    for path in saved.rglob("*.json"):
        assert str(Path.cwd()) not in path.read_text() and str(saved) not in path.read_text()
