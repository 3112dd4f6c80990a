"""Charts as numbers: where lines, bars and ticks lie in a picture. What they look like is the page's matter. Pure.

A picture is WIDTH × HEIGHT units; y grows downwards. Ticks are at round numbers, as a person would have drawn them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460.0, 215.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 12.0, 42.0
MAX_POINTS = 400

Points = Sequence[tuple[int, float | None]]


@dataclass(frozen=True, slots=True)
class Line:
    """`paths` are the points of what belongs together, without the gaps; `style` is its number in the picture."""

    name: str
    style: int
    paths: Sequence[str]
    dots: Sequence[tuple[float, float]]
    first: str
    last: str
    lowest: str
    highest: str


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """`unit` is what the values are counted in; empty for plain numbers."""

    title: str
    unit: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Histogram:
    title: str
    bars: Sequence[Bar]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


def chart(title: str, series: Mapping[str, Points], unit: str = "") -> Chart | None:
    """Lines over steps; None where no value is finite."""
    values = [value for points in series.values() for _, value in points if value is not None]
    steps = [step for points in series.values() for step, value in points if value is not None]
    if not values:
        return None
    x_of = _scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    low, high = _padded(min(values), max(values))
    y_of = _scale(low, high, HEIGHT - BOTTOM, TOP)
    lines = [_line(name, number, points, x_of, y_of) for number, (name, points) in enumerate(series.items())]
    x_ticks = [Tick(x_of(step), f"{step:,}") for step in _whole_ticks(min(steps), max(steps))]
    is_flat = min(values) == max(values)
    y_ticks = [Tick(y_of(value), tick_label(value)) for value in ([values[0]] if is_flat else round_ticks(low, high))]
    return Chart(title, unit, [line for line in lines if line is not None], x_ticks, y_ticks)


def histogram(title: str, values: Sequence[float], *, low: float, high: float, bins: int = 16) -> Histogram | None:
    """How many values lie where between `low` and `high`; None where there are none."""
    if not values:
        return None
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    most = max(counts)
    x_of, y_of = _scale(low, high, LEFT, WIDTH - RIGHT), _scale(0, most, HEIGHT - BOTTOM, TOP)
    width = (WIDTH - LEFT - RIGHT) / bins
    edges = [low + index * (high - low) / bins for index in range(bins + 1)]
    bars = [
        Bar(
            round(LEFT + index * width + 1, 1),
            round(y_of(count), 1),
            round(width - 2, 1),
            round(HEIGHT - BOTTOM - y_of(count), 1),
            f"{number(edges[index])} to {number(edges[index + 1])}: {count}",
        )
        for index, count in enumerate(counts)
        if count
    ]
    x_ticks = [Tick(x_of(value), number(value)) for value in (low, (low + high) / 2, high)]
    y_ticks = [Tick(y_of(count), f"{count:,}") for count in _whole_ticks(0, most, with_ends=False)]
    return Histogram(title, bars, x_ticks, y_ticks)


def round_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """The multiples of 1, 2 or 5 times a power of ten between both, about as many as `wanted`."""
    exact = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(exact)) if exact > 0 else 0.0
    if not math.isfinite(power) or not power:
        return [low]
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= exact * 0.999)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, digits) + 0.0 for place in range(first, last + 1)]


def _whole_ticks(low: int, high: int, *, with_ends: bool = True) -> list[int]:
    """Whole numbers alone; with both ends, what would stand too close to one of them is left out."""
    between = sorted({int(value) for value in round_ticks(low, high) if value == int(value)})
    if not with_ends:
        return between or [low, high]
    room = (high - low) / 8
    return sorted({low, high, *(value for value in between if value - low > room and high - value > room)})


def number(value: float | None) -> str:
    """Short, for people."""
    if value is None:
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.2e}"


def tick_label(value: float) -> str:
    """As `number`, with a letter for thousands, millions and so on where it is long: an axis has little room."""
    for least, size, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= abs(value) < 1e15:
            return f"{value / size:.4g}{letter}"
    return f"{value:.2g}" if 0 < abs(value) < 1e-3 or abs(value) >= 1e15 else number(value)


def _line(name: str, style: int, points: Points, x_of: _Scale, y_of: _Scale) -> Line | None:
    known = [value for _, value in points if value is not None]
    if not known:
        return None
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in thinned(points):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((round(x_of(step), 1), round(y_of(value), 1)))
    return Line(
        name,
        style,
        [" ".join(f"{x:g},{y:g}" for x, y in run) for run in runs if len(run) > 1],
        [run[0] for run in runs if len(run) == 1],
        number(known[0]),
        number(known[-1]),
        number(min(known)),
        number(max(known)),
    )


def thinned(points: Points) -> Points:
    """At most MAX_POINTS or so: of each stretch its lowest and highest, in their order, so that no peak is lost."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / (MAX_POINTS / 2))
    kept: list[tuple[int, float | None]] = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        finite = [point for point in part if point[1] is not None]
        ends = {min(finite, key=lambda p: p[1] or 0.0), max(finite, key=lambda p: p[1] or 0.0)} if finite else set()
        lost = [point for point in part if point[1] is None][:1]
        kept += sorted([*ends, *lost], key=lambda point: point[0])
    return kept


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._factor = (end - start) / (high - low) if high > low else 0.0
        self._middle = (start + end) / 2 if high <= low else None

    def __call__(self, value: float) -> float:
        return self._middle if self._middle is not None else self._start + (value - self._low) * self._factor


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    return _Scale(low, high, start, end)


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - room, high + room
