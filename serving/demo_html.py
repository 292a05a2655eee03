"""How the web demo draws what no component of Gradio shows well: cards with bars, a heat map, a map, a vector, tables.

HTML and SVG as text, with the theme's colours, light or dark; whatever comes from outside is escaped. It computes
nothing (`demo_answers` does), and nothing in it refers to another host.

    gr.HTML(draw_cards(cards(tasks, answer)))
"""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from serving.demo_answers import Bar, Card, Pair
from serving.engine import Reading

SHOWN_BARS = 8
SHOWN_NUMBERS = 3
"""Decimals of a vector's numbers."""

STYLE = """
.gradio-container {max-width: 1080px !important; margin: 0 auto !important; width: 100%}
.gradio-container .main {padding: 16px clamp(12px, 3vw, 32px) !important}
.gradio-container .html-container {padding: 0 !important}
.cards {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 228px), 1fr)); gap: 12px;
  align-items: start}
.card {border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 14px 16px; min-width: 0;
  background: var(--block-background-fill)}
.card .task {display: flex; justify-content: space-between; gap: 8px; flex-wrap: wrap; font-size: 13px;
  color: var(--body-text-color-subdued)}
.card .task b {color: var(--body-text-color); overflow-wrap: anywhere}
.card .headline {font-size: 22px; font-weight: 600; margin: 6px 0 10px; overflow-wrap: anywhere; line-height: 1.25}
.card .waits {color: var(--body-text-color-subdued); margin: 6px 0 0}
.bar {margin: 6px 0; font-size: 14px}
.bar .names {display: flex; justify-content: space-between; gap: 12px}
.bar .names span:first-child {overflow-wrap: anywhere}
.bar .names span:last-child, .wide td {font-variant-numeric: tabular-nums}
.bar .track {height: 7px; border-radius: 4px; margin-top: 3px; background: var(--border-color-primary)}
.bar .track div {height: 100%; border-radius: 4px; background: var(--neutral-400); min-width: 2px}
.bar.chosen .track div {background: var(--color-accent)}
.bar.chosen .names {font-weight: 600}
.gallery-item, .gallery button {text-align: left}
.quiet {color: var(--body-text-color-subdued); font-size: 14px; margin: 8px 0}
.said {border-left: 4px solid var(--color-accent); padding: 8px 12px; margin: 0 0 12px; font-size: 14px;
  background: var(--block-background-fill)}
.wide {overflow-x: auto; max-width: 100%}
.wide table {border-collapse: collapse; font-size: 14px; width: 100%; margin: 0; border: none}
.wide tr, .wide th, .wide td {border: none; text-align: left; vertical-align: top; color: var(--body-text-color)}
.wide th, .wide td {padding: 6px 14px 6px 0; border-bottom: 1px solid var(--border-color-primary)}
.wide th {font-weight: 600; white-space: nowrap}
.wide td div {width: max-content; max-width: min(60vw, 340px); overflow-wrap: anywhere}
.heading {font-weight: 600; margin: 4px 0 10px}
.heat {display: grid; gap: 2px; min-width: 100%; width: max-content}
.heat > div {display: flex; align-items: center; justify-content: center; min-width: 44px; height: 40px;
  border-radius: 4px; font-size: 13px; font-variant-numeric: tabular-nums; color: var(--body-text-color)}
.heat > .place {color: var(--body-text-color-subdued); font-weight: 600; min-width: 30px}
.heat > .dark {color: white}
.key {list-style: none; padding: 0; margin: 12px 0 0; font-size: 14px; line-height: 1.45}
.key li {display: flex; gap: 8px; padding: 3px 0; margin: 0}
.key b {flex: 0 0 26px; text-align: right; color: var(--color-accent)}
.key span {overflow-wrap: anywhere}
.nearest {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 10px}
.nearest .card {padding: 10px 14px; font-size: 14px}
.nearest .card b {font-size: 18px; color: var(--color-accent); font-variant-numeric: tabular-nums}
.map {width: 100%; height: auto; border: 1px solid var(--border-color-primary); border-radius: 10px;
  background: var(--block-background-fill); display: block}
.map circle {fill: var(--color-accent)}
.map .halo {fill: var(--color-accent); opacity: .15}
.map text {fill: var(--body-text-color); font-size: 15px; font-weight: 600; text-anchor: middle}
.map .axis {fill: var(--body-text-color-subdued); font-size: 12px; font-weight: 400}
.map line {stroke: var(--border-color-primary); stroke-dasharray: 4 4}
.vectors details {border: 1px solid var(--border-color-primary); border-radius: 10px; margin: 8px 0; padding: 10px 14px;
  background: var(--block-background-fill)}
.vectors summary {cursor: pointer; overflow-wrap: anywhere; font-size: 15px}
.vectors h4 {margin: 14px 0 6px; font-size: 13px; font-weight: 600}
.tokens {display: flex; flex-wrap: wrap; gap: 4px; font-family: var(--font-mono); font-size: 13px}
.tokens span {border-radius: 4px; padding: 1px 6px; white-space: pre; max-width: 100%; overflow-wrap: anywhere;
  background: color-mix(in srgb, var(--color-accent) 18%, transparent)}
.tokens span.padding {background: none; color: var(--body-text-color-subdued); outline: 1px dashed
  var(--border-color-primary); outline-offset: -1px}
.tokens sub {opacity: .65; margin-left: 4px}
.strip {display: flex; flex-wrap: wrap; gap: 1px; margin-bottom: 8px}
.strip i {width: 9px; height: 14px; display: block; border-radius: 1px}
.numbers {font-family: var(--font-mono); font-size: 12px; max-height: 168px; overflow: auto; line-height: 1.6;
  overflow-wrap: anywhere; color: var(--body-text-color); font-variant-numeric: tabular-nums}
@media (max-width: 480px) {
  .tab-container button {padding: 0 7px !important; font-size: 14px !important}
  .map text {font-size: 26px}
  .map .axis {font-size: 20px}
  .heat > div {min-width: 38px; height: 36px; font-size: 12px}
}
"""
PADDING = ' class="padding"'
WARM, COOL = "#4f46e5", "#d97706"
"""Positive and negative numbers."""
WIDTH, HEIGHT, MARGIN = 720, 400, 48
"""Of the map, in its own units."""
LABEL_OFFSETS = ((0, -22), (24, 0), (0, 22), (-24, 0))
LABEL_ROOM = 14
DARK = 0.6
"""From this share of colour on, a number on it is white."""


