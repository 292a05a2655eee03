"""Decoding: logits and character offsets become labels, entity spans and scores; and the `multitask` pipeline over it.

Every way to ask a model (`model.predict`, `pipeline("multitask", ...)`, a server) answers through `decode_answers`, so
they cannot disagree. It computes no logits itself: the model is handed in. This file travels with the weights.

    pipe = pipeline("multitask", model=folder, trust_remote_code=True)
    pipe("Shares of Siemens rose.")    # {"topic": {"label": "Business", ...}, "ner": [{"entity_group": "ORG", ...}]}
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Pipeline

try:  # in a saved folder; transformers finds this line and copies the file along
    from .configuration_multitask import (
        FEATURE_EXTRACTION,
        MULTI_LABEL,
        REGRESSION,
        SENTENCE_SIMILARITY,
        TEXT_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
        has_entities,
    )
except ImportError:  # as a flat module
    if __package__:
        raise
    from configuration_multitask import (
        FEATURE_EXTRACTION,
        MULTI_LABEL,
        REGRESSION,
        SENTENCE_SIMILARITY,
        TEXT_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
        has_entities,
    )

logger = logging.getLogger(__name__)

AGGREGATION_STRATEGIES = ("none", "simple", "first", "average", "max")
MULTI_LABEL_THRESHOLD = 0.5
WINDOW_OVERLAP = 0.25
"""Share of a window of a long text that the next window reads again."""

LENGTH_STEP = 8
"""Batches are padded to a multiple of this many tokens. For every shape that it meets a CPU compiles and keeps kernels
of its own, and a GPU's tensor cores multiply eights."""

Text = str | tuple[str, str]
"""A text, or a pair of texts for the tasks that compare or jointly read two."""


def named_scores(labels: list[str], scores: Tensor, top_k: int | None) -> dict[str, float]:
    """Label name -> score, best first, at most `top_k` of them (None: all)."""
    order = scores.argsort(descending=True, stable=True)[:top_k].tolist()
    return {labels[index]: float(scores[index]) for index in order}


def decode_classification(spec: dict[str, Any], logits: Tensor, top_k: int | None = None) -> dict[str, Any]:
    """Answer of a text-classification head for one item.

    Args:
        spec (dict): The task's entry in `config.tasks`.
        logits (Tensor): Shape (classes,), or (1,) for regression.
        top_k (int): How many classes `scores` lists; None for all.

    Returns:
        `{"label", "score", "scores"}` for one class; `{"labels", "scores"}` for several, the labels being those of
        probability 0.5 or more; `{"score"}`, the predicted number, for regression.
    """
    labels = spec["labels"]
    logits = logits.double()  # so that probabilities sum to 1 as printed
    if spec["problem_type"] == REGRESSION:
        return {"score": float(logits[0])}
    if spec["problem_type"] == MULTI_LABEL:
        scores = logits.sigmoid()
        chosen = [label for label, score in zip(labels, scores, strict=True) if score >= MULTI_LABEL_THRESHOLD]
        return {"labels": chosen, "scores": named_scores(labels, scores, top_k)}
    scores = logits.softmax(-1)
    best = int(scores.argmax())
    return {"label": labels[best], "score": float(scores[best]), "scores": named_scores(labels, scores, top_k)}


def continues_word(tokenizer: Any, text: str, offsets: Tensor, word_ids: list[int | None]) -> Tensor:
    """For each token, whether it goes on with the word of the token before it. Shape (tokens,), bool.

    A tokenizer that marks continuations (`##`) knows its words; the others split at white space here. The words are
    those of the stock token-classification pipeline, but for what it guesses wrongly. There,

    - with `##`: a token goes on if it is not as long as the characters it covers, so that the first token of a word
      does, too, if the tokenizer dropped a character from inside it (a combining mark, a zero-width character);
    - without: an unknown token begins a word, even inside one;
    - without: so does each token that shares its first character with the token before (`▁`, the bytes of a letter),
      if a space or nothing stands before that character;
    - without: no word begins after white space that is not a space (line break, tab, no-break space);
    - a token of nothing but white space is a word; here it is left out (see `item_answers`).

    Args:
        tokenizer: A fast tokenizer.
        text (str): The text that the offsets count in.
        offsets (Tensor): Characters [start, end) of tokens that hold any, in order. Shape (tokens, 2).
        word_ids (list): The tokenizer's own word of each token.
    """
    if getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None):
        return torch.tensor([i > 0 and word == word_ids[i - 1] for i, word in enumerate(word_ids)], dtype=torch.bool)
    starts = [trimmed(text, start, end)[0] for start, end in offsets.tolist()]
    gaps = [text[before:start] for before, start in zip(starts[:-1], starts[1:], strict=True)]
    return torch.tensor([False, *(not any(map(str.isspace, gap)) for gap in gaps)])[: len(offsets)]


