"""Plots as PNG files, drawn without a display and written whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exam.files import atomic


@contextmanager
def drawn(path: Path, size: tuple[float, float] = (7, 4), columns: int = 1) -> Iterator[Any]:
    """The axes of a plot (a list where there are several columns), saved when they are drawn."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (axes,) = plt.subplots(1, columns, squeeze=False, figsize=size, layout="constrained")
    for axis in axes:
        axis.grid(visible=True, alpha=0.3)
    yield axes[0] if columns == 1 else axes
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    plt.close(figure)


def with_interval(
    axis: Any, places: list[float], found: list[dict[str, Any]], **style: Any
) -> None:
    """A line of means (`value` or `map_at_3`) with their 95 % intervals as a band."""
    values = [point.get("value", point.get("map_at_3")) for point in found]
    low, high = ([point["ci"][end] for point in found] for end in (0, 1))
    axis.plot(places, values, marker=".", **style)
    axis.fill_between(places, low, high, alpha=0.15)


def errors(found: list[dict[str, Any]]) -> list[list[float]]:
    """How far each interval reaches below and above its mean, as error bars take it."""
    values = [point.get("value", point.get("map_at_3")) for point in found]
    return [
        [abs(point["ci"][end] - value) for point, value in zip(found, values, strict=True)]
        for end in (0, 1)
    ]
