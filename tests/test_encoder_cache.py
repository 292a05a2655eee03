"""Training from a frozen encoder's stored outputs is training with the encoder, and a store is never another run's."""

import json
import pickle
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_ranks import largest_difference as difference_of_folders
from test_ranks import on_ranks
from test_trainer_multitask import StopAt, arguments, largest_difference, new_model, new_trainer, rows
from tiny_models import TINY_TASKS, tiny_tokenizer

import train_hf
from cpu_training import use_bfloat16_states, use_fast_dropout
from data_collator import MultiTaskDataCollator
from encoder_cache import EncoderCache, StoredRows
from task_sampler import TaskSamplingDataset

CPU = torch.device("cpu")
R_DROP = {"loss": {"r_drop": 0.5}}
TASKS = {
    **TINY_TASKS,
    "ner": TINY_TASKS["ner"] | R_DROP,
    "similarity": TINY_TASKS["similarity"] | {"pooling": "max"},
    "topic": TINY_TASKS["topic"] | R_DROP | {"head": "mlp"},
}
"""Every kind of task, two of them with twins, and two poolings."""

RECIPE = """
encoder: {encoder}
projection_dim: 16
head_dropout: 0.0
freeze: [encoder]
cache_encoder: true
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 24, validation: 9, test: 9}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 24, validation: 9, test: 9}}
  similarity:
    dataset: builtin:similarity
    columns: {{text: sentence1, text_pair: sentence2, label: score}}
    max_rows: {{train: 24, validation: 9, test: 9}}
num_train_epochs: 2
per_device_train_batch_size: 8
optim: sgd
learning_rate: 0.05
metric_for_best_model: eval_loss
bf16: false
report_to: none
"""


def frozen_model(seed=0, **config):
    """A tiny model with dropout, whose heads and projection train."""
    model = new_model(TASKS, dropout=0.1, seed=seed, **{"projection_dim": 32} | config)
    model.freeze("encoder")
    return model


def datasets(size, seed=0):
    """Arrow features of every task; `tags` and `topic` are aligned: an item has the labels of both."""
    found = {name: rows(name, spec, size, seed) for name, spec in TASKS.items()}
    topics = [row["labels"] for row in found.pop("topic")]
    aligned = [row | {"labels": row["labels"] | label} for row, label in zip(found.pop("tags"), topics, strict=True)]
    return {name: Dataset.from_list(one) for name, one in [*found.items(), ("tags+topic", aligned)]}


def collator():
    return MultiTaskDataCollator(tiny_tokenizer("bert"), TASKS)


def cache_of(folder, model, **splits):
    return EncoderCache(str(folder), model, splits, None, CPU)