def note(text: str) -> str:
    """A remark above an answer; nothing for an empty one."""
    return f'<div class="said" role="status">{escape(text)}</div>' if text else ""


def quiet(text: str) -> str:
    """A remark below an answer."""
    return f'<p class="quiet">{escape(text)}</p>'


def heading(text: str) -> str:
    """What stands below it."""
    return f'<div class="heading">{escape(text)}</div>'


def draw_cards(cards: Iterable[Card]) -> str:
    """Cards side by side, as many a row as fit."""
    return f'<div class="cards">{"".join(map(draw_card, cards))}</div>'


def draw_card(card: Card) -> str:
    """A task's answer, and how likely each of its classes is."""
    top = f'<div class="task"><b>{escape(card.task)}</b><span>{escape(card.kind)}</span></div>'
    if card.needs_pair:
        body = '<p class="waits">Needs a second text.</p>'
    else:
        further = len(card.bars) - SHOWN_BARS
        rest = quiet(f"and {further} less likely") if further > 0 else ""
        bars = "".join(map(draw_bar, card.bars[:SHOWN_BARS]))
        body = f'<div class="headline">{escape(card.headline)}</div>{bars}{rest}'
    return f'<div class="card" data-task="{escape(card.task)}">{top}{body}</div>'


def draw_bar(bar: Bar) -> str:
    """A class, its probability in percent, and a bar of that length."""
    percent = f"{100 * bar.score:.1f}"
    names = f'<div class="names"><span>{escape(bar.label)}</span><span>{percent} %</span></div>'
    track = f'<div class="track"><div style="width: {percent}%"></div></div>'
    return f'<div class="bar{" chosen" if bar.chosen else ""}">{names}{track}</div>'


def draw_key(sentences: Sequence[str]) -> str:
    """Which number stands for which sentence."""
    rows = (f"<li><b>{number}</b><span>{escape(text)}</span></li>" for number, text in enumerate(sentences, start=1))
    return f'<ul class="key">{"".join(rows)}</ul>'


def tint(share: float) -> str:
    """A background for a number between -1 and 1: the stronger, the further from 0."""
    return f"background: color-mix(in srgb, {WARM if share > 0 else COOL} {100 * abs(share):.0f}%, transparent)"


def draw_heat_map(sentences: Sequence[str], matrix: np.ndarray) -> str:
    """Every two sentences' cosine, as a number on a colour. Shape of the matrix (sentences, sentences)."""
    places = range(1, len(sentences) + 1)
    cells = ['<div class="place"></div>', *(f'<div class="place">{place}</div>' for place in places)]
    for place, row, sentence in zip(places, matrix, sentences, strict=True):
        cells.append(f'<div class="place" title="{escape(sentence)}">{place}</div>')
        for value in row:
            dark = ' class="dark"' if abs(value) > DARK else ""
            cells.append(f'<div{dark} style="{tint(float(value))}">{value:.2f}</div>')
    columns = f"grid-template-columns: 30px repeat({len(sentences)}, minmax(40px, 1fr))"
    grid = f'<div class="wide"><div class="heat" style="{columns}">{"".join(cells)}</div></div>'
    return heading("Cosine of every two sentences") + grid + draw_key(sentences)