def group_words(probabilities: Tensor, offsets: Tensor, continues: Tensor, strategy: str) -> list[tuple]:
    """Units that carry one tag each: `(class, score, start, end)`.

    Args:
        probabilities (Tensor): Shape (tokens, classes), special tokens already left out.
        offsets (Tensor): Characters [start, end) of each token. Shape (tokens, 2).
        continues (Tensor): From `continues_word`. Shape (tokens,).
        strategy (str): `none` and `simple` keep every token by itself; `first`, `average` and `max` merge the tokens of
            a word and take the tag of the first token, of the mean distribution, or of the surest token.
    """
    if strategy in ("none", "simple"):
        starts = list(range(len(probabilities)))
    else:
        starts = [token for token, goes_on in enumerate(continues.tolist()) if token == 0 or not goes_on]
    after = [*starts[1:], len(probabilities)]
    if strategy == "average":
        scores = torch.stack([word.mean(0) for word in probabilities.tensor_split(starts[1:])])
    elif strategy == "max":
        sure = probabilities.amax(1).tolist()
        scores = probabilities[[max(range(*word), key=sure.__getitem__) for word in zip(starts, after, strict=True)]]
    else:
        scores = probabilities[starts]
    best = scores.max(1)
    ends = offsets[[end - 1 for end in after], 1]
    units = (best.indices, best.values, offsets[starts, 0], ends)
    return list(zip(*(values.tolist() for values in units), strict=True))


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span [start, end) without white space at its ends (byte-level tokenizers count the space before a word)."""
    span = text[start:end]
    left = len(span) - len(span.lstrip())
    return start + left, max(start + left, end - (len(span) - len(span.rstrip())))


def decode_spans(labels: list[str], units: list[tuple], text: str) -> list[dict[str, Any]]:
    """Entity spans from BIO-tagged units: neighbours of one type are one entity, a `B-` starts the next.

    Returns:
        `[{"entity_group", "score", "word", "start", "end"}]` with `text[start:end] == word`; the score is the mean over
        the span's units. An `I-` without a `B-` before it starts an entity too, as in the stock pipeline.
    """
    spans: list[dict[str, Any]] = []
    previous = "O"
    for best, score, start, end in units:
        label = labels[best]
        if label != "O":
            goes_on = previous != "O" and label[:2] == "I-" and label[2:] == previous[2:]
            if goes_on:
                spans[-1]["end"] = end
                spans[-1]["scores"].append(score)
            else:
                spans.append({"entity_group": label[2:], "scores": [score], "start": start, "end": end})
        previous = label
    return [finished_span(span, text) for span in spans]


def finished_span(span: dict[str, Any], text: str) -> dict[str, Any]:
    """A span with its mean score and the very characters it covers."""
    start, end = trimmed(text, span["start"], span["end"])
    return {
        "entity_group": span["entity_group"],
        "score": sum(span["scores"]) / len(span["scores"]),
        "word": text[start:end],
        "start": start,
        "end": end,
    }


def decode_tags(labels: list[str], units: list[tuple], text: str) -> list[dict[str, Any]]:
    """One tag a unit: `[{"entity", "score", "word", "start", "end"}]`, `text[start:end] == word`."""
    tags = []
    for best, score, start, end in units:
        start, end = trimmed(text, start, end)
        tags.append({"entity": labels[best], "score": score, "word": text[start:end], "start": start, "end": end})
    return tags


def decode_tokens(
    spec: dict[str, Any], logits: Tensor, text: str, offsets: Tensor, continues: Tensor, strategy: str
) -> list[dict[str, Any]]:
    """Answer of a token-classification head for one text: spans for BIO tags, else (or with `none`) tags.

    Args:
        spec (dict): The task's entry in `config.tasks`.
        logits (Tensor): Shape (tokens, classes), special tokens already left out.
        text (str): The text that the offsets count in.
        offsets (Tensor): Shape (tokens, 2).
        continues (Tensor): From `continues_word`. Shape (tokens,).
        strategy (str): One of `AGGREGATION_STRATEGIES`.
    """
    if len(logits) == 0:
        return []
    spans = has_entities(spec["labels"]) and strategy != "none"
    if not spans and strategy == "simple":
        strategy = "first"  # a tag belongs to a word; `simple` has a meaning for spans only
    units = group_words(logits.double().softmax(-1), offsets, continues, strategy)
    return (decode_spans if spans else decode_tags)(spec["labels"], units, text)


def decode_answers(
    tasks: dict[str, dict[str, Any]],
    logits: dict[str, Tensor],
    text: str,
    offsets: Tensor,
    continues: Tensor,
    aggregation_strategy: str = "first",
    top_k: int | None = None,
) -> dict[str, Any]:
    """Every task's answer for one item.

    Args:
        tasks (dict): `config.tasks`.
        logits (dict): Task name -> this item's row of logits, of its own length in tokens, no batch padding.
        text (str): The item's (first) text.
        offsets (Tensor): Characters [start, end) of each token. Shape (tokens, 2).
        continues (Tensor): From `continues_word` for the others. Shape (tokens,), bool.
        aggregation_strategy (str): One of `AGGREGATION_STRATEGIES`.
        top_k (int): How many classes `scores` lists; None for all.

    Returns:
        Task name -> answer. Similarity without a pair (NaN) has no answer and is left out.
    """
    answers: dict[str, Any] = {}
    for name, values in logits.items():
        kind = tasks[name]["kind"]
        if kind == TEXT_CLASSIFICATION:
            answers[name] = decode_classification(tasks[name], values, top_k)
        elif kind == TOKEN_CLASSIFICATION:
            answers[name] = decode_tokens(tasks[name], values, text, offsets, continues, aggregation_strategy)
        elif kind == FEATURE_EXTRACTION:
            answers[name] = values.numpy()
        elif not values.isnan():
            answers[name] = {"score": float(values)}
    return answers


def check_request(
    model: Any, texts: Sequence[Text], tasks: Iterable[str] | None, strategy: str, top_k: int | None
) -> list[str]:
    """Return the names of the tasks to answer, or raise ValueError naming what is unknown or no text."""
    known = model.config.tasks
    if isinstance(tasks, str) or not isinstance(tasks, Iterable | None):
        given = "one string" if isinstance(tasks, str) else type(tasks).__name__
        raise ValueError(f"Give a list of tasks, not {given}: tasks=[{tasks!r}].")
    names = list(known if tasks is None else tasks)
    unknown = [name for name in names if not isinstance(name, str) or name not in known]
    if unknown:
        raise ValueError(f"Unknown tasks {unknown}; this model's tasks are: {', '.join(known) or 'none'}.")
    if strategy not in AGGREGATION_STRATEGIES:
        raise ValueError(f"aggregation_strategy must be one of {', '.join(AGGREGATION_STRATEGIES)}; got {strategy!r}.")
    if top_k is not None:
        check_positive("top_k", top_k)
    check_texts(texts, with_pairs=True)
    return names


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")


def check_texts(texts: Sequence[Text], with_pairs: bool) -> None:
    """Raise ValueError unless `texts` is a list of texts, or where `with_pairs` also of pairs of texts."""
    if isinstance(texts, str):
        raise ValueError(f"Give a list of texts, not one string (its letters would be the items); got {texts[:40]!r}.")
    if isinstance(texts, Mapping) or not (hasattr(texts, "__len__") and hasattr(texts, "__getitem__")):
        raise ValueError(f"Give a list of texts; got {type(texts).__name__}. Write list(...) around it.")
    for index, text in enumerate(texts):
        is_pair = isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text)
        if not (isinstance(text, str) or (with_pairs and is_pair)):
            raise ValueError(f"Item {index} must be a string{' or a pair of strings' * with_pairs}; got {text!r}.")
        if not is_unicode(text if isinstance(text, str) else "".join(text)):
            raise ValueError(
                f"Item {index} must be Unicode, but holds half of a surrogate pair: {text!r}. Decode its source as "
                "UTF-8, or drop it: text.encode('utf-8', 'ignore').decode()."
            )


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8, as tokenizers do: Python also holds lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_tokenizer(tokenizer: Any) -> None:
    """Raise ValueError unless the tokenizer knows character offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"Spans and cut texts need character offsets, which only a fast tokenizer gives; got "
            f"{type(tokenizer).__name__}. "
            "Load it with AutoTokenizer from a folder that holds a tokenizer.json."
        )