def run(folder, cached, callbacks=(), resume=None, seed=0, batches=(8, 1), **options):
    """Three epochs of 4 steps with validation, read from a store or not; the trainer and how often the encoder ran."""
    model = frozen_model(seed)
    sampling = TaskSamplingDataset(datasets(6), rows_per_step=8, num_epochs=3)
    validation = {name: Dataset.from_list(rows(name, spec, 5, seed=1)) for name, spec in TASKS.items()}
    if cached:
        cache = cache_of(folder / "stores", model, train=datasets(6), validation=validation)
        cache.compute(model, collator())
        sampling.read_from(cache.rows("train"))
        validation = cache.rows("validation")
    passes = []
    model.encoder.register_forward_pre_hook(lambda *args: passes.append(1))
    sizes = {"per_device_train_batch_size": batches[0], "gradient_accumulation_steps": batches[1]}
    args = arguments(folder, num_train_epochs=3, eval_strategy="epoch", **sizes, **options)
    trainer = new_trainer(args, model, sampling, validation=validation, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, len(passes)


def evaluations(trainer):
    return [entry[key] for entry in trainer.state.log_history for key in sorted(entry) if key.endswith("_loss")]


@pytest.mark.parametrize("batches", [(8, 1), pytest.param((2, 4), marks=pytest.mark.slow)])
def test_training_from_the_store_makes_the_weights_of_training_with_the_encoder(tmp_path, batches):
    """Every kind of task, aligned rows, twins, two poolings, dropout in the heads; also the losses of validation."""
    (with_encoder, passes), (from_store, none) = (run(tmp_path, cached, batches=batches) for cached in (False, True))
    assert passes > 12 and none == 0, "the encoder does not run"
    assert largest_difference(with_encoder.model, frozen_model()) > 1e-3
    assert largest_difference(with_encoder.model, from_store.model) < 1e-5
    assert evaluations(from_store) == pytest.approx(evaluations(with_encoder), abs=1e-5)


@pytest.mark.slow
def test_training_resumed_from_the_store_is_unbroken_training(tmp_path):
    """Bit-equal, from the middle of an epoch; the store is found again."""
    options = {"save_strategy": "steps", "save_steps": 7}
    unbroken, _ = run(tmp_path, True, **options)
    run(tmp_path, True, callbacks=[StopAt(7)], **options)
    resumed, _ = run(tmp_path, True, resume=str(tmp_path / "checkpoint-7"), **options)
    assert resumed.state.global_step == unbroken.state.global_step == 12
    assert largest_difference(unbroken.model, resumed.model) == 0.0


def test_a_row_of_the_store_is_what_the_encoder_says_and_no_more_than_its_task_reads(tmp_path):
    model = frozen_model()
    cache = cache_of(tmp_path, model, train=datasets(6))
    cache.compute(model, collator())
    stored, plain = cache.rows("train"), datasets(6)
    expected = {"ner": {"token_states"}, "upos": {"token_states"}}
    expected |= {"similarity": {"pooled_states", "pair_pooled_states", "pair_attention_mask"}}
    for name, of_task in stored.items():
        assert set(of_task[0]) == {"attention_mask", "labels", "row"} | expected.get(name, {"pooled_states"}), name
    with torch.no_grad():
        for row in range(6):
            batch = collator()([{"input_ids": plain["ner"][row]["input_ids"]}])
            states = model.run_encoder(**batch).last_hidden_state[0]
            assert np.abs(stored["ner"][row]["token_states"] - states.numpy()).max() < 1e-5
            batch = collator()([{"input_ids": plain["similarity"][row]["pair_input_ids"]}])
            seconds = model.run_encoder(**batch).last_hidden_state[0].amax(0)
            assert np.abs(stored["similarity"][row]["pair_pooled_states"]["max"] - seconds.numpy()).max() < 1e-5


def test_rows_read_at_once_or_by_another_process_are_the_rows_read_one_by_one(tmp_path):
    model = frozen_model()
    cache = cache_of(tmp_path, model, train=datasets(6))
    cache.compute(model, collator())
    for name, stored in cache.rows("train").items():
        one_by_one = [stored[row] for row in (4, 1, 4)]
        sent = pickle.dumps(stored)
        assert len(sent) < 20_000 and b"arrays" not in sent, "the files are mapped anew, not sent"
        for at_once in (stored.__getitems__([4, 1, 4]), pickle.loads(sent).__getitems__([4, 1, 4])):
            for row, other in zip(one_by_one, at_once, strict=True):
                assert str(row) == str(other), name


def test_a_mixed_batch_read_at_once_is_the_batch_read_place_by_place():
    sampling = TaskSamplingDataset(datasets(6), rows_per_step=8)
    assert sampling.__getitems__(list(range(8))) == [sampling[place] for place in range(8)]


# Which store is whose


def folders(cache):
    return {name: store.folder for name, store in cache.stores["train"].items()}


def test_equal_outputs_share_a_store_and_whatever_changes_them_makes_another(tmp_path):
    plain = folders(cache_of(tmp_path, frozen_model(), train=datasets(6)))
    assert len(set(plain.values())) == len(plain)
    assert folders(cache_of(tmp_path, frozen_model(projection_dim=8), train=datasets(6))) == plain, (
        "heads do not matter"
    )
    relabelled = {name: one.map(lambda row: {"row": row["row"] + 1}) for name, one in datasets(6).items()}
    assert folders(cache_of(tmp_path, frozen_model(), train=relabelled)) == plain, "nor does what is not read"
    moved = frozen_model()
    with torch.no_grad():
        moved.encoder.embeddings.LayerNorm.bias[0] += 1e-6
    other_config = frozen_model()
    other_config.config.encoder_config.layer_norm_eps = 1e-3
    cut = {
        name: one.map(lambda row: {"input_ids": row["input_ids"][:4]}, load_from_cache_file=False)
        for name, one in datasets(6).items()
    }
    changed = {
        "weights": cache_of(tmp_path, moved, train=datasets(6)),
        "configuration": cache_of(tmp_path, other_config, train=datasets(6)),
        "texts": cache_of(tmp_path, frozen_model(), train=datasets(6, seed=1)),
        "length": cache_of(tmp_path, frozen_model(), train=cut),
        "order": cache_of(
            tmp_path, frozen_model(), train={n: one.select([*range(5, -1, -1)]) for n, one in datasets(6).items()}
        ),
        "precision": EncoderCache(str(tmp_path), frozen_model(), {"train": datasets(6)}, torch.bfloat16, CPU),
    }
    seen = set(plain.values())
    for what, cache in changed.items():
        found = set(folders(cache).values())
        assert len(found) == len(plain) and not found & seen, what
        seen |= found
    pooled = folders(cache_of(tmp_path, frozen_model(pooling="cls"), train=datasets(6)))
    same = {name for name in plain if pooled[name] == plain[name]}
    assert same == {"ner", "upos", "similarity"}, "they read token states, or name their own pooling"


def test_a_store_that_was_not_finished_is_not_there(tmp_path):
    model = frozen_model()
    cache = cache_of(tmp_path, model, train={"topic": datasets(6)["tags+topic"].select(range(6))})

    def fail(features):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        cache.compute(model, fail)
    assert list(tmp_path.iterdir()) == [] and len(cache.missing) == 1
    (store,) = cache.missing
    (tmp_path / f"{store.folder.name}.unfinished-killed").mkdir()
    assert not store.is_there
    cache.compute(model, collator())
    assert store.is_there and not cache.missing
    assert json.loads((store.folder / "store.json").read_text())["files"]["pooled_mean"] == ["float32", 6, 32]


def test_a_store_that_another_process_finished_first_is_kept(tmp_path):
    model, data = frozen_model(), {"ner": datasets(6)["ner"]}
    cache = cache_of(tmp_path, model, train=data)
    (store,) = cache.missing

    def meanwhile(features):
        if not store.is_there:
            cache_of(tmp_path, model, train=data).compute(model, collator())
            (store.folder / "first").touch()
        return collator()(features)

    cache.compute(model, meanwhile)
    assert (store.folder / "first").exists() and list(tmp_path.iterdir()) == [store.folder]


def test_a_disk_without_room_is_refused_with_both_sizes(tmp_path, monkeypatch):
    cache = cache_of(tmp_path / "not" / "there", frozen_model(), train={"ner": datasets(6)["ner"]})
    (store,) = cache.missing
    tokens = sum(len(row["input_ids"]) for row in datasets(6)["ner"])
    assert store.num_bytes == tokens * 32 * 4 + 6 * 4
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, store.num_bytes))
    cache.check_disk()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, store.num_bytes - 1))
    with pytest.raises(ValueError, match=f"needs {store.num_bytes:,} bytes more .* {store.num_bytes - 1:,} are free"):
        cache.check_disk()
    assert not (tmp_path / "not").exists()


