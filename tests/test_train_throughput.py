"""The throughput benchmark compares what it says: every system reads the same rows in as many steps, once each.

Tiny encoders and texts, on the CPU; nothing here looks at a time.
"""

import argparse
import functools
import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from tiny_models import WORDS, tiny_config, tiny_tokenizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModel, BertModel

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import train_throughput as throughput  # noqa: E402

ROWS = 60
BATCH = 4
SYSTEMS = throughput.SYSTEMS | throughput.GPU_SYSTEMS


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """The command silences libraries; other tests read their logs."""
    logger, verbosity = logging.getLogger("modeling_multitask"), transformers.utils.logging.get_verbosity()
    level = logger.level
    yield
    logger.setLevel(level)
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny BERT with dropout."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    AutoModel.from_config(tiny_config("bert", dropout=0.1)).save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ag_news` and `conll2003`: different texts of different lengths."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)

    def words(number: int) -> list[str]:
        return [*generator.choice(WORDS, size=3 + number % 9).tolist(), str(number)]

    topic = {"text": Value("string"), "label": ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])}
    ner = {"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-PER", "I-PER"]))}
    tokens = [words(1000 + number) for number in range(ROWS)]
    rows = {
        "ag_news": ({"text": [" ".join(words(n)) for n in range(ROWS)], "label": [n % 4 for n in range(ROWS)]}, topic),
        "conll2003": ({"tokens": tokens, "ner_tags": [[1] + [0] * (len(row) - 1) for row in tokens]}, ner),
    }
    for name, (columns, features) in rows.items():
        (folder / name).mkdir()
        Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / name / "train.parquet")
    return folder


def options(command: str, data: Path, encoder: str, *further: str) -> list[str]:
    """A command line with few steps."""
    words = [command, "--data_root", str(data), "--encoder", encoder, "--device", "cpu", "--matrix_size", "16"]
    return [*words, "--batch_size", str(BATCH), "--warm_steps", "1", *further]


@pytest.fixture
def given(data: Path, encoder: str) -> argparse.Namespace:
    """The parsed arguments of `compare`: two repeats of four steps."""
    given = throughput.make_parser().parse_args(options("compare", data, encoder, "--steps", "8", "--repeats", "2"))
    given.further = []
    return given