def draw_pairs(sentences: Sequence[str], pairs: Iterable[Pair]) -> str:
    """Pairs of sentences with their cosines."""
    shown = (
        f'<div class="card"><b>{pair.cosine:.3f}</b><br>{escape(sentences[pair.first])}<br>'
        f"{escape(sentences[pair.second])}</div>"
        for pair in pairs
    )
    return f'{heading("Nearest pairs")}<div class="nearest">{"".join(shown)}</div>'


def draw_map(sentences: Sequence[str], points: np.ndarray, shares: Sequence[float]) -> str:
    """Numbered points, both axes on one scale. Shape of the points (sentences, 2)."""
    width, height, margin = WIDTH, HEIGHT, MARGIN
    low, spread = points.min(0), np.ptp(points, axis=0)
    scale = min((width - 2 * margin) / max(spread[0], 1e-9), (height - 2 * margin) / max(spread[1], 1e-9))
    middle = np.array([width, height]) / 2
    at = middle + (points - low - spread / 2) * scale * [1, -1]
    origin = middle + (0 - low - spread / 2) * scale * [1, -1]
    dots = "".join(
        f'<g><title>{escape(sentence)}</title><circle class="halo" cx="{x:.1f}" cy="{y:.1f}" r="15"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/><text x="{left:.1f}" y="{top + 5:.1f}">{number}</text></g>'
        for number, (sentence, (x, y), (left, top)) in enumerate(
            zip(sentences, at, label_places(at), strict=True), start=1
        )
    )
    across, down = (
        f"PCA axis {axis}: {100 * share:.0f} % of the variance" for axis, share in enumerate(shares, start=1)
    )
    lines = (
        f'<line x1="0" x2="{width}" y1="{origin[1]:.1f}" y2="{origin[1]:.1f}"/>'
        f'<line y1="0" y2="{height}" x1="{origin[0]:.1f}" x2="{origin[0]:.1f}"/>'
        f'<text class="axis" x="{width / 2}" y="{height - 8}">{across}</text>'
        f'<text class="axis" transform="translate(14 {height / 2}) rotate(-90)">{down}</text>'
    )
    drawing = f'<svg class="map" viewBox="0 0 {width} {height}" role="img" aria-label="Map of the sentences">'
    return f"{drawing}{lines}{dots}</svg>{draw_key(sentences)}"


def label_places(points: np.ndarray) -> list[np.ndarray]:
    """Where the number of each point stands: above it, or where that is taken, beside or below it."""
    places: list[np.ndarray] = []
    for point in points:
        around = [point + offset for offset in LABEL_OFFSETS]
        room = [min((np.abs(spot - other).max() for other in places), default=np.inf) for spot in around]
        free = [spot for spot, distance in zip(around, room, strict=True) if distance > LABEL_ROOM]
        places.append(free[0] if free else around[int(np.argmax(room))])
    return places


def draw_vectors(sentences: Sequence[str], vectors: np.ndarray, readings: Sequence[Reading]) -> str:
    """For every sentence, to unfold: its tokens with the attention mask, and its vector. Vectors (sentences, size)."""
    parts = []
    for number, (sentence, vector, reading) in enumerate(zip(sentences, vectors, readings, strict=True), start=1):
        read = sum(reading.mask)
        strip = "".join(f'<i style="{tint(value)}"></i>' for value in vector / max(np.abs(vector).max(), 1e-12))
        numbers = " ".join(f"{value:.{SHOWN_NUMBERS}f}" for value in vector)
        parts.append(
            f"<details{' open' if number == 1 else ''}><summary><b>{number}</b> &nbsp;{escape(sentence)}</summary>"
            f"<h4>{read} tokens read (mask 1), {len(reading.mask) - read} of padding (mask 0)</h4>"
            f'<div class="tokens">{"".join(map(draw_token, reading.tokens, reading.mask))}</div>'
            f"<h4>{len(vector)} numbers, length {np.linalg.norm(vector):.3f}</h4>"
            f'<div class="strip">{strip}</div><div class="numbers">{numbers}</div></details>'
        )
    return f'{heading("What the model reads, and its vectors")}<div class="vectors">{"".join(parts)}</div>'


def draw_token(token: str, mask: int) -> str:
    """A token and its place in the attention mask."""
    return f"<span{'' if mask else PADDING}>{escape(token)}<sub>{mask}</sub></span>"


def draw_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is wider than the page."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td><div>{escape(cell)}</div></td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
