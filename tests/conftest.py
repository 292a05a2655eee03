"""What every test finds: no network, a cache of its own, and the tiny encoders, tokenizers and tasks of `tiny_models`.

The environment is set before anything of Hugging Face is imported, because it is read at import; processes that a test
starts inherit it. Fixtures that are shared for a session must not be changed: take a `copy.deepcopy` to train one.
"""

import atexit
import copy
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CACHE = tempfile.mkdtemp(prefix="multitask-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["HF_HOME"] = CACHE  # neither the user's cached models nor modules saved by an earlier run
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from tiny_models import ENCODER_FAMILIES, TINY_TASKS, tiny_encoder, tiny_tokenizer  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402

import pipeline_multitask  # noqa: E402
from configuration_multitask import MultiTaskConfig  # noqa: E402
from modeling_multitask import MultiTaskModel  # noqa: E402
from serving.engine import Engine  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder with the sources."""
    return REPOSITORY


@pytest.fixture(scope="session")
def encoder() -> PreTrainedModel:
    """A tiny BERT in evaluation mode, shared: do not train it."""
    return tiny_encoder("bert")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the tiny BERT, shared: do not change it."""
    return tiny_tokenizer("bert")


@pytest.fixture(scope="session", params=ENCODER_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each encoder family in turn."""
    return request.param


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a family to a folder with its tiny encoder and tokenizer, as `save_pretrained` writes them."""
    folders: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            tiny_encoder(family).save_pretrained(folders[family])
            tiny_tokenizer(family).save_pretrained(folders[family])
        return folders[family]

    return folder_of


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with its tokenizer: a tiny BERT, every kind of task and a `joint` one, heads drawn wide."""
    folder = tmp_path_factory.mktemp("model")
    joint = {"kind": "text-classification", "labels": ["no", "yes"], "text_pair": True, "head": "mlp"}
    tasks = copy.deepcopy(TINY_TASKS) | {"joint": joint}
    encoder = tiny_encoder("bert")
    config = MultiTaskConfig(encoder_config=encoder.config, tasks=tasks, projection_dim=24, normalize_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MultiTaskModel(config, encoder=encoder)
        for parameter in model.heads.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[Engine]:
    """The model of `model_folder`, in float32 so that joined and single answers agree."""
    engine = Engine(str(model_folder), bf16=False)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest, tmp_path_factory, encoder_folder: Callable[[str], Path]) -> Path:
    """The file of the module's own `RECIPE`, its `{encoder}` filled in with the tiny BERT."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(request.module.RECIPE.format(encoder=encoder_folder("bert")))
    return path


@pytest.fixture
def tiny_tasks() -> dict[str, dict[str, Any]]:
    """One task of every kind, as `MultiTaskConfig` takes them; a copy for each test."""
    return copy.deepcopy(TINY_TASKS)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of published data sets (`ag_news/train.parquet`, ...); tests marked `real_data` ask for it."""
    folder = os.environ.get("MULTITASK_DATA")
    if not folder:
        pytest.skip("MULTITASK_DATA does not name the folder of the published data sets")
    return Path(folder).resolve(strict=True)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Make this process unable to reach another machine: a test that needs the Internet fails with the address."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        is_local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        if not is_local:
            raise OSError(f"The tests run offline, but something connects to {address}.")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        yield


@pytest.fixture
def float32_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without bfloat16, whose answers can be compared to the last bits."""
    monkeypatch.setattr(pipeline_multitask, "computes_bfloat16", lambda device: False)
