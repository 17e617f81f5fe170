"""Charts as Vega-Lite specifications, drawn in a page or as PNG files."""

import json
from pathlib import Path
from typing import Any

import altair as alt

from exam.core.files import write_atomically
from exam.metrics import find_metric, metric_name, metric_title

HEIGHT = 220  # in a page
PNG_WIDTH, PNG_HEIGHT = 480, 320
FIRST, SECOND = "#3b82c4", "#d9822b"  # distinct in both modes, and for the colour-blind
COLOURS = [FIRST, SECOND, "#4c9f70", "#a05195", "#b8a123", "#6c757d", "#c44e52", "#2a9d9d"]
CURRENT = "currentColor"
INK = "#333333"  # replaces the page's colour in a PNG
ON_THE_DIAGONAL = "On the diagonal, probabilities mean what they say."
Chart = dict[str, Any]  # title, note, spec
Point = dict[str, Any]


def score_chart(rows: list[dict[str, Any]]) -> Chart:
    """Draw every row's score with its interval."""
    metric = str(find_metric(rows[0]))
    data = [
        {"system": row["system"], "map": row[metric], "low": row["ci"][0], "high": row["ci"][1]}
        for row in rows
    ]
    title = f"{metric_title(metric)}, 95 % interval"
    base = _base(data).encode(y=alt.Y("system:N", sort=None, title=None))
    x = alt.X("low:Q", title=title, scale=alt.Scale(zero=False, nice=True))
    bars = base.mark_rule(color=CURRENT).encode(x=x, x2="high:Q")
    dots = base.mark_point(filled=True, size=70, color=FIRST).encode(
        x="map:Q", tooltip=["system:N", *_rounded("map", "low", "high")]
    )
    return _chart("Beside the baselines", "", bars + dots, height=24 * len(rows) + 20)


def learning_chart(history: list[dict[str, Any]], k: int) -> Chart | None:
    """Draw the training loss over steps, and MAP@k on the fold that chooses the checkpoint."""
    metric = metric_name(k)
    title, key = metric_title(metric), f"eval_{metric}"
    losses = [{"step": e["step"], "value": e["loss"]} for e in history if "loss" in e]
    scores = [{"step": e["step"], "value": e[key]} for e in history if key in e]
    if not losses:
        return None

    def line(points: list[Point], axis: str, scale: Any, **style: Any) -> Any:
        y = alt.Y("value:Q", title=axis, scale=scale)
        return (
            _base(points)
            .mark_line(point=True, **style)
            .encode(x=alt.X("step:Q", title="step"), y=y)
        )

    loss = line(losses, "training loss", alt.Scale(zero=False), color=FIRST)
    note = "Loss of the training questions."
    if not scores:
        return _chart("Learning curve", note, loss)
    # For a single checkpoint, a fitted axis would have one rounded tick: show the whole range.
    whole = alt.Scale(domain=[0, 1])
    score = line(scores, f"{title}, checkpoint fold", whole, color=SECOND, strokeDash=[4, 2])
    both = alt.layer(loss, score).resolve_scale(y="independent")
    return _chart("Learning curve", f"{note} Dashed: {title} where checkpoints are chosen.", both)


def calibration_chart(bins: list[dict[str, Any]], error: float) -> Chart:
    """Draw the accuracy of the first choice over its probability."""
    data = [_interval(b["accuracy"], x=b["probability"], n=b["n"]) for b in bins]
    return _calibration(f"{ON_THE_DIAGONAL} Mean gap (ECE): {error:.3f}.", data)


def compare_calibration(readers: dict[str, dict[str, Any]]) -> Chart:
    """Draw the calibration of several readers (`reliability`, `ece`), a colour for each."""
    data = [
        _interval(
            b["accuracy"], x=b["probability"], n=b["n"], name=f"{name} (ECE {reader['ece']:.3f})"
        )
        for name, reader in readers.items()
        for b in reader["reliability"]
    ]
    return _calibration(ON_THE_DIAGONAL, data, color=_color_by_name(len(readers)))


def _calibration(note: str, data: list[Point], **color: Any) -> Chart:
    """Draw points beside the diagonal."""
    diagonal = _base([{"x": 0, "y": 0}, {"x": 1, "y": 1}]).encode(
        x=alt.X("x:Q", title="probability of the first choice"),
        y=alt.Y("y:Q", title="share right"),
    )
    line = diagonal.mark_line(color=CURRENT, opacity=0.4, strokeDash=[3, 3])
    return _chart("Calibration", note, line + _points(data, "x:Q", **color))


