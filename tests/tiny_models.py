"""Tiny random encoders, their tokenizers and a task of every kind, all built in code: nothing is downloaded or stored.

Each family has the traits of the real one that a multi-task model can trip over: special tokens and their ids, `<pad>`
that is not 0, positions that start behind it, no or one token type, an embedding size that is not the hidden size,
relative positions, sliding windows, character offsets that include the space before a word.

    encoder, tokenizer = tiny_encoder("roberta"), tiny_tokenizer("roberta")
    encoder(**tokenizer(["a text"], return_tensors="pt")).last_hidden_state  # (1, tokens, 32)
"""

import functools
import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

ENCODER_FAMILIES = (
    "bert",
    "minilm",
    "mpnet",
    "roberta",
    "distilbert",
    "deberta-v2",
    "electra",
    "xlm-roberta",
    "modernbert",
)
HIDDEN_SIZE = 32
MAX_LENGTH = 128
"""Tokens, special ones included, that every tiny encoder can read."""

TINY_TASKS: dict[str, dict[str, Any]] = {
    "anchor": {"kind": "feature-extraction"},
    "ner": {"kind": "token-classification", "labels": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]},
    "rating": {"kind": "text-classification", "problem_type": "regression"},
    "similarity": {"kind": "sentence-similarity"},
    "tags": {
        "kind": "text-classification",
        "problem_type": "multi_label_classification",
        "labels": ["cheap", "fast", "new", "safe"],
    },
    "topic": {"kind": "text-classification", "labels": ["Sports", "Technology", "Weather"]},
    "upos": {"kind": "token-classification", "labels": ["ADJ", "DET", "NOUN", "PUNCT", "VERB"]},
}
"""One task of every kind and problem type, entities and plain tags, in the order of the names."""

WORDS = (
    "the a of to in and is was it for on with he she that this not are has new old day rain sun team game won phone "
    "fast cold Paris Anna Berlin John good bad very city people"
).split()
ENDINGS = ("ing", "ed", "er", "est", "ly", "s", "al", "ion")
CHARACTERS = string.ascii_letters + string.digits + string.punctuation
SPACE_MARK = "▁"

BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
DEBERTA_TOKENS = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}
"""Special tokens by role; ids are given in the order in which a token first stands here."""

NARROW = {"hidden_size": HIDDEN_SIZE, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def vocabulary(special_tokens: dict[str, str], pieces: list[str]) -> dict[str, int]:
    """Token -> id: special tokens first, then the pieces, each once."""
    return {token: index for index, token in enumerate(dict.fromkeys([*special_tokens.values(), *pieces]))}


def post_processor(special_tokens: dict[str, str], vocab: dict[str, int], middle: str) -> Any:
    """`[CLS] a [SEP]` and `[CLS] a <middle> b [SEP]` with token types 0 and 1."""
    first, last = special_tokens["cls_token"], special_tokens["sep_token"]
    return processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {middle} $B:1 {last}:1",
        special_tokens=[(token, vocab[token]) for token in dict.fromkeys((first, last))],
    )


def wordpiece(special_tokens: dict[str, str], middle: str) -> Tokenizer:
    """Lower-casing WordPiece as BERT has it; a word without a piece of its own falls apart into characters."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = [word.lower() for word in WORDS]
    pieces = [*characters, *(f"##{piece}" for piece in (*characters, *ENDINGS)), *words]
    vocab = vocabulary(special_tokens, pieces)
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=special_tokens["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = post_processor(special_tokens, vocab, middle)
    return tokenizer


def byte_pairs(special_tokens: dict[str, str]) -> Tokenizer:
    """Byte-level BPE whose merges spell the beginnings of ` word`; other words stay bytes. No post-processor yet."""
    merges = []
    for word in WORDS:
        marked = f"Ġ{word}"
        merges += [(marked[:end], marked[end]) for end in range(1, len(marked))]
    merges = list(dict.fromkeys(merges))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = vocabulary(special_tokens, [*alphabet, *(left + right for left, right in merges)])
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def unigram(special_tokens: dict[str, str], middle: str, split_whitespace: bool) -> Tokenizer:
    """Unigram over `▁word` pieces as in SentencePiece; without `split_whitespace` offsets include the space before."""
    pieces = [SPACE_MARK, *CHARACTERS, *ENDINGS, *(SPACE_MARK + word for word in WORDS)]
    vocab = vocabulary(special_tokens, pieces)
    scores = [(token, 0.0 if token in special_tokens.values() else len(token) - 10.0) for token in vocab]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=vocab[special_tokens["unk_token"]], byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    steps = [pre_tokenizers.WhitespaceSplit(), metaspace] if split_whitespace else [metaspace]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    tokenizer.post_processor = post_processor(special_tokens, vocab, middle)
    return tokenizer


def roberta_byte_pairs() -> Tokenizer:
    """RoBERTa's post-processor trims the space off the offsets of ` word`."""
    tokenizer = byte_pairs(ROBERTA_TOKENS)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    return tokenizer