def test_an_encoder_that_trains_in_part_is_refused(tmp_path):
    model = new_model(TASKS)
    model.freeze("embeddings")
    with pytest.raises(
        ValueError, match=r"whole encoder must be frozen, but \d+ .*encoder.layer.0.*freeze: \[encoder\]"
    ):
        cache_of(tmp_path, model, train=datasets(6))


def test_bfloat16_training_reads_the_very_states_that_the_encoder_gives(tmp_path):
    """Rows of one length, so that nothing but the store's dtype could change a bit."""
    model = frozen_model()
    use_fast_dropout(model)
    use_bfloat16_states(model)
    row = {"input_ids": [2, 7, 9, 11, 3], "labels": {"ner": [-100, 1, 0, 0, -100]}, "row": 0}
    cache = EncoderCache(str(tmp_path), model, {"train": {"ner": Dataset.from_list([row])}}, torch.bfloat16, CPU)
    cache.compute(model, collator())
    assert cache.stores["train"]["ner"].arrays["token_states"][0] is np.uint16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = model.run_encoder(**collator()([{"input_ids": row["input_ids"]}])).last_hidden_state[0]
    assert torch.equal(torch.from_numpy(cache.rows("train")["ner"][0]["token_states"]), states)


# What forward refuses


def stored_batch(tmp_path, name):
    model = frozen_model()
    cache = cache_of(tmp_path, model, train=datasets(6))
    cache.compute(model, collator())
    stored = cache.rows("train")[name]
    return model.eval(), collator()([stored[row] for row in range(3)])


