"""Plots show what was logged and counted, stay readable with many labels, and are optional."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from task_metrics import metric_class  # noqa: E402
from task_plots import (  # noqa: E402
    confusion_figure,
    cosines_figure,
    curves_figure,
    differences_figure,
    has_matplotlib,
    logged_metric,
    logged_tasks,
    plot_confusion,
    plot_cosines,
    plot_curves,
    plot_differences,
    running_mean,
    series,
)

LOG = [
    {"step": 10, "loss": 2.0, "loss_topic": 1.5, "loss_ner": 0.5, "learning_rate": 1e-4},
    {"step": 20, "loss": 1.0, "loss_topic": 0.75, "loss_ner": float("nan")},
    {"step": 20, "eval_topic_accuracy": 0.8, "eval_topic_macro_f1": 0.7, "eval_topic_rows": 64, "eval_topic_loss": 0.4},
    {"step": 20, "eval_ner_f1": 0.6, "eval_ner_strict_f1": 0.5, "eval_ner_word_accuracy": 0.9, "eval_ner_rows": 64},
    {"step": 20, "eval_mean_score": 0.7},
    {"step": 20, "train_loss": 1.5, "train_runtime": 3.0},
]


def drawn(axes):
    """The lines of a panel as lists of (x, y)."""
    return [list(zip(*line.get_data(), strict=True)) for line in axes.lines]


def random_matrix(labels, largest=9999):
    rng = np.random.default_rng(labels)
    matrix = rng.integers(0, largest // 20 + 2, (labels, labels))
    np.fill_diagonal(matrix, largest)
    return matrix


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_series_are_steps_and_values_without_nan_and_keep_the_first_of_a_step():
    assert series(LOG, "loss_ner") == [(10.0, 0.5)]
    again = [*LOG, {"step": 20, "eval_mean_score": 0.9}]
    assert series(again, "eval_mean_score") == [(20.0, 0.7)]


def test_tasks_and_their_primary_metric_are_read_from_the_log():
    assert logged_tasks(LOG) == ["ner", "topic"]
    assert logged_metric(LOG, "ner") == "f1" and logged_metric(LOG, "topic") == "accuracy"
    assert logged_metric(LOG, "other") is None
    assert logged_tasks([{"step": 1, "eval_long_name_rows": 3}]) == ["long_name"]
    assert logged_tasks([{"step": 1, "eval_rows": 3, "eval_accuracy": 0.5}]) == []


@pytest.mark.parametrize(
    ("spec", "metric"),
    [
        ({"kind": "text-classification", "labels": ["a", "b"]}, "accuracy"),
        (
            {"kind": "text-classification", "labels": ["a", "b"], "problem_type": "multi_label_classification"},
            "micro_f1",
        ),
        ({"kind": "text-classification", "labels": ["score"], "problem_type": "regression"}, "spearman"),
        ({"kind": "token-classification", "labels": ["O", "B-PER", "I-PER"]}, "f1"),
        ({"kind": "token-classification", "labels": ["NOUN", "VERB"]}, "accuracy"),
        ({"kind": "sentence-similarity"}, "spearman"),
        ({"kind": "feature-extraction"}, "mean_cosine"),
    ],
)
def test_primary_metric_is_found_among_the_keys_that_metrics_write(spec, metric):
    keys = {f"eval_task_{name}": 0.5 for name in metric_class(spec).metric_names}
    assert logged_metric([{"step": 1, **keys}], "task") == metric


def test_curves_show_losses_left_and_primary_metrics_right():
    losses, scores = curves_figure(LOG).axes
    assert drawn(losses) == [[(10.0, 0.5)], [(10.0, 1.5), (20.0, 0.75)], [(10.0, 2.0), (20.0, 1.0)]]
    assert drawn(scores) == [[(20.0, 0.6)], [(20.0, 0.8)], [(20.0, 0.7)]]


def test_a_task_has_one_colour_in_both_panels_and_its_metric_in_the_legend():
    figure = curves_figure(LOG)
    losses, scores = figure.axes
    assert [line.get_color() for line in losses.lines] == [line.get_color() for line in scores.lines]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["ner (f1)", "topic (accuracy)", "all tasks (total loss, mean score)"]


def test_long_logs_are_smoothed_with_the_logged_values_behind():
    values = [float(i % 2) for i in range(80)]
    losses, _ = curves_figure([{"step": i, "loss": value} for i, value in enumerate(values)]).axes
    raw, smooth = drawn(losses)
    assert [y for _, y in raw] == values
    assert [y for _, y in smooth] == pytest.approx(running_mean(values, 5).tolist())
    assert "running mean of 5 logs" in losses.get_title(loc="left")


def test_running_mean_has_shorter_windows_at_the_ends():
    assert running_mean([0.0, 3.0, 6.0, 3.0], 3).tolist() == [1.5, 3.0, 4.0, 4.5]
    assert running_mean([1.0, 2.0], 1).tolist() == [1.0, 2.0]


def test_an_empty_log_is_drawn_and_says_so(tmp_path):
    path = plot_curves([], tmp_path / "curves.png")
    assert is_png(path)
    assert [axes.texts[0].get_text() for axes in curves_figure([]).axes] == ["nothing logged"] * 2


def test_plots_are_png_files_in_folders_made_for_them(tmp_path):
    curves = plot_curves(LOG, tmp_path / "plots" / "curves.png")
    matrix = plot_confusion(["a", "b"], np.array([[3, 1], [0, 2]]), str(tmp_path / "plots" / "matrix.png"), title="x")
    assert curves == tmp_path / "plots" / "curves.png" and is_png(curves)
    assert matrix == Path(tmp_path / "plots" / "matrix.png") and is_png(matrix)


def test_confusion_writes_every_count_that_is_not_zero_at_its_cell():
    figure = confusion_figure(["a", "b"], np.array([[3, 1], [0, 1200]]), "topic, test")
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert texts == {(0, 0): "3", (1, 0): "1", (1, 1): "1200"}  # x is the predicted label, y the true one
    assert figure.axes[0].get_title() == "topic, test: 99.9% of 1,204 right"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a (4)", "b (1,200)"]


@pytest.mark.parametrize("labels", [1, 2, 5, 12, 20, 50])
def test_counts_fit_their_cells_and_names_do_not_overlap(labels):
    figure = confusion_figure([f"a rather long label {i}" for i in range(labels)], random_matrix(labels), None)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    cell = axes.get_window_extent().width / labels
    counts = [text.get_window_extent() for text in axes.texts]
    assert counts and max(box.width for box in counts) < cell and max(box.height for box in counts) < cell
    assert max(label.get_window_extent().height for label in axes.get_yticklabels()) < cell
    assert max(label.get_window_extent().width for label in axes.get_xticklabels()) < cell
    sizes = [text.get_fontsize() for text in (*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels())]
    assert min(sizes) >= 6


def test_many_labels_are_told_by_colour_alone():
    figure = confusion_figure([f"label {i}" for i in range(120)], random_matrix(120), None)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert not axes.texts
    cell = axes.get_window_extent().width / 120
    assert max(label.get_window_extent().height for label in axes.get_yticklabels()) < 1.2 * cell


def test_matrix_of_zeros_and_names_with_dollars_are_drawn(tmp_path):
    path = plot_confusion(["PRP$", "$ and $"], np.zeros((2, 2), dtype=int), tmp_path / "zeros.png")
    assert is_png(path)
    assert confusion_figure(["a"], np.zeros((1, 1), dtype=int), None).axes[0].get_title() == "nothing counted"


def test_matrix_that_does_not_fit_its_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 label names, but the matrix has shape \(3, 3\)"):
        plot_confusion(["a", "b"], np.zeros((3, 3)), tmp_path / "matrix.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_nothing_is_drawn_and_it_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # the interpreter's own way of "not installed"
    has_matplotlib.cache_clear()
    assert plot_curves(LOG, tmp_path / "curves.png") is None
    assert plot_confusion(["a"], np.ones((1, 1), dtype=int), tmp_path / "matrix.png") is None
    has_matplotlib.cache_clear()
    assert caplog.text.count("matplotlib is not installed") == 1 and not list(tmp_path.iterdir())


# Cosines and differences


def test_every_cosine_is_written_in_its_cell_and_an_unknown_one_is_left_white(tmp_path: Path) -> None:
    """Row by row, as the matrix has them; the colour's ends are -1 and 1."""
    matrix = [[0.5, -0.25], [-0.25, None]]
    axes = cosines_figure(["ner", "topic"], np.array(matrix, dtype=float)).axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "0.50", (1, 0): "-0.25", (0, 1): "-0.25"}
    assert axes.images[0].get_clim() == (-1, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ner", "topic"]
    assert plot_cosines(["ner", "topic"], matrix, tmp_path / "x" / "cosines.png").stat().st_size > 1000


def test_a_difference_is_drawn_in_points_with_its_interval_and_its_seeds(tmp_path: Path) -> None:
    """A line a task, the first on top; red hurts, blue helps."""
    one = {"metric": "f1", "difference": 0.01, "interval": [0.005, 0.02], "by_seed": [0.0, 0.02], "verdict": "helps"}
    comparisons = {"ner": one, "topic": one | {"metric": "accuracy", "verdict": "hurts"}}
    axes = differences_figure(comparisons).axes[0]
    zero, interval, mean, seeds, *_ = axes.lines
    assert list(zero.get_xdata()) == [0, 0]
    assert list(interval.get_xdata()) == [0.5, 2.0] and list(mean.get_xdata()) == [1.0]
    assert list(seeds.get_xdata()) == [0.0, 2.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ner (f1)", "topic (accuracy)"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first on top"
    assert interval.get_color() != axes.lines[4].get_color()
    assert plot_differences(comparisons, tmp_path / "differences.png").stat().st_size > 1000
