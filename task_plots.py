"""Pictures beside the results: curves, confusion matrices, gradient cosines and differences of scores, as PNG files.

It draws what it is given; the numbers are `task_metrics`' and the Trainer's log. matplotlib comes with the extra
`plots`: where it is missing, the functions say so once, draw nothing and return None, and the run goes on.

    plot_curves(trainer.state.log_history, "outputs/run/curves.png")
    plot_confusion(*confusion(spec, prediction), "outputs/run/confusion_topic.png", title="topic")
"""

import functools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from task_metrics import PRIMARY_METRICS

if TYPE_CHECKING:  # an optional extra: importing this module must not need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

TASK_COLORS = (  # Tol's "bright" and "muted" palettes: told apart with the usual colour blindnesses
    "#4477aa #ee6677 #228833 #ccbb44 #66ccee #aa3377 #882255 #44aa99 #999933 #cc6677 #332288 #ddaa33".split()
)
TOTAL_STYLE: dict[str, Any] = {"color": "#222222", "linestyle": "-", "linewidth": 2.4, "zorder": 5}
CORRECT_COLOR = "#2166ac"
WRONG_COLOR = "#b2182b"
LABELS_WITH_COUNTS = 50
"""Labels up to which a confusion matrix has room for its counts."""
MAX_NAME_LENGTH = 24
"""Letters of a label name that are written; longer ones end in an ellipsis."""
SMOOTHED_FROM = 40
"""Logged losses from which on a running mean is drawn (of 3, and 2 more with each 40); a shorter line is readable."""

Series = list[tuple[float, float]]
"""Points (step, value) of one log key."""


@functools.cache
def has_matplotlib() -> bool:
    """Whether matplotlib is installed; the first call says so in the log where it is not."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        logger.warning("No plots are drawn: matplotlib is not installed. It comes with the extra 'plots'.")
        return False
    return True


def series(log_history: list[dict[str, Any]], key: str) -> Series:
    """Return the points (step, value) of one log key, by step; nan left out.

    The first value of a step stands: an evaluation after training, of the best model, is logged at the last step again.
    """
    points: dict[float, float] = {}
    for entry in log_history:
        if key in entry and "step" in entry and not math.isnan(entry[key]):
            points.setdefault(float(entry["step"]), float(entry[key]))
    return sorted(points.items())


def logged_tasks(log_history: list[dict[str, Any]]) -> list[str]:
    """The sorted names of the tasks in a log: those with a `loss_<task>` or an `eval_<task>_rows`."""
    keys = {key for entry in log_history for key in entry}
    matches = [re.fullmatch(r"loss_(.+)|eval_(.+)_rows", key) for key in keys]
    return sorted({match[1] or match[2] for match in matches if match})


def logged_metric(log_history: list[dict[str, Any]], task_name: str) -> str | None:
    """The name of the primary metric that the log holds for a task, None where it was never evaluated."""
    keys = {key for entry in log_history for key in entry}
    return next((name for name in PRIMARY_METRICS if f"eval_{task_name}_{name}" in keys), None)


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of each value and those around it, `window` (odd) in all; fewer at the ends. Shape as `values`."""
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def task_style(position: int) -> dict[str, Any]:
    """Colour and line of the task at a position; after twelve tasks the colours come again, dashed."""
    line = ("-", "--", ":")[position // len(TASK_COLORS) % 3]
    return {"color": TASK_COLORS[position % len(TASK_COLORS)], "linestyle": line, "linewidth": 1.6, "zorder": 3}


def draw_losses(axes: "Axes", log_history: list[dict[str, Any]], styles: dict[str, dict[str, Any]]) -> None:
    """Draw each task's loss and the total; of a long log the running mean, the logged values faintly behind it."""
    keys = {**{f"loss_{task_name}": style for task_name, style in styles.items()}, "loss": TOTAL_STYLE}
    points = {key: series(log_history, key) for key in keys}
    longest = max(map(len, points.values()))
    window = 2 * (longest // SMOOTHED_FROM) + 1  # odd, so that the mean stands where its logs stand
    for key, style in keys.items():
        if not points[key]:
            continue
        steps, values = zip(*points[key], strict=True)
        if window > 1:
            axes.plot(steps, values, color=style["color"], linewidth=0.7, alpha=0.25)
        axes.plot(steps, running_mean(values, window), **style)
    style_axes(axes, "Training loss" + (f" (running mean of {window} logs)" if window > 1 else ""))
    axes.set_ylim(bottom=0)


def draw_scores(axes: "Axes", log_history: list[dict[str, Any]], styles: dict[str, dict[str, Any]]) -> None:
    """Draw each task's primary metric and the mean score, with a dot for every evaluation."""
    keys = {f"eval_{name}_{logged_metric(log_history, name)}": style for name, style in styles.items()}
    for key, style in {**keys, "eval_mean_score": TOTAL_STYLE}.items():
        if points := series(log_history, key):
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, **style)
    style_axes(axes, "Evaluation (primary metric of each task)")


def style_axes(axes: "Axes", title: str) -> None:
    """Give a panel its title, a light grid and no box; say so where it has no data."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("optimizer step")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", integer=True)
    if not axes.lines:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", va="center", color="#888888")


def add_legend(figure: "Figure", log_history: list[dict[str, Any]], styles: dict[str, dict[str, Any]]) -> None:
    """Put one legend for both panels under them: task (metric), and what the black line is."""
    from matplotlib.lines import Line2D

    metrics = {task_name: logged_metric(log_history, task_name) for task_name in styles}
    handles = [
        Line2D([], [], label=f"{name} ({metrics[name]})" if metrics[name] else name, **style)
        for name, style in styles.items()
    ]
    handles.append(Line2D([], [], label="all tasks (total loss, mean score)", **TOTAL_STYLE))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)


def curves_figure(log_history: list[dict[str, Any]]) -> "Figure":
    """The figure of `plot_curves`: two panels and the legend under them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), dpi=150, layout="constrained")
    losses, scores = figure.subplots(1, 2)
    styles = {task_name: task_style(position) for position, task_name in enumerate(logged_tasks(log_history))}
    draw_losses(losses, log_history, styles)
    draw_scores(scores, log_history, styles)
    add_legend(figure, log_history, styles)
    return figure


