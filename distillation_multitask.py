"""Teachers: models of one task each, whose answers to the training rows a multi-task model learns beside the labels.

Their logits are computed once, before training, and stored beside the features (memory-mapped by `datasets`, under the
teacher's weights as key); in training no teacher is in memory. `TeacherAnnealing` moves the weight from teachers to
labels step by step (BAM!, Clark et al. 2019, section 3, https://arxiv.org/abs/1907.04829). The loss itself is
`losses_multitask.taught_losses`; this module trains nothing.

    digests = add_teachers(features, loaded, {"topic": "outputs/topic"}, tokenizer, max_length=256)
    Trainer(model=model, train_dataset=TaskSamplingDataset(features.train, ...), callbacks=[TeacherAnnealing()], ...)

A word's tags are taken from the teacher's logits at its first sub-word and given to all of its tokens here, as labels
are: on the second and later ones the probability of B-X goes to I-X.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from configuration_multitask import (
    FEATURE_EXTRACTION,
    REGRESSION,
    SENTENCE_SIMILARITY,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    MultiTaskConfig,
)
from encoder_source import check_vocabulary, find_encoder
from input_errors import explain_loading
from modeling_multitask import MultiTaskModel, first_position, position_table, refuse_missing_weights
from saved_model import open_model
from task_data import (
    LoadedTask,
    RowTokenizer,
    join_words,
    row_numbers,
    texts_of,
    tokenizer_key,
    words_of_tokens,
)
from task_features import EmbeddingTeacher, TaskFeatures, aligned_groups

CODE_DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
"""Part of the cache keys, as in `task_data`."""
BATCH_SIZE = 64
"""Texts, of like length, that a teacher reads at a time."""
COLUMN = "teacher_logits"
OWN_TEACHER = "the encoder itself, as it is before training"
AUTO_CLASSES = {
    TEXT_CLASSIFICATION: AutoModelForSequenceClassification,
    TOKEN_CLASSIFICATION: AutoModelForTokenClassification,
}


class TeacherAnnealing(TrainerCallback):
    """Tells the model before each step which part of training is over: the weight of its teachers depends on it.

    Step k of n (from 0) sees k / n, on every rank and in each of its micro-batches; a resumed run goes on with it.
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Set `model.training_progress`."""
        model.training_progress = state.global_step / state.max_steps


# ---------------------------------------------------------------------------------------------------------------------
# Opening teachers


@dataclass
class Teacher:
    """A model that answers for one task, in the order of the task's labels.

    Attributes:
        spec (dict): The task that learns from it, as in `MultiTaskConfig.tasks`.
        model (PreTrainedModel): In evaluation mode.
        tokenizer: Its own.
        max_length (int): Tokens that it reads of a text.
        logits (Callable): The model's inputs -> its logits for the task, classes in its own order.
        head (str): The task that answers, in a model of ours.
        order (list): Position, among the teacher's labels, of each label of the task; None for numbers.
    """

    spec: dict[str, Any]
    model: Any
    tokenizer: Any
    max_length: int
    logits: Callable[..., Tensor]
    head: str
    order: list[int] | None

    def digest(self) -> str:
        """A hash of its weights, its head and the order of its labels."""
        return digest_of(self.model, self.head, self.order)

    def answer(self, batch: Mapping[str, list[Any]], bf16: bool) -> list[np.ndarray]:
        """Its logits for rows in canonical form, float32: (classes,), (words, tags) or ().

        A word that it does not read, behind its `max_length` or of no token, has NaN.
        """
        texts = texts_of(dict(batch))
        order = np.argsort([len(text) for text in texts], kind="stable")
        answers: list[Any] = [None] * len(texts)
        for start in range(0, len(order), BATCH_SIZE):
            places = order[start : start + BATCH_SIZE].tolist()
            some = {column: [values[place] for place in places] for column, values in batch.items()}
            for place, answer in zip(places, self._answer_together(some, bf16), strict=True):
                answers[place] = answer
        return answers

    @torch.no_grad()
    def _answer_together(self, batch: dict[str, list[Any]], bf16: bool) -> list[np.ndarray]:
        is_tags, is_separate = (self.spec["kind"] == kind for kind in (TOKEN_CLASSIFICATION, SENTENCE_SIMILARITY))
        inputs = self._encode(texts_of(batch), batch["text_pair"] if self.spec.get("text_pair") else None, is_tags)
        offsets = inputs.pop("offset_mapping", None)
        if is_separate:
            seconds = self._encode(batch["text_pair"], None, False)
            inputs |= {f"pair_{name}": seconds[name] for name in ("input_ids", "attention_mask")}
            inputs["pair_items"] = torch.arange(len(batch["text_pair"]))
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = self.logits(**{name: value.to(device) for name, value in inputs.items()})
        logits = logits.float().cpu()
        if self.order is not None:
            logits = logits[..., self.order]
        if not is_tags:
            return list(logits.numpy() if self.order is not None else logits.flatten().numpy())
        return [
            logits_of_words(words, of_row.tolist(), values.numpy())
            for words, of_row, values in zip(batch["tokens"], offsets, logits, strict=True)
        ]

    def _encode(self, texts: list[str], pairs: list[str] | None, with_offsets: bool) -> dict[str, Any]:
        options = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        return dict(self.tokenizer(texts, pairs, return_offsets_mapping=with_offsets, **options))


def shown(source: str) -> str:
    """A teacher's name for notes, which end in the card: of a folder its own name, not where it lies here."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def digest_of(model: nn.Module, *more: Any) -> str:
    """A hash of a model's weights, and of what else decides its answers."""
    sha = hashlib.sha256(repr(more).encode())
    for name, value in sorted(model.state_dict().items()):
        sha.update(name.encode() + value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def open_teacher(task: str, spec: dict[str, Any], source: str, offline: bool = False) -> Teacher:
    """The teacher of a task, checked to answer the same question with the same labels.

    A model of ours is opened by our own classes, any other by those of transformers: no code of a folder runs, and
    weights are safetensors. Of ours, the head of the task's name answers, else that of `task_name`.

    Args:
        task (str): For messages, and to find the head.
        spec (dict): Of the task that learns.
        source (str): Folder or Hub id.
        offline (bool): Never ask the Hub.

    Raises:
        ValueError: for what cannot be opened, or answers something else: both lists of labels are said.
    """
    with explain_loading(f"The teacher {source!r} of task {task!r}"):
        kind = MultiTaskConfig.get_config_dict(source, local_files_only=offline)[0].get("model_type")
    open_kind = open_ours if kind == MultiTaskConfig.model_type else open_classifier
    teacher = open_kind(task, spec, source, offline)
    teacher.model.eval()
    check_vocabulary(source, teacher.tokenizer, teacher.model.get_input_embeddings())
    if spec["kind"] == TOKEN_CLASSIFICATION and not teacher.tokenizer.is_fast:
        raise ValueError(
            f"Task {task!r}: a teacher's tags are brought to words by character offsets, which only fast tokenizers "
            f"tell; that of {source} is none. Choose a teacher with a tokenizer.json."
        )
    return teacher


def open_ours(task: str, spec: dict[str, Any], source: str, offline: bool) -> Teacher:
    """A multi-task model of ours as the teacher of one task."""
    model, tokenizer = open_model(source, offline)
    tasks = model.config.tasks
    head = task if task in tasks else model.config.task_name or next(iter(tasks), "")
    other = tasks.get(head, {})
    for field in ("kind", "problem_type", "text_pair"):
        if other.get(field) != spec.get(field):
            raise ValueError(
                f"Task {task!r} ({spec['kind']}) needs a teacher of the same task; in {source} {head!r} has {field} "
                f"{other.get(field)!r}, not {spec.get(field)!r} (its tasks: {', '.join(tasks) or 'none'}). Name "
                "another distill_from, or remove it."
            )
    order = label_order(task, spec, other.get("labels", []), source)

    def logits(**inputs: Tensor) -> Tensor:
        return model(**inputs, tasks=[head]).logits[head]

    return Teacher(spec, model, tokenizer, model.max_length(tokenizer), logits, head, order)


def open_classifier(task: str, spec: dict[str, Any], source: str, offline: bool) -> Teacher:
    """A classifier of transformers as the teacher of one task."""
    if spec["kind"] not in AUTO_CLASSES:
        raise ValueError(
            f"Task {task!r} ({spec['kind']}) can have a model of this project as its teacher; {source} is none. Name "
            "another distill_from, or remove it."
        )
    with explain_loading(f"The teacher {source!r} of task {task!r}"):
        config = AutoConfig.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
        order = label_order(task, spec, [config.id2label[index] for index in sorted(config.id2label)], source)
        options = {"local_files_only": offline, "trust_remote_code": False}
        model, report = AUTO_CLASSES[spec["kind"]].from_pretrained(
            source, use_safetensors=True, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    refuse_missing_weights(source, report["missing_keys"])
    if spec["kind"] == TEXT_CLASSIFICATION and config.problem_type not in (None, spec["problem_type"]):
        raise ValueError(
            f"Task {task!r} is {spec['problem_type']}, its teacher {source} is {config.problem_type}: they must be the "
            "same. Name another distill_from, or remove it."
        )
    table = position_table(model.base_model)
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    limits += [table.num_embeddings - first_position(table)] if table is not None else []

    def logits(**inputs: Tensor) -> Tensor:
        return model(**inputs).logits

    return Teacher(spec, model, tokenizer, min(limit for limit in limits if limit), logits, "", order)


def label_order(task: str, spec: dict[str, Any], labels: Sequence[str], source: str) -> list[int] | None:
    """Position among a teacher's labels of each label of the task; None where both answer with one number.

    Raises:
        ValueError: unless the names are the same, in any order.
    """
    if spec["kind"] == SENTENCE_SIMILARITY or (spec.get("problem_type") == REGRESSION and len(labels) == 1):
        return None
    if sorted(labels) != sorted(spec["labels"]):
        raise ValueError(
            f"Task {task!r}: a teacher has the task's labels, in any order; the task has {', '.join(spec['labels'])}, "
            f"{source} has {', '.join(labels)}. Rename them (`labels:`), name another distill_from, or remove it."
        )
    return [list(labels).index(label) for label in spec["labels"]]


def embedding_teachers(
    loaded: dict[str, LoadedTask],
    sources: Mapping[str, str],
    model: MultiTaskModel,
    tokenizer: Any,
    offline: bool = False,
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> dict[str, EmbeddingTeacher]:
    """The teacher of each feature-extraction task whose data has no embeddings: the model itself, or its source's.

    Args:
        loaded (dict): The tasks' rows.
        sources (Mapping): Task -> folder or Hub id, a model of ours or a sentence encoder; other kinds are passed over.
        model (MultiTaskModel): That learns, as it is before training.
        tokenizer: Its own.
        offline (bool): Never ask the Hub.
        device: Where teachers compute.
        bf16 (bool): Whether they multiply in bfloat16.

    Raises:
        ValueError: for a teacher that cannot be opened or has embeddings of another size, or embeddings in the data.
    """
    own = EmbeddingTeacher(OWN_TEACHER, Embedder(model, tokenizer, device, bf16))
    teachers: dict[str, EmbeddingTeacher] = {}
    opened: dict[str, EmbeddingTeacher] = {}
    for name, task in loaded.items():
        if task.spec["kind"] != FEATURE_EXTRACTION:
            continue
        source = sources.get(name)
        if "label" not in next(iter(task.splits.values())).column_names:
            if source is not None and source not in opened:
                embed = Embedder(*open_embedder(name, source, model.config.embedding_size, offline), device, bf16)
                opened[source] = EmbeddingTeacher(shown(source), embed, digest_of(embed.model))
            teachers[name] = own if source is None else opened[source]
        elif source is not None:
            raise ValueError(
                f"Task {name!r} learns the embeddings that its data holds, or those of a teacher; it has both. Remove "
                f"distill_from ({source}), or `label` of its columns."
            )
    return teachers


@dataclass
class Embedder:
    """Texts -> the embeddings of a model, float32, computed on a device; between calls the model stays where it was.

    Attributes:
        model (MultiTaskModel): Whose embeddings.
        tokenizer: Its own.
        device: Where it computes.
        bf16 (bool): Whether it multiplies in bfloat16.
    """

    model: MultiTaskModel
    tokenizer: Any
    device: torch.device | str
    bf16: bool

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Shape (texts, embedding_size)."""
        home, device = self.model.device, torch.device(self.device)
        self.model.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            embeddings = self.model.encode(texts, self.tokenizer)
        self.model.to(home)
        return embeddings


def open_embedder(task: str, source: str, size: int, offline: bool) -> tuple[MultiTaskModel, Any]:
    """A model of ours or any sentence encoder that can teach embeddings of a size, and its tokenizer."""
    with explain_loading(f"The teacher {source!r} of task {task!r}"):
        folder = find_encoder(source, offline=offline).path
        if MultiTaskConfig.get_config_dict(folder)[0].get("model_type") == MultiTaskConfig.model_type:
            model, tokenizer = open_model(folder, offline=True)
        else:
            model = MultiTaskModel.from_backbone(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            check_vocabulary(source, tokenizer, model.get_input_embeddings())
    if model.config.embedding_size != size:
        raise ValueError(
            f"Task {task!r}: a teacher's embeddings are as large as the model's own, {size} numbers; those of {source} "
            f"are {model.config.embedding_size}. Name another distill_from, or set projection_dim to that size."
        )
    return model, tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# Their answers to the training rows


def add_teachers(
    features: TaskFeatures,
    loaded: dict[str, LoadedTask],
    sources: Mapping[str, str],
    tokenizer: Any,
    max_length: int,
    offline: bool = False,
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> dict[str, str]:
    """Give the training features, in place, a column `teacher_logits` with their teachers' answers; say so in `notes`.

    Args:
        features (TaskFeatures): As `build_features` made them from `loaded`.
        loaded (dict): The tasks' rows.
        sources (Mapping): Task -> its teacher, a folder or Hub id; tasks without one stay as they are.
        tokenizer: Of the model that learns.
        max_length (int): Tokens it reads of a text.
        offline (bool): Never ask the Hub.
        device: Where teachers compute.
        bf16 (bool): Whether they multiply in bfloat16.

    Returns:
        Task -> a hash of its teacher's weights.

    Raises:
        ValueError: for a teacher that cannot be opened or does not fit, or a task without training rows.
    """
    digests = {}
    for names in aligned_groups(loaded):
        group = "+".join(names)
        taught = [name for name in names if name in sources]
        if not taught:
            continue
        if group not in features.train:
            raise ValueError(f"Task {taught[0]!r} has no training rows to learn on; remove its distill_from.")
        teachers = {name: open_teacher(name, loaded[name].spec, sources[name], offline) for name in taught}
        for name, teacher in teachers.items():
            digests[name] = teacher.digest()
            teacher.model.to(device)
            features.notes.append(f"Task {name!r} learns from the answers of {shown(sources[name])} beside its labels.")
        rows, own = loaded[taught[0]].splits["train"], features.train[group]
        kept = np.flatnonzero(np.isin(row_numbers(rows), row_numbers(own)))  # the others have no label at all
        reader = AnswerReader(teachers, tokenizer, max_length, bf16, rows.column_names)
        answers = reader.ask(rows.select(kept), [digests[name] for name in taught])
        features.train[group] = concatenate_datasets([own, answers], axis=1)
    return digests


class AnswerReader:
    """Asks the teachers of tasks that read the same rows, and brings their tags to the tokens of the model that learns.

    Args:
        teachers (dict): Task -> its teacher.
        tokenizer: Of the model that learns.
        max_length (int): Tokens that it reads of a text.
        bf16 (bool): As for `add_teachers`.
        columns (Sequence): Columns of the rows.
    """

    def __init__(
        self, teachers: dict[str, Teacher], tokenizer: Any, max_length: int, bf16: bool, columns: Sequence[str]
    ):
        self.teachers, self.bf16 = teachers, bf16
        specs = {name: teacher.spec for name, teacher in teachers.items()}
        self.tokenizer = RowTokenizer(specs, tokenizer, max_length, True, columns)

    def ask(self, rows: Dataset, digests: list[str]) -> Dataset:
        """The column `teacher_logits` for rows in canonical form; cached under the rows, tokenizers and weights."""
        types = {name: self.type_of(teacher) for name, teacher in self.teachers.items()}
        readers = [
            (teacher.max_length, tokenizer_key(teacher.tokenizer), teacher.model.config.to_json_string())
            for teacher in self.teachers.values()
        ]
        key = (CODE_DIGEST, rows._fingerprint, self.tokenizer.cache_key, digests, readers, self.bf16)
        return rows.map(
            self.answer_batch,
            batched=True,
            features=Features({COLUMN: types}),
            remove_columns=rows.column_names,
            new_fingerprint=Hasher.hash(key),
            desc=f"Asking the teacher of {' + '.join(self.teachers)}",
        )

    @staticmethod
    def type_of(teacher: Teacher) -> Any:
        """How an answer is stored."""
        number = Value("float32")
        if teacher.spec["kind"] == TOKEN_CLASSIFICATION:
            return List(List(number))
        return number if teacher.order is None else List(number)

    def answer_batch(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """The answers of every teacher to a batch of rows."""
        batch = dict(batch)
        answers = {name: teacher.answer(batch, self.bf16) for name, teacher in self.teachers.items()}
        if self.tokenizer.continuation:
            words = self.words_of_tokens(batch)
            for name, continuation in self.tokenizer.continuation.items():
                answers[name] = [
                    logits_of_tokens(of_row, logits, continuation)
                    for of_row, logits in zip(words, answers[name], strict=True)
                ]
        return {COLUMN: [dict(zip(answers, values, strict=True)) for values in zip(*answers.values(), strict=True)]}

    def words_of_tokens(self, batch: dict[str, list[Any]]) -> list[list[int | None]]:
        """The word of each token, as the model that learns reads them."""
        encoded, _, _ = self.tokenizer.encode(texts_of(batch))
        texts = [join_words(words) for words in batch["tokens"]]
        return [words_of_tokens(*text, of) for text, of in zip(texts, encoded["offset_mapping"], strict=True)]


def logits_of_words(words: Sequence[str], offsets: Sequence[tuple[int, int]], logits: np.ndarray) -> np.ndarray:
    """A teacher's logits at the first token of each word; NaN for a word without one.

    Shapes: offsets (tokens, 2) in the joined words, logits (tokens, tags) -> (words, tags).
    """
    found = np.full((len(words), logits.shape[1]), np.nan, np.float32)
    of_tokens = words_of_tokens(*join_words(words), offsets)
    for token in reversed(range(len(of_tokens))):
        word = of_tokens[token]
        if word is not None:
            found[word] = logits[token]
    return found


def logits_of_tokens(words: Sequence[int | None], logits: np.ndarray, continuation: Sequence[int]) -> np.ndarray:
    """A word's logits on its first token; on later ones the probability of each tag is that of `continuation[tag]`.

    Args:
        words (Sequence): The word of each token, None for special ones.
        logits (np.ndarray): Shape (words, tags).
        continuation (Sequence): For each tag that of later tokens, as `task_data.continuation_tags` gives it.

    Returns:
        Shape (tokens, tags), float32; NaN on special tokens, -inf where a tag cannot stand.

    Example: words [None, 0, 0], probabilities of O, B-X and I-X 0.5, 0.3 and 0.2, continuation [0, 2, 2]: NaN; 0.5, 0.3
    and 0.2; 0.5, 0 and 0.5.
    """
    later = np.full_like(logits, -np.inf)
    np.logaddexp.at(later.T, np.asarray(continuation), logits.T)
    found = np.full((len(words), logits.shape[1]), np.nan, np.float32)
    before = None
    for token, word in enumerate(words):
        if word is not None:
            found[token] = (later if word == before else logits)[word]
        before = word
    return found