def bar_by_group(title: str, note: str, label: str, points: list[Point]) -> Chart:
    """Draw a share with its interval for each group (`group`, `value`, `ci`, `n`)."""
    data = [_interval(p, x=f"{p['group']}", n=p["n"]) for p in points]
    return _chart(title, note, _points(data, alt.X("x:N", sort=None, title=label)))


def line_chart(
    title: str, note: str, label: str, unit: str, lines: dict[str, list[Point]], *, log: bool
) -> Chart:
    """Draw means over a number (`at`, `value`, `ci`), a line for each name."""
    data = [_interval(p, x=p["at"], name=name) for name, line in lines.items() for p in line]
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale()
    x = alt.X("x:Q", title=label, scale=scale)
    base = _base(data).encode(x=x, color=_color_by_name(len(lines)))
    y = alt.Y("low:Q", title=unit, scale=alt.Scale(zero=False))
    band = base.mark_area(opacity=0.18).encode(y=y, y2="high:Q")
    line = base.mark_line(point=True).encode(
        y="value:Q", tooltip=["name:N", "x:Q", *_rounded("value", "low", "high")]
    )
    return _chart(title, note, band + line)


def depth_charts(curves: dict[str, Any]) -> list[Chart]:
    """Draw recall and reader-free MAP@k over the number of passages, a line for each contexts."""
    charts = []
    for metric in dict.fromkeys(metric for curve in curves.values() for metric in curve):
        lines = {
            system: [{"at": point["depth"], **point} for point in curve[metric]]
            for system, curve in curves.items()
            if curve[metric]
        }
        if metric == "recall":
            title, unit = "Recall over depth", "recall"
            note = "Whether the question's own article is there."
        else:
            unit = metric_title(metric)
            title, note = f"Reader-free {unit} over depth", "By the words that options share."
        if lines:
            charts.append(line_chart(title, note, "passages", unit, lines, log=True))
    return charts


def _color_by_name(number: int) -> Any:
    """Encode names as colours, with a legend if there are several."""
    legend = alt.Legend(orient="bottom", columns=1, labelLimit=440) if number > 1 else None
    scale = alt.Scale(range=COLOURS)
    return alt.Color("name:N", title=None, sort=None, scale=scale, legend=legend)


def _points(data: list[Point], x: Any, **more: Any) -> Any:
    base = _base(data).encode(x=x, **more)
    bars = base.mark_rule(color=FIRST).encode(y=alt.Y("low:Q", title="share right"), y2="high:Q")
    dots = base.mark_point(filled=True, size=60, color=FIRST).encode(
        y="value:Q", tooltip=["n:Q", *_rounded("value", "low", "high")]
    )
    return bars + dots


def _interval(mean: dict[str, Any], **more: Any) -> Point:
    return {"value": mean["value"], "low": mean["ci"][0], "high": mean["ci"][1], **more}


def _rounded(*names: str) -> list[Any]:
    return [alt.Tooltip(f"{name}:Q", format=".3f") for name in names]


def _base(rows: list[Point]) -> Any:
    untyped: Any = alt.Data
    return alt.Chart(untyped(values=rows))


def _chart(title: str, note: str, chart: Any, height: int = HEIGHT) -> Chart:
    """Return a specification as wide as its container, in the colours of the page."""
    text = dict.fromkeys(("labelColor", "titleColor"), CURRENT)
    lines = dict.fromkeys(("tickColor", "domainColor", "gridColor"), CURRENT)
    styled = (
        chart.properties(width="container", height=height, background="transparent")
        .configure_view(strokeOpacity=0)
        .configure_axis(**text, **lines, gridOpacity=0.12, labelLimit=170)
        .configure_axisX(labelAngle=0)
        .configure_legend(**text)
    )
    return {"title": title, "note": note, "spec": styled.to_dict()}


def write_png(charts: list[Chart], path: Path) -> None:
    """Draw charts side by side, each below its title."""
    import vl_convert

    panels = [_panel(chart) for chart in charts]
    shared = {name: charts[0]["spec"][name] for name in ("$schema", "config")}
    row = {**shared, "background": "white", "hconcat": panels}
    text = json.dumps(row).replace(f'"{CURRENT}"', f'"{INK}"')
    with write_atomically(path) as temporary:
        temporary.write_bytes(vl_convert.vegalite_to_png(text, ppi=150, allowed_base_urls=[]))


def _panel(chart: Chart) -> Chart:
    """Return one chart of a row, without the settings that the row has for all."""
    shared = ("$schema", "background", "config", "width", "height")
    spec = {name: value for name, value in chart["spec"].items() if name not in shared}
    title = {"text": chart["title"], "subtitle": chart["note"], "anchor": "start"}
    return {"title": title, "width": PNG_WIDTH, "height": PNG_HEIGHT, **spec}