def modernbert_byte_pairs() -> Tokenizer:
    """ModernBERT's template leaves the space inside the offsets of ` word`."""
    tokenizer = byte_pairs(BERT_TOKENS)
    tokenizer.post_processor = post_processor(BERT_TOKENS, tokenizer.get_vocab(), "[SEP]")
    return tokenizer


def rust_tokenizer(family: str) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of a family and its special tokens by role."""
    match family:
        case "mpnet":
            return wordpiece(ROBERTA_TOKENS, "</s> </s>"), ROBERTA_TOKENS
        case "roberta":
            return roberta_byte_pairs(), ROBERTA_TOKENS
        case "xlm-roberta":
            return unigram(ROBERTA_TOKENS, "</s> </s>", split_whitespace=True), ROBERTA_TOKENS
        case "deberta-v2":
            return unigram(DEBERTA_TOKENS, "[SEP]", split_whitespace=False), DEBERTA_TOKENS
        case "modernbert":
            return modernbert_byte_pairs(), BERT_TOKENS
        case _:
            return wordpiece(BERT_TOKENS, "[SEP]"), BERT_TOKENS


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A new fast tokenizer of one of `ENCODER_FAMILIES`, with about 200 to 500 tokens and that family's inputs.

    It makes `token_type_ids` where the real one does: BERT, MiniLM, DistilBERT, ELECTRA and DeBERTa.
    """
    check_family(family)
    tokenizer, special_tokens = rust_tokenizer(family)
    with_types = family in ("bert", "minilm", "distilbert", "electra", "deberta-v2")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", *(["token_type_ids"] if with_types else []), "attention_mask"],
        **special_tokens,
    )


@functools.cache
def vocabulary_size(family: str) -> int:
    """Tokens of a family's tokenizer, special ones included."""
    return len(tiny_tokenizer(family))


def encoder_settings(family: str, dropout: float) -> dict[str, Any]:
    """`model_type` and arguments of the configuration of a family, without its vocabulary."""
    bert = {**NARROW, **dict.fromkeys(DROPOUTS, dropout), "max_position_embeddings": MAX_LENGTH}
    # RoBERTa and MPNet count positions from pad_token_id + 1 = 2.
    roberta = {**bert, "max_position_embeddings": MAX_LENGTH + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    match family:
        case "bert":
            return {"model_type": "bert", **bert}
        case "minilm":  # deep and thin: more layers, heads of 8 features
            return {"model_type": "bert", **bert, "num_hidden_layers": 3, "num_attention_heads": 4}
        case "mpnet" | "roberta" | "xlm-roberta":
            return {"model_type": family, **roberta}
        case "electra":
            return {"model_type": "electra", **bert, "embedding_size": HIDDEN_SIZE // 2}
        case "distilbert":
            sizes = {"dim": HIDDEN_SIZE, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
            dropouts = {"dropout": dropout, "attention_dropout": dropout}
            return {"model_type": family, **sizes, **dropouts, "max_position_embeddings": MAX_LENGTH}
        case "deberta-v2":  # as DeBERTa v3 is configured
            relative = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
            buckets = {"position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
            return {"model_type": family, **bert, **relative, **buckets, "type_vocab_size": 0}
        case _:
            dropouts = {"attention_dropout": dropout, "embedding_dropout": dropout, "mlp_dropout": dropout}
            window = {"local_attention": 8, "layer_types": ["full_attention", "sliding_attention"]}
            return {"model_type": family, **NARROW, **dropouts, **window, "max_position_embeddings": MAX_LENGTH}


def tiny_config(family: str, dropout: float = 0.0) -> Any:
    """The configuration of a tiny encoder; its special token ids are the tokenizer's."""
    check_family(family)
    tokenizer = tiny_tokenizer(family)
    settings = encoder_settings(family, dropout)
    roles = {"pad_token_id": tokenizer.pad_token_id}
    if family == "modernbert":
        ends = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        roles |= {**ends, "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    # 0.1, not the usual 0.02: with two thin layers attention would hardly look at the tokens.
    return AutoConfig.for_model(
        settings.pop("model_type"), vocab_size=len(tokenizer), initializer_range=0.1, **roles, **settings
    )


def tiny_encoder(family: str, seed: int = 0, dropout: float = 0.0) -> PreTrainedModel:
    """A new random encoder of one of `ENCODER_FAMILIES`, in evaluation mode; the same `seed` gives the same weights.

    The global random state is left as it was. Hidden size 32, 2 layers (MiniLM 3), up to `MAX_LENGTH` tokens.
    """
    config = tiny_config(family, dropout)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModel.from_config(config).eval()


def check_family(family: str) -> None:
    """Raise ValueError unless `family` is one of `ENCODER_FAMILIES`."""
    if family not in ENCODER_FAMILIES:
        raise ValueError(f"family must be one of {', '.join(ENCODER_FAMILIES)}; got {family!r}.")