def plot_curves(log_history: list[dict[str, Any]], path: str | Path) -> Path | None:
    """Draw training losses and evaluation scores over steps, two panels with one colour a task, as a PNG.

    Args:
        log_history (list of dict): `trainer.state.log_history`. Read are `loss` and `loss_<task>` (left), the primary
            metric of every task `eval_<task>_<metric>` and `eval_mean_score` (right), each with its `step`.
        path (str or Path): The PNG file; its folder is made.

    Returns:
        The path, or None where matplotlib is missing.
    """
    return save(curves_figure(log_history), path) if has_matplotlib() else None


def confusion_figure(label_names: Sequence[str], matrix: np.ndarray, title: str | None) -> "Figure":
    """The figure of `plot_confusion`. It is all cells: names and title stand outside of it; `save` takes them in."""
    from matplotlib.figure import Figure

    cell = cell_inches(len(label_names))
    figure = Figure(figsize=(cell * len(label_names), cell * len(label_names)), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_cells(axes, matrix, cell)
    name_cells(axes, label_names, matrix.sum(axis=1))
    axes.set_title(confusion_title(matrix, title), pad=12, fontsize=11, fontweight="bold")
    return figure


def plot_confusion(
    label_names: Sequence[str], matrix: np.ndarray, path: str | Path, title: str | None = None
) -> Path | None:
    """Draw a confusion matrix: counts in the cells, coloured by their share of the row, as a PNG.

    Blue cells (the diagonal) are right, red ones are confusions. Colour grows with the square root of the share, so
    that one error in a hundred is still seen. The picture grows with the labels; beyond `LABELS_WITH_COUNTS` the counts
    no longer fit and colour is all there is.

    Args:
        label_names (sequence of str): Names of rows and columns.
        matrix (ndarray): Counts, true x predicted, shape (labels, labels), as `task_metrics.confusion` returns them.
        path (str or Path): The PNG file; its folder is made.
        title (str): What was scored, for example task and split.

    Returns:
        The path, or None where matplotlib is missing.

    Raises:
        ValueError: if the matrix is not (labels, labels).
    """
    if matrix.shape != (len(label_names), len(label_names)):
        raise ValueError(
            f"A confusion matrix has a row and a column for each label: {len(label_names)} label names, but the matrix "
            f"has shape {matrix.shape}. Pass both as task_metrics.confusion returns them."
        )
    return save(confusion_figure(label_names, matrix, title), path) if has_matplotlib() else None


def cosines_figure(task_names: Sequence[str], matrix: np.ndarray) -> "Figure":
    """The figure of `plot_cosines`."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    cell = max(0.7, cell_inches(len(task_names)))
    figure = Figure(figsize=(cell * len(task_names), cell * len(task_names)), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    colors = LinearSegmentedColormap.from_list("conflict", [WRONG_COLOR, "#ffffff", CORRECT_COLOR])
    axes.imshow(np.ma.masked_invalid(matrix), cmap=colors, vmin=-1, vmax=1)
    for row, column in np.argwhere(np.isfinite(matrix)):
        color = "#ffffff" if abs(matrix[row, column]) > 0.6 else "#222222"
        axes.text(column, row, f"{matrix[row, column]:z.2f}", ha="center", va="center", fontsize=10, color=color)
    places = np.arange(len(task_names))
    axes.set_xticks(places, task_names, rotation=90 if max(map(len, task_names)) > 8 else 0)
    axes.set_yticks(places, task_names)
    axes.set_xticks(places[:-1] + 0.5, minor=True)
    axes.set_yticks(places[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color="#e5e5e5", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#bbbbbb")
    axes.set_title("Cosines of the tasks' gradients", loc="left", pad=12, fontsize=11, fontweight="bold")
    axes.set_xlabel("mean over training; diagonal: other rows of the same task")
    return figure


def plot_cosines(task_names: Sequence[str], matrix: Any, path: str | Path) -> Path | None:
    """Draw the cosines between tasks' gradients as a heat map: blue pull together, red against each other.

    Args:
        task_names (sequence of str): Names of rows and columns.
        matrix (array): Cosines, shape (tasks, tasks), as `gradient_cosines` has them; None or NaN stays white.
        path (str or Path): The PNG file; its folder is made.

    Returns:
        The path, or None where matplotlib is missing.
    """
    return save(cosines_figure(task_names, np.array(matrix, dtype=float)), path) if has_matplotlib() else None


def differences_figure(comparisons: Mapping[str, Any]) -> "Figure":
    """The figure of `plot_differences`: a line a task, the first on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.3 + 0.5 * len(comparisons)), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#888888", linewidth=1, zorder=1)
    for place, one in enumerate(comparisons.values()):
        low, high = (100 * bound for bound in one["interval"])
        color = CORRECT_COLOR if one["verdict"] == "helps" else WRONG_COLOR if one["verdict"] == "hurts" else "#555555"
        axes.plot([low, high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt", zorder=3)
        axes.plot(100 * one["difference"], place, "o", color=color, markersize=8, zorder=4)
        seeds = [100 * difference for difference in one["by_seed"]]
        axes.plot(seeds, [place + 0.22] * len(seeds), "|", color=color, markersize=7, alpha=0.7, zorder=3)
    axes.set_yticks(range(len(comparisons)), [f"{task} ({one['metric']})" for task, one in comparisons.items()])
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title("Trained together minus trained alone", loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("points; dot: mean of the seeds, bar: 95 % interval over examples, ticks: each seed")
    return figure


def plot_differences(comparisons: Mapping[str, Any], path: str | Path) -> Path | None:
    """Draw each task's difference between two systems with its interval and its seeds.

    Args:
        comparisons (Mapping): Task -> `metric`, `difference`, `interval`, `by_seed` (scores 0-1) and `verdict`.
        path (str or Path): The PNG file; its folder is made.

    Returns:
        The path, or None where matplotlib is missing.
    """
    return save(differences_figure(comparisons), path) if has_matplotlib() else None


def cell_inches(labels: int) -> float:
    """Width of a cell: 0.9 inches for a few labels, 0.34 for 50 (a four-digit count at 6 points), less beyond."""
    if labels <= LABELS_WITH_COUNTS:
        return max(0.34, min(0.9, 6.5 / labels))
    return max(0.12, 0.34 * LABELS_WITH_COUNTS / labels)


def draw_cells(axes: "Axes", matrix: np.ndarray, cell: float) -> None:
    """Colour the cells by the square root of their share of the row, and write the counts where they fit."""
    from matplotlib.colors import LinearSegmentedColormap

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(len(matrix), dtype=bool)
    for color, hidden in ((CORRECT_COLOR, ~diagonal), (WRONG_COLOR, diagonal)):
        colors = LinearSegmentedColormap.from_list(color, ["#ffffff", color])
        axes.imshow(np.ma.masked_array(np.sqrt(shares), hidden), cmap=colors, vmin=0, vmax=1)
    if len(matrix) > LABELS_WITH_COUNTS:
        return
    size = min(11, 22 * cell, 100 * cell / (len(str(matrix.max())) + 1))  # points; a digit is about 0.6 sizes wide
    for row, column in np.argwhere(matrix > 0):
        color = "#ffffff" if np.sqrt(shares[row, column]) > 0.6 else "#222222"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=size, color=color)


def name_cells(axes: "Axes", label_names: Sequence[str], counts: np.ndarray) -> None:
    """Write label names at both axes (with the count of true labels at the rows) and thin lines between the cells."""
    places = np.arange(len(label_names))
    short = [name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…" for name in label_names]
    short = [name.replace("$", r"\$") for name in short]  # `$...$` would be read as a formula
    size = min(10 if len(label_names) <= 12 else 9, 50 * cell_inches(len(label_names)))  # 50 points: 0.7 of an inch
    upright = len(label_names) > 12 or max(map(len, short)) > 8
    axes.set_xticks(places, short, rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(places, [f"{name} ({count:,})" for name, count in zip(short, counts, strict=True)], fontsize=size)
    axes.set_xticks(places[:-1] + 0.5, minor=True)
    axes.set_yticks(places[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color="#e5e5e5", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#bbbbbb")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (count)")


def confusion_title(matrix: np.ndarray, title: str | None) -> str:
    """The title with how much of the matrix lies on its diagonal."""
    total = int(matrix.sum())
    right = f"{matrix.trace() / total:.1%} of {total:,} right" if total else "nothing counted"
    return f"{title}: {right}" if title else right


def save(figure: "Figure", path: str | Path) -> Path:
    """Write a figure with everything around it as PNG, making its folder, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.15)
    return path