def record(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the encoder reads from now on, with which dropout, and how often an optimizer steps."""
    seen: dict[str, Any] = {"texts": Counter(), "dropout": set(), "steps": 0}
    forward = BertModel.forward

    @functools.wraps(forward)
    def read(self: BertModel, input_ids: Any = None, attention_mask: Any = None, **inputs: Any) -> Any:
        if self.training:  # an opened encoder is tried once before
            rows = zip(input_ids, attention_mask.bool(), strict=True)
            seen["texts"].update(tuple(ids[mask].tolist()) for ids, mask in rows)
            seen["dropout"] |= {module.p for module in self.modules() if isinstance(module, torch.nn.Dropout)}
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **inputs)

    monkeypatch.setattr(BertModel, "forward", read)
    return seen


def run(system: str, bench: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Any]:
    """Train with a system; what was recorded, and the meter."""
    meter = throughput.Meter(torch.device("cpu"))
    with monkeypatch.context() as patch:
        seen = record(patch)

        def count(*args: Any) -> None:
            seen["steps"] += 1

        handle = register_optimizer_step_post_hook(count)
        SYSTEMS[system](bench, rows, meter)
        handle.remove()
    return seen, meter


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_reads_each_row_of_the_chunk_once_in_as_many_steps_as_the_others(
    system: str, given: argparse.Namespace, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, (_, chunk, _) = throughput.prepare(given, encoder, str(tmp_path))
    seen, meter = run(system, bench, chunk, monkeypatch)
    texts = Counter(tuple(ids) for features in chunk.values() for ids in features["input_ids"])
    assert seen["texts"] == texts and len(texts) == 4 * BATCH
    assert seen["steps"] == 4
    assert seen["dropout"] == {0.1}
    meter.check(system, 4 * BATCH)
    assert meter.seconds > 0


def test_the_classic_loop_pads_every_text_and_grouping_by_length_pads_least(
    given: argparse.Namespace, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given.steps = 16
    bench, (_, chunk, _) = throughput.prepare(given, encoder, str(tmp_path))
    places = {name: run(name, bench, chunk, monkeypatch)[1].places for name in throughput.SYSTEMS}
    assert places["classic_loop"] == 8 * BATCH * throughput.MAX_LENGTH
    lengths = [np.sort(features["length"])[::-1].reshape(-1, BATCH) for features in chunk.values()]
    assert places["two_tuned_trainers"] == sum(int(batches.max(axis=1).sum()) * BATCH for batches in lengths)
    assert places["two_tuned_trainers"] < places["two_trainers"] < places["classic_loop"]
    assert places["ours"] < places["two_trainers"]


def test_length_groups_are_those_of_a_long_run_of_the_stock_sampler() -> None:
    """A window of 50 batches is sorted as a whole, longest first; the stock sampler would cut it in four."""
    lengths = np.random.default_rng(0).permutation(np.arange(50 * BATCH))
    grouped = throughput.group_by_length(Dataset.from_dict({"length": lengths}), BATCH)
    assert grouped["length"][:] == sorted(lengths.tolist(), reverse=True)


def test_chunks_have_the_promised_rows_of_each_task_and_share_none(
    given: argparse.Namespace, encoder: str, tmp_path: Path
) -> None:
    _, chunks = throughput.prepare(given, encoder, str(tmp_path))
    assert [[len(features) for features in chunk.values()] for chunk in chunks] == [[2, 2], [8, 8], [8, 8]]
    for name in throughput.TASKS:
        numbers = [row for chunk in chunks for row in chunk[name]["row"]]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("argument", "value"), [("steps", 6), ("batch_size", 3), ("repeats", 3)])
def test_steps_that_cannot_be_shared_out_are_refused(
    argument: str, value: int, given: argparse.Namespace, encoder: str, tmp_path: Path
) -> None:
    setattr(given, argument, value)
    with pytest.raises(ValueError, match=r"multiple of 2 x --repeats and --batch_size even"):
        throughput.prepare(given, encoder, str(tmp_path))


def test_too_few_rows_are_refused_with_their_number(given: argparse.Namespace, encoder: str, tmp_path: Path) -> None:
    given.steps = 40
    with pytest.raises(ValueError, match=r"need 82 training rows of each task; there are .*'ner': 54"):
        throughput.prepare(given, encoder, str(tmp_path))


def test_a_training_that_skips_rows_or_diverges_has_no_time() -> None:
    meter = throughput.Meter(torch.device("cpu"))
    meter.rows, meter.losses = 8, [torch.tensor(1.0)]
    meter.check("ours", 8)
    with pytest.raises(RuntimeError, match="ours read 8, and its losses were finite"):
        meter.check("ours", 9)
    meter.losses.append(torch.tensor(float("nan")))
    with pytest.raises(RuntimeError, match="losses were not finite"):
        meter.check("ours", 8)


def test_a_ratio_is_the_median_of_the_ratios_within_repeats() -> None:
    """Not the ratio of the medians, which would be 2 here."""
    rates = {"slow": [1.0, 2.0, 4.0], "ours": [3.0, 4.0, 20.0]}
    assert throughput.ratios(rates, of="ours") == {"slow": 3.0, "ours": 1.0}


def test_a_point_keeps_the_median_of_its_bursts() -> None:
    bursts = [{"rows_per_second": rate, "peak_mib": 10 * rate} for rate in (3.0, 1.0, 2.0)]
    found = throughput.summary({"tasks": 2}, bursts)
    assert found == {"tasks": 2, "rows_per_second": 2.0, "peak_mib": 20.0, "rates": [3.0, 1.0, 2.0]}


def test_the_parameters_counted_are_those_behind_the_embeddings(encoder: str) -> None:
    model = AutoModel.from_pretrained(encoder)
    facts = throughput.encoder_facts(encoder)
    assert facts["parameters"] == sum(value.numel() for value in model.encoder.parameters())
    assert facts["layers"] == 2 and facts["hidden"] == 32


def check_systems(found: dict[str, Any], systems: list[str]) -> None:
    """What `measure` writes is complete, and its figures agree with each other."""
    assert sorted(found["systems"]) == sorted(systems)
    assert found["matrix_gflops"]["bf16"] > 0 and found["matrix_gflops"]["fp32"] > 0
    for figures in found["systems"].values():
        low, median, high = min(figures["rows_per_second"]), figures["median"], max(figures["rows_per_second"])
        assert low == median == high  # of one repeat
        assert 0 <= figures["padding"] < 1 and np.isfinite(figures["last_loss"])
        assert 0 < figures["matrix_rate_share"] < figures["mfu"]
        assert figures["tokens_per_second"] > figures["median"]
    assert found["systems"]["ours"]["times_faster"]["ours"] == 1.0


def test_compare_writes_the_figures_and_no_folder(data: Path, encoder: str, tmp_path: Path, capsys) -> None:
    output = tmp_path / "results" / "found.json"
    words = options("compare", data, encoder, "--steps", "2", "--repeats", "1", "--systems", "two_tuned_trainers")
    throughput.main([*words, "--output", str(output)])
    assert "ours" in capsys.readouterr().out
    report = json.loads(output.read_text())
    check_systems(report, ["ours", "two_tuned_trainers"])
    assert report["rows_a_repeat"] == 2 * BATCH and report["encoder"]["hidden_dropout"] == 0.1
    assert report["settings"]["batch_size"] == BATCH and report["hardware"]["device"] == "cpu"
    assert not any(str(folder) in output.read_text() for folder in (data, Path(encoder), tmp_path))
    assert "--data_root DATA" in report["command"]


def test_what_follows_the_dashes_reaches_ours(
    data: Path, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    monkeypatch.setitem(throughput.SYSTEMS, "ours", lambda bench, rows, meter: rates.append(bench.args.learning_rate))
    words = [*options("compare", data, encoder, "--steps", "6", "--systems", "ours"), "--", "--learning_rate", "0.5"]
    with pytest.raises(RuntimeError):  # nothing was trained
        throughput.main(words)
    assert rates == [0.5]


@pytest.mark.slow
def test_the_gpu_command_runs_at_tiny_sizes_on_the_cpu(data: Path, encoder: str, tmp_path: Path) -> None:
    words = options("gpu", data, encoder, "--steps", "2", "--repeats", "1", "--sizes", "tiny")
    throughput.main([*words, "--output", str(tmp_path / "gpu.json")])
    report = json.loads((tmp_path / "gpu.json").read_text())
    check_systems(report["sizes"]["tiny"], list(throughput.GPU_SYSTEMS))


@pytest.mark.parametrize("point", [(1, 8, 4), (3, 16, 4), (2, 128, 2)])
def test_a_burst_reads_texts_of_its_length_on_all_its_tasks(
    point: tuple[int, int, int], encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = record(monkeypatch)
    tasks, tokens, batch = point
    found = throughput.burst(encoder, "cpu", 3, dict(zip(throughput.POINT, point, strict=True)), [])
    assert {len(text) for text in seen["texts"]} == {tokens}
    assert len(seen["texts"]) == 3 * batch
    assert found["rows_per_second"] > 0 and found["peak_mib"] >= found["start_mib"] > 0
    assert len(throughput.synthetic_rows(tasks, tokens, 3 * batch, 100)) == tasks


def test_growth_is_drawn_with_a_panel_for_each_axis_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [throughput.POINT | {"rows_per_second": 9.0, "peak_mib": 700.0}]
    path = throughput.plot_growth(dict.fromkeys(throughput.POINT, points), tmp_path / "new" / "growth.png")
    assert path is not None and path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_growth_writes_each_point_once_an_axis_and_a_plot(encoder: str, tmp_path: Path) -> None:
    """In processes of their own; importing the file there prints nothing before the figures."""
    words = [
        "growth",
        "--encoder",
        encoder,
        "--steps",
        "2",
        "--repeats",
        "1",
        "--output",
        str(tmp_path / "growth.json"),
    ]
    words += ["--tasks", "2", "3", "--tokens", "32", "--batch", "32"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "train_throughput.py"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    axes = json.loads((tmp_path / "growth.json").read_text())["axes"]
    assert [point["tasks"] for point in axes["tasks"]] == [2, 3]
    assert axes["tokens"] == axes["batch"] == axes["tasks"][:1]
    assert done.stdout.count("rows_per_second") == 2
    assert (tmp_path / "growth.png").exists()


@pytest.mark.slow
def test_importing_the_benchmark_loads_no_plots_and_says_nothing() -> None:
    code = "import sys, train_throughput; sys.exit('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