def in_bfloat16(model: Any, wanted: bool | None) -> torch.autocast:
    """A context in which a float32 model multiplies in bfloat16: if that is wanted, or (None) the hardware has it."""
    if not (wanted is None or isinstance(wanted, bool)):
        raise ValueError(f"bf16 is true, false, or None for what the hardware has; got {wanted!r:.80}.")
    device = torch.device(model.device)
    if wanted is None:
        wanted = computes_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and model.dtype == torch.float32)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself; an emulated bfloat16 is slower than float32."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def token_counts(tokenizer: Any, texts: Sequence[Text]) -> list[int]:
    """How many tokens every text has before it is cut, a pair those of both; counted a thousand texts at a time."""
    counts: list[int] = []
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    for start in range(0, len(texts), 1000):
        parts = [[text] if isinstance(text, str) else [*text] for text in texts[start : start + 1000]]
        ids = iter(tokenizer([part for of_text in parts for part in of_text], verbose=False, **options)["input_ids"])
        counts += [sum(len(next(ids)) for _ in of_text) for of_text in parts]
    return counts


def batches_by_length(tokenizer: Any, texts: Sequence[Text], batch_size: int) -> Iterator[list[int]]:
    """Positions in `texts` in batches of like length, longest first, so that little is padding.

    Lengths are those in tokens: counting them costs less than the padding that the number of characters leaves (numbers
    and names have many tokens), a quarter of all positions in sentences of mixed origin.
    """
    order = list(range(len(texts)))
    if len(texts) > batch_size:
        counts = token_counts(tokenizer, texts)
        order.sort(key=lambda index: -counts[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def tokenize(tokenizer: Any, texts: Sequence[Any], max_length: int | None, **kwargs: Any) -> Any:
    """Tokenise a batch, padded, as tensors; a warning counts the texts over the limit, which are cut there."""
    encoding = tokenizer(
        list(texts),
        truncation=max_length is not None,
        max_length=max_length,
        padding=True,
        # not beyond a limit between two steps: there may be no positions
        pad_to_multiple_of=LENGTH_STEP if (max_length or 0) % LENGTH_STEP == 0 else None,
        return_tensors="pt",
        **kwargs,
    )
    cut = sum(bool(item.overflowing) for item in encoding.encodings)
    if cut:
        logger.warning(
            "%d of %d texts are longer than %d tokens: the rest is read for tags, in windows, and for nothing else.",
            cut,
            len(texts),
            max_length,
        )
    return encoding


class Windows(NamedTuple):
    """A batch of texts as rows of tokens; a text over the limit has several rows, and neighbours overlap."""

    encoding: Any
    """The tokenizer's answer, with offsets and special tokens marked; tensors of shape (rows, tokens)."""
    rows: list[list[int]]
    """The rows of each text; the first is the one that truncation would keep."""
    overlap: int
    """Tokens that two neighbouring rows share."""
    of_text: Tensor
    """From `tokens_of_text`."""

    @property
    def first_rows(self) -> list[int]:
        """One row a text."""
        return [rows[0] for rows in self.rows]


def tokenize_windows(tokenizer: Any, texts: list[str], max_length: int) -> Windows:
    """Tokenise a batch, a text over the limit into windows."""
    overlap = int(WINDOW_OVERLAP * (max_length - tokenizer.num_special_tokens_to_add()))
    encoding = tokenize(
        tokenizer,
        texts,
        max_length,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    rows: list[list[int]] = [[] for _ in texts]
    for row, text in enumerate(encoding["overflow_to_sample_mapping"].tolist()):
        rows[text].append(row)
    return Windows(encoding, rows, overlap, tokens_of_text(encoding))


def tokens_of_text(encoding: Any) -> Tensor:
    """Which tokens are neither padding nor special. Shape (rows, tokens), bool."""
    return encoding["attention_mask"].bool() & ~encoding["special_tokens_mask"].bool()


def word_tokens(windows: Windows, index: int, text: str) -> Tensor:
    """Row and column of each token of a text that is part of a word, in the text's order. Shape (2, tokens), int64.

    Padding and special tokens are none, nor is a token of nothing but space, which had no label in training. Of the
    tokens that two windows share, the left half is taken from the left one and the right half from the right one, so
    that none is taken from an edge beyond which the text goes on.
    """
    encoding, overlap = windows.encoding, windows.overlap
    columns = {row: windows.of_text[row].nonzero().flatten() for row in windows.rows[index]}
    filled = [row for row in columns if len(columns[row])]
    # from left to right: a tokenizer that truncates on the left gives the text's end first
    filled.sort(key=lambda row: int(encoding["offset_mapping"][row, columns[row][0], 0]))
    found = [torch.zeros(2, 0, dtype=torch.long)]
    for place, row in enumerate(filled):
        start = overlap // 2 if place > 0 else 0
        end = len(columns[row]) - (overlap - overlap // 2 if place < len(filled) - 1 else 0)
        kept = columns[row][start:end]
        spans = encoding["offset_mapping"][row, kept].tolist()
        in_word = torch.tensor([bool(text[first:after].strip()) for first, after in spans], dtype=torch.bool)
        found.append(torch.stack([torch.full_like(kept, row), kept])[:, in_word])
    return torch.cat(found, dim=1)


def model_inputs(model: Any, encoding: Any, rows: Any = slice(None), prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors that `forward` takes of some rows of an encoding, on the model's device, names prefixed (`pair_`)."""
    names = ("input_ids", "attention_mask") if prefix else ("input_ids", "attention_mask", "token_type_ids")
    return {prefix + name: encoding[name][rows].to(model.device) for name in names if name in encoding}


def on_cpu(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits as float32 on the CPU."""
    return {name: tensor.float().cpu() for name, tensor in logits.items()}


def tags_of_every_window(model: Any, windows: Windows, logits: dict[str, Tensor], batch_size: int) -> dict[str, Tensor]:
    """Logits of the tag tasks for all rows, given every task's for the first row of each text.

    Shapes: task -> (texts, tokens, classes) in, (rows, tokens, classes) out.
    """
    tasks = model.config.tasks
    tags = {name: values for name, values in logits.items() if tasks[name]["kind"] == TOKEN_CLASSIFICATION}
    known = windows.first_rows
    further = sorted(set(range(len(windows.encoding["input_ids"]))) - set(known))
    parts = [tags]
    for start in range(0, len(further) if tags else 0, batch_size):
        inputs = model_inputs(model, windows.encoding, further[start : start + batch_size])
        parts.append(on_cpu(model(**inputs, tasks=list(tags)).logits))
    order = torch.tensor([*known, *further]).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in tags}


def item_answers(
    tasks: dict[str, Any],
    tokenizer: Any,
    windows: Windows,
    logits: dict[str, Tensor],
    texts: list[str],
    **options: Any,
) -> list[dict[str, Any]]:
    """`decode_answers` for every text of a batch; of tag tasks the logits have one row a row, of others one a text."""
    answers = []
    for index, text in enumerate(texts):
        row, column = word_tokens(windows, index, text)
        offsets = windows.encoding["offset_mapping"][row, column]
        words = {own: windows.encoding.word_ids(own) for own in windows.rows[index]}
        word_ids = [words[own][place] for own, place in zip(row.tolist(), column.tolist(), strict=True)]
        continues = continues_word(tokenizer, text, offsets, word_ids)
        of_item = {
            name: values[row, column] if tasks[name]["kind"] == TOKEN_CLASSIFICATION else values[index]
            for name, values in logits.items()
        }
        answers.append(decode_answers(tasks, of_item, text, offsets, continues, **options))
    return answers


def predict_batch(
    model: Any, tokenizer: Any, texts: list[Text], names: list[str], max_length: int, **options: Any
) -> list[dict[str, Any]]:
    """Every named task's answer and the embedding for one batch, from one encoder pass over it.

    Two kinds of text go through the encoder more than once: one over the limit, for its tags (all else is answered from
    its first window, as in training and in `encode`); and a pair, joined, for the tasks that read two texts jointly.
    For the similarity tasks the texts of a pair are embedded apart, in the one pass.
    """
    tasks = model.config.tasks
    pairs = [index for index, text in enumerate(texts) if not isinstance(text, str)]
    firsts = [text if isinstance(text, str) else text[0] for text in texts]
    windows = tokenize_windows(tokenizer, firsts, max_length)
    inputs = model_inputs(model, windows.encoding, windows.first_rows)
    if pairs and any(tasks[name]["kind"] == SENTENCE_SIMILARITY for name in names):
        second = tokenize(tokenizer, [texts[index][1] for index in pairs], max_length)
        inputs |= model_inputs(model, second, prefix="pair_")
        inputs["pair_items"] = torch.tensor(pairs, device=model.device)
    output = model(**inputs, tasks=[name for name in names if not tasks[name].get("text_pair")])
    logits = on_cpu(output.logits)
    logits |= tags_of_every_window(model, windows, logits, batch_size=len(texts))
    answers = item_answers(tasks, tokenizer, windows, logits, firsts, **options)
    for answer, embedding in zip(answers, output.sentence_embedding.float().cpu(), strict=True):
        answer["sentence_embedding"] = embedding.numpy()
    joint = [name for name in names if tasks[name].get("text_pair")]
    if pairs and joint:
        encoding = tokenize(tokenizer, [tuple(texts[index]) for index in pairs], max_length)
        logits = on_cpu(model(**model_inputs(model, encoding), tasks=joint).logits)
        for row, index in enumerate(pairs):
            for name in joint:
                answers[index][name] = decode_classification(tasks[name], logits[name][row], options.get("top_k"))
    return answers


@torch.no_grad()
def predict(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    tasks: Iterable[str] | None = None,
    batch_size: int = 32,
    aggregation_strategy: str = "first",
    top_k: int | None = None,
    bf16: bool | None = None,
) -> list[dict[str, Any]]:
    """Every task's answer for every text; see `MultiTaskModel.predict`."""
    names = check_request(model, texts, tasks, aggregation_strategy, top_k)
    check_positive("batch_size", batch_size)
    check_tokenizer(tokenizer)
    was_training = model.training
    model.eval()
    answers: list[dict[str, Any]] = [{} for _ in texts]
    options = {"aggregation_strategy": aggregation_strategy, "top_k": top_k}
    with in_bfloat16(model, bf16):
        for positions in batches_by_length(tokenizer, texts, batch_size):
            batch = [texts[position] for position in positions]
            found = predict_batch(model, tokenizer, batch, names, model.max_length(tokenizer), **options)
            for position, answer in zip(positions, found, strict=True):
                answers[position] = answer
    model.train(was_training)
    return answers


@torch.no_grad()
def encode(
    model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 32, normalize: bool | None = None
) -> Any:
    """The sentence embedding of every text; see `MultiTaskModel.encode`."""
    check_texts(texts, with_pairs=False)
    check_positive("batch_size", batch_size)
    check_tokenizer(tokenizer)
    was_training = model.training
    model.eval()
    embeddings = torch.zeros(len(texts), model.config.embedding_size)
    for positions in batches_by_length(tokenizer, texts, batch_size):
        encoding = tokenize(tokenizer, [texts[position] for position in positions], model.max_length(tokenizer))
        embeddings[positions] = model.embed(**model_inputs(model, encoding)).float().cpu()
    model.train(was_training)
    if model.config.normalize_embeddings if normalize is None else normalize:
        embeddings = F.normalize(embeddings, dim=-1)
    return embeddings.numpy()


class MultiTaskPipeline(Pipeline):
    """`pipeline("multitask", model=folder, trust_remote_code=True)`: every head's answer from one encoder pass.

    Call it with a text, a pair `(text, text)` or a list of these; `tasks=[...]`, `top_k`, `aggregation_strategy`,
    `bf16` and the stock `batch_size` are optional. The answer for an item is what `MultiTaskModel.predict` gives, the
    embedding as a list of floats so that it can be written as JSON.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        unknown = set(options) - {"tasks", "aggregation_strategy", "top_k", "bf16"}
        if unknown:
            raise ValueError(
                f"Unknown options {sorted(unknown)}; there are tasks, aggregation_strategy, top_k and bf16."
            )
        return {}, options, {}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer a text, a pair, or a list of these; nothing in, nothing out (the stock pipeline raises IndexError)."""
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, *args, **kwargs)

    def preprocess(self, text: Text) -> dict[str, Any]:
        """A pair given as a list is taken as a pair; tokenising waits for the model call, which knows the tasks."""
        return {"text": tuple(text) if isinstance(text, list) else text}

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        texts = inputs["text"] if isinstance(inputs["text"], list) else [inputs["text"]]  # a list: batch_size > 1
        answers = predict(self.model, self.tokenizer, texts, batch_size=len(texts), **options)
        return {"answer": answers if isinstance(inputs["text"], list) else answers[0]}

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """The answer with plain lists in place of arrays."""
        answer = outputs["answer"]
        return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in answer.items()}
