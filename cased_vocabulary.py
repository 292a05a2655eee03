"""Tell upper case from lower in an uncased WordPiece vocabulary, without a token more.

An uncased tokenizer lowers every text, and names lose what sets them apart. Here every token of its vocabulary gets
variants beside it, Capitalised and UPPER, each with an id of its own, and lowering is switched off: "London" is one
token as "london" was. The model reads a variant as the vector of its base token plus the vector of its case
(`modeling_multitask.CasedEmbedding`), zero before training, so that nothing that the encoder knows is lost. All of it
stands in `tokenizer.json`: every reader of the saved folder sees the case. It trains nothing and changes no other
tokenizer.

    tokenizer, bases, cases = cased_tokenizer(tokenizer)
"""

import json
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerFast

PREFIX = "##"
LOWER, CAPITALISED, UPPER = range(3)
"""Cases of a token; lower is also that of digits and of scripts without case."""


def case_variants(token: str) -> Iterator[tuple[str, int]]:
    """The Capitalised and UPPER form of a lower-case token, where they differ from it and are of its length."""
    prefix = PREFIX if token.startswith(PREFIX) else ""
    body = token.removeprefix(PREFIX)
    if not body.isalnum() or body != body.lower():
        return
    for variant, case in ((body[0].upper() + body[1:], CAPITALISED), (body.upper(), UPPER)):
        if variant != body and len(variant) == len(body) and unicodedata.normalize("NFD", variant) == variant:
            yield prefix + variant, case


def rare_capitals(vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Capital letters that no variant covers (upper and lower case are not one to one), with their base tokens."""
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if letter != letter.lower():
            for token in (letter, PREFIX + letter):
                if token.lower() in vocabulary:
                    yield token, token.lower()


def cased_vocabulary(vocabulary: dict[str, int]) -> tuple[dict[str, int], list[int], list[int]]:
    """A vocabulary with case variants behind its own tokens.

    Returns:
        Token -> id; the base token's id of every id; the case of every id (`LOWER`, `CAPITALISED` or `UPPER`).
    """
    cased = dict(vocabulary)
    bases, cases = list(range(len(vocabulary))), [LOWER] * len(vocabulary)
    variants = [(variant, token, case) for token in vocabulary for variant, case in case_variants(token)]
    variants += [(variant, token, CAPITALISED) for variant, token in rare_capitals(vocabulary)]
    for variant, token, case in variants:
        if variant not in cased:
            cased[variant] = len(cased)
            bases.append(vocabulary[token])
            cases.append(case)
    return cased, bases, cases


def check_uncased(tokenizer: Any) -> dict[str, Any]:
    """Return the state of an uncased WordPiece tokenizer (`tokenizer.json` as a dict), or raise ValueError.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else {}
    model, normalizer = state.get("model") or {}, state.get("normalizer") or {}
    if model.get("type") != "WordPiece":
        problem = f"it is a {model.get('type', 'slow')} tokenizer"
    elif normalizer.get("type") != "BertNormalizer" or not normalizer.get("lowercase"):
        problem = "it lowers nothing, so that it reads case already"
    else:
        return state
    raise ValueError(
        f"Only an uncased WordPiece tokenizer (BERT's) can be taught case; {type(tokenizer).__name__} cannot: "
        f"{problem}. Leave read_case off."
    )


def cased_tokenizer(tokenizer: Any) -> tuple[PreTrainedTokenizerFast, list[int], list[int]]:
    """An uncased WordPiece tokenizer that keeps case; a text in lower case gets the ids that it had.

    Returns:
        The tokenizer; the base token's id of every id; the case of every id. See `cased_vocabulary`.

    Raises:
        ValueError: for a tokenizer of another kind.
    """
    state = check_uncased(tokenizer)
    own = dict(sorted(state["model"]["vocab"].items(), key=lambda item: item[1]))
    state["model"]["vocab"], bases, cases = cased_vocabulary(own)
    state["normalizer"] |= {"lowercase": False, "strip_accents": state["normalizer"]["strip_accents"] is not False}
    state["truncation"] = state["padding"] = None
    cased = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        **tokenizer.special_tokens_map,
    )
    return cased, bases, cases
