"""A vocabulary that tells case apart: the tokens and, until training, the vectors of before; saved and reopened."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TINY_TASKS, WORDS, tiny_encoder, tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from arguments_multitask import ModelArguments
from cased_vocabulary import CAPITALISED, LOWER, UPPER, cased_tokenizer
from configuration_multitask import MultiTaskConfig
from encoder_source import ALL_MINILM_L6_V2, find_encoder
from modeling_multitask import CasedEmbedding, MultiTaskModel
from parameter_groups import parameter_groups
from training_run import build_model

UNCASED = ("bert", "minilm", "mpnet", "distilbert", "electra")
OTHERS = ("roberta", "deberta-v2", "xlm-roberta", "modernbert")
TEXT = "Anna won THE game in Paris, not in Berlin: the PHONE is very good."

Vocabulary = tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast, list[int], list[int]]


@pytest.fixture(scope="module", params=["tiny", "all-MiniLM-L6-v2"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    """An uncased tokenizer, the cased one made of it, bases and cases; tiny, and the real encoder's."""
    if request.param == "tiny":
        uncased = tiny_tokenizer("bert")
    else:
        uncased = AutoTokenizer.from_pretrained(find_encoder(ALL_MINILM_L6_V2, offline=True).path)
        uncased.backend_tokenizer.no_truncation()
        uncased.backend_tokenizer.no_padding()
    return uncased, *cased_tokenizer(uncased)


def test_words_in_one_case_or_capitalised_are_cut_as_before_and_say_their_case(vocabulary: Vocabulary):
    """Same tokens, same offsets, whatever the words; the case is that of the letters."""
    uncased, cased, bases, cases = vocabulary
    word = st.one_of(st.sampled_from(WORDS), st.text("abcdefghijklmnopqrstuvwxyzéüñß0123456789", min_size=1))
    forms: tuple[Callable[[str], str], ...] = (str.lower, lambda w: w[0].upper() + w[1:].lower(), str.upper)

    @given(st.lists(st.tuples(word, st.sampled_from(forms)), max_size=8))
    def check(words):
        text = " ".join(form(word) for word, form in words if "ß" not in word or form is str.lower)
        before, after = uncased(text, return_offsets_mapping=True), cased(text, return_offsets_mapping=True)
        assert [bases[token] for token in after["input_ids"]] == before["input_ids"]
        assert after["offset_mapping"] == before["offset_mapping"]
        for token, (start, end) in zip(after["input_ids"], after["offset_mapping"], strict=True):
            piece = text[start:end]
            if cases[token] == LOWER:
                assert piece == piece.lower() or token == cased.unk_token_id
            else:
                assert piece == (piece.upper() if cases[token] == UPPER else piece[0].upper() + piece[1:].lower())

    check()


def test_a_text_in_lower_case_has_the_very_ids_that_it_had(vocabulary: Vocabulary):
    uncased, cased, *_ = vocabulary
    assert cased(TEXT.lower())["input_ids"] == uncased(TEXT.lower())["input_ids"]
    assert cased(TEXT, "a pair")["token_type_ids"] == uncased(TEXT, "a pair")["token_type_ids"]
    assert cased.model_input_names == uncased.model_input_names


def test_no_letter_of_any_script_becomes_unknown(vocabulary: Vocabulary):
    """Also where upper and lower case are not one to one (Kelvin, sharp s, titlecase digraphs)."""
    uncased, cased, bases, _ = vocabulary
    letters = [chr(code) for code in range(sys.maxunicode + 1) if chr(code) != chr(code).lower()]
    for letter, before, after in zip(letters, uncased(letters)["input_ids"], cased(letters)["input_ids"], strict=True):
        assert (cased.unk_token_id in after) == (uncased.unk_token_id in before), (letter, hex(ord(letter)))


def test_mixed_case_falls_apart_and_loses_no_letter(vocabulary: Vocabulary):
    _, cased, bases, _ = vocabulary
    for text in ("McDonald", "iPhone", "YouTube", "eBAY"):
        tokens = cased.tokenize(text)
        assert "".join(token.removeprefix("##") for token in tokens) == text


