"""sentence-transformers opens what `save_pretrained` writes: same embeddings and dimension; and we read it back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import run_elsewhere
from numpy.testing import assert_allclose
from safetensors.torch import load_file
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer

from configuration_multitask import POOLINGS, MultiTaskConfig
from encoder_source import find_encoder
from modeling_multitask import MultiTaskModel
from sentence_transformers_files import POOLING_NAMES, sentence_transformers_fields

TEXTS = [
    "Anna won the game in Paris.",
    "The new phone is fast, and the team is very good today.",
    "",
    "  Berlin\n is\t cold ",
    "the rain " * 200,
]
VARIANTS: dict[str, dict[str, Any]] = {
    **{pooling: {"pooling": pooling} for pooling in POOLINGS},
    "projected": {"projection_dim": 24},
    "normalised": {"normalize_embeddings": True},
    "projected and normalised": {"pooling": "cls", "projection_dim": 40, "normalize_embeddings": True},
    "short": {"max_seq_length": 12, "pooling": "last_token"},
}
FAMILIES = ("bert", "roberta", "deberta-v2")

READER = """
import numpy as np, torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
texts = json.loads(sys.argv[1])
found["dimension"], found["length"] = {}, {}


def keep(name, model, **options):
    embeddings = model.encode(texts, **options)
    np.save(f"{name}.npy", embeddings)
    found["dimension"][name] = [model.get_embedding_dimension(), embeddings.shape[1]]
    found["length"][name] = model.max_seq_length


for folder in sys.argv[2:]:
    name = folder.replace("\\\\", "/").rsplit("/", 1)[-1]
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    keep(name, model)
    keep(name + ".one by one", model, batch_size=1)
    model.save_pretrained(name + "_again")
    keep(name + ".saved again", SentenceTransformer(name + "_again", trust_remote_code=True, device="cpu"))
    ours = AutoModel.from_pretrained(name + "_again", trust_remote_code=True)
    np.save(name + ".ours again.npy", ours.encode(texts, AutoTokenizer.from_pretrained(name + "_again")))
"""


def new_model(family: str = "bert", **fields: Any) -> MultiTaskModel:
    """A model on a tiny encoder, with a task of every kind."""
    encoder = tiny_encoder(family)
    return MultiTaskModel(MultiTaskConfig(encoder_config=encoder.config, tasks=TINY_TASKS, **fields), encoder).eval()


def test_the_table_has_every_pooling():
    assert tuple(POOLING_NAMES) == POOLINGS


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_what_is_written_reads_back(pooling: str, normalize: bool, tmp_path: Path):
    new_model(pooling=pooling, normalize_embeddings=normalize, max_seq_length=50).save_pretrained(tmp_path)
    expected = {"pooling": pooling, "max_seq_length": 50} | ({"normalize_embeddings": True} if normalize else {})
    assert sentence_transformers_fields(tmp_path) == expected


@pytest.mark.parametrize("given", [False, True], ids=["own weights", "weights as Trainer gives them"])
def test_the_dense_module_is_the_projection(given: bool, tmp_path: Path):
    model = new_model(projection_dim=24)
    model.save_pretrained(tmp_path, state_dict=dict(model.state_dict()) if given else None)
    dense = load_file(tmp_path / "2_Dense" / "model.safetensors")
    assert torch.equal(dense["linear.weight"], model.projection.weight)
    assert torch.equal(dense["linear.bias"], model.projection.bias)
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["projection.weight"], model.projection.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_length_is_what_a_text_is_cut_to(family: str, tmp_path: Path):
    model, tokenizer = new_model(family), tiny_tokenizer(family)
    for fields in ({}, {"max_seq_length": 12}, {"max_seq_length": 4000}):
        model.config.max_seq_length = fields.get("max_seq_length")
        model.save_pretrained(tmp_path)
        settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
        assert settings["max_seq_length"] == model.max_length(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "padding_side"), [("bert", "right"), ("bert", "left"), ("roberta", "left")])
def test_sentence_transformers_embeds_as_encode_does_in_another_process(family: str, padding_side, tmp_path: Path):
    pytest.importorskip("sentence_transformers")
    tokenizer = tiny_tokenizer(family)
    tokenizer.padding_side = padding_side
    models = {name: new_model(family, **fields) for name, fields in VARIANTS.items()}
    expected = {name: model.encode(TEXTS, tokenizer) for name, model in models.items()}
    folders = []
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    out = tmp_path / "elsewhere"
    out.mkdir()
    found = run_elsewhere(READER, out, json.dumps(TEXTS), *folders)
    for name, embeddings in expected.items():
        for form in ("", ".one by one", ".saved again", ".ours again"):
            assert_allclose(np.load(out / f"{name}{form}.npy"), embeddings, atol=1e-6, rtol=0, err_msg=name + form)
        assert found["dimension"][name] == [models[name].config.embedding_size] * 2
        assert found["length"][name] == found["length"][f"{name}.saved again"] == models[name].max_length(tokenizer)


@pytest.mark.slow
def test_a_bfloat16_model_with_a_projection_opens(tmp_path: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model, tokenizer = (
        new_model(projection_dim=24, normalize_embeddings=True).to(torch.bfloat16),
        tiny_tokenizer("bert"),
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    there = sentence_transformers.SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert there.dtype == torch.bfloat16
    own = model.encode(TEXTS, tokenizer)
    assert_allclose(there.encode(TEXTS), own, atol=0.02)


@pytest.mark.slow
@pytest.mark.real_data
def test_a_minilm_folder_scores_stsb_by_sentence_transformers_as_by_encode(data_root: Path, tmp_path: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from datasets import load_dataset
    from scipy.stats import spearmanr
    from transformers import AutoTokenizer

    source = find_encoder("sentence-transformers/all-MiniLM-L6-v2", offline=True).path
    model = MultiTaskModel.from_backbone(source, tasks={"sts": {"kind": "sentence-similarity"}})
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    there = sentence_transformers.SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    rows = load_dataset("parquet", data_files=str(data_root / "stsb" / "validation.parquet"), split="train")[:300]
    scores = {}
    for name, encode in (("here", lambda texts: model.encode(texts, tokenizer)), ("there", there.encode)):
        first, second = (encode(list(rows[f"sentence{number}"])) for number in (1, 2))
        scores[name] = spearmanr((first * second).sum(axis=1), rows["label"]).statistic
    assert scores["there"] == pytest.approx(scores["here"], abs=1e-5)
    assert scores["here"] > 0.8, "premise: this is the real encoder"