def test_stored_outputs_of_another_shape_or_without_what_a_task_reads_are_refused(tmp_path):
    model, batch = stored_batch(tmp_path, "ner")
    assert model(**batch).logits["ner"].shape[:2] == batch["attention_mask"].shape
    assert model(**batch).sentence_embedding is None
    with pytest.raises(ValueError, match=r"token_states must have the shape \(3, \d+, 32\) .* got \(3, 2, 32\)"):
        model(**batch | {"token_states": batch["token_states"][:, :2]})
    with pytest.raises(ValueError, match="reads 'mean' pooling, but pooled_states holds: none"):
        model(**batch | {"labels": None}, tasks=["topic"])
    with pytest.raises(ValueError, match="give them, or input_ids, but not both"):
        model(**batch, input_ids=batch["attention_mask"])
    with pytest.raises(ValueError, match="need the attention_mask"):
        model(**batch | {"attention_mask": None})
    model, batch = stored_batch(tmp_path, "similarity")
    with pytest.raises(ValueError, match="'ner' reads token states"):
        model(**batch | {"labels": None}, tasks=["ner"])
    with pytest.raises(ValueError, match=r"pair_pooled_states\['max'\] must have the shape \(3, 32\)"):
        model(**batch | {"pair_pooled_states": {"max": torch.zeros(2, 32)}})


def test_the_sampling_dataset_reads_only_the_rows_of_its_plan_elsewhere():
    sampling = TaskSamplingDataset(datasets(6), rows_per_step=8)
    with pytest.raises(ValueError, match="under the same names, and as many of each"):
        sampling.read_from(datasets(5))


# The command


def test_the_plan_says_size_and_place_and_a_dry_run_computes_nothing(recipe, tmp_path, capsys):
    stores = tmp_path / "stores"
    words = [str(recipe), "--output_dir", str(tmp_path / "out"), "--encoder_cache_dir", str(stores), "--dry_run"]
    assert train_hf.main(words) is None
    line = next(line for line in capsys.readouterr().out.splitlines() if "Encoder cache" in line)
    assert f"99 training and validation rows, 0.2 MiB in {stores} (0.2 MiB of it are computed before" in line
    assert not stores.exists()


def test_the_command_refuses_an_encoder_that_trains_in_one_line(recipe, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_hf.main([str(recipe), "--output_dir", str(tmp_path), "--freeze", "embeddings"])
    assert "cache_encoder stores what a frozen encoder says" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_two_ranks_train_from_one_store_what_one_process_trains_with_the_encoder(recipe, tmp_path):
    """The command itself: the store is written once, and the ranks' weights are equal."""
    stores = ["--encoder_cache_dir", str(tmp_path / "stores")]
    plain = ["--output_dir", str(tmp_path / "plain"), "--cache_encoder", "false"]
    train_hf.main([str(recipe), *plain, "--grouping", "none"])
    folder = tmp_path / "ranks"
    folder.mkdir()
    options = ["--grouping", "none", "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]
    reports = on_ranks("command", folder, recipe, *stores, *options, "--load_best_model_at_end", False)
    assert reports[0]["sha256"] == reports[1]["sha256"]
    assert [report["find_unused"] for report in reports] == [False, False]
    assert difference_of_folders(tmp_path / "plain" / "checkpoint-18", folder) < 1e-5
    assert len(list((tmp_path / "stores").iterdir())) == 6 and not list((tmp_path / "stores").glob("*unfinished*"))
    start = load_file(tmp_path / "plain" / "checkpoint-9" / "model.safetensors")["projection.weight"]
    assert not torch.equal(start, load_file(folder / "model.safetensors")["projection.weight"])


def test_a_store_opens_without_pickle(tmp_path):
    """A file that only pickle could read is refused."""
    data = datasets(6)["ner"]
    np.save(tmp_path / "lengths.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        StoredRows(data, Path(tmp_path))[0]