def test_a_saved_tokenizer_opens_by_the_stock_class_with_the_same_ids(vocabulary: Vocabulary, tmp_path: Path):
    _, cased, *_ = vocabulary
    cased.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXT, "A Pair")["input_ids"] == cased(TEXT, "A Pair")["input_ids"]
    assert (again.model_max_length, again.pad_token_id) == (cased.model_max_length, cased.pad_token_id)


def model_of(family: str) -> MultiTaskModel:
    """A tiny model with every kind of task."""
    encoder = tiny_encoder(family)
    return MultiTaskModel(MultiTaskConfig(encoder.config, TINY_TASKS), encoder=encoder).eval()


@pytest.mark.parametrize("family", UNCASED)
def test_before_training_every_answer_is_the_uncased_models_to_the_bit_and_case_moves_it_after(family: str):
    tokenizer, model = tiny_tokenizer(family), model_of(family)
    cased, bases, cases = cased_tokenizer(tokenizer)
    before = model(**tokenizer([TEXT], return_tensors="pt"))
    model.read_case(bases, cases)
    after = model(**cased([TEXT], return_tensors="pt"))
    for name in TINY_TASKS:
        assert torch.equal(before.logits[name], after.logits[name]) or name == "similarity"
    torch.nn.init.normal_(model.get_input_embeddings().case.weight)
    lower, upper = (model.encode([text], cased) for text in (TEXT.lower(), TEXT.upper()))
    assert abs(lower - upper).max() > 0.01


def test_the_vector_of_a_token_is_its_base_plus_its_case():
    base = torch.nn.Embedding(4, 3)
    embedding = CasedEmbedding(base, 6)
    embedding.bases.copy_(torch.tensor([0, 1, 2, 3, 1, 1]))
    embedding.cases.copy_(torch.tensor([LOWER] * 4 + [CAPITALISED, UPPER]))
    torch.nn.init.normal_(embedding.case.weight)
    vectors = embedding(torch.tensor([[1, 4, 5]]))[0]
    assert torch.equal(vectors, base.weight[1] + embedding.case.weight)
    vectors.sum().backward()
    assert torch.equal(base.weight.grad[1], torch.full((3,), 3.0)), "the base learns from all its cases"


@pytest.mark.parametrize("family", UNCASED)
def test_a_saved_model_reopens_with_the_same_bits(family: str, tmp_path: Path):
    model = model_of(family)
    cased, bases, cases = cased_tokenizer(tiny_tokenizer(family))
    model.read_case(bases, cases)
    torch.nn.init.normal_(model.get_input_embeddings().case.weight)
    model.save_pretrained(tmp_path)
    again, report = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert (again.encode([TEXT], cased) == model.encode([TEXT], cased)).all()


def test_with_frozen_embeddings_the_vectors_of_cases_go_on_learning():
    model = model_of("bert")
    cased, bases, cases = cased_tokenizer(tiny_tokenizer("bert"))
    model.read_case(bases, cases)
    model.freeze("embeddings")
    learning = {name for name, p in model.encoder.embeddings.named_parameters() if p.requires_grad}
    assert learning == {"word_embeddings.case.weight"}


@pytest.mark.parametrize("family", OTHERS)
def test_a_tokenizer_that_reads_case_already_is_refused(family: str):
    with pytest.raises(ValueError, match=r"Only an uncased WordPiece tokenizer .* Leave read_case off"):
        cased_tokenizer(tiny_tokenizer(family))


def test_a_cased_vocabulary_is_refused_a_second_time():
    cased, *_ = cased_tokenizer(tiny_tokenizer("bert"))
    with pytest.raises(ValueError, match="reads case already"):
        cased_tokenizer(cased)


def test_the_new_vectors_learn_at_the_heads_rate_and_the_encoders_at_its_own(encoder_folder):
    arguments = ModelArguments(encoder=str(encoder_folder("minilm")), read_case=True)
    model, tokenizer = build_model(arguments, {}, offline=True)
    assert model.config.cased_vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings
    embedding = model.get_input_embeddings()
    groups = parameter_groups(model, learning_rate=1e-4, weight_decay=0.01, head_learning_rate=1e-3)
    rates = {id(parameter): group["lr"] for group in groups for _, parameter in group["params"]}
    assert rates[id(embedding.case.weight)] == 1e-3
    assert rates[id(embedding.base.weight)] == 1e-4
