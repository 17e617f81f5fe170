"""Charts as PNG files, drawn without a display or a network, and written whole."""

import json
from pathlib import Path

from exam.core.files import write_atomically
from exam.report.charts import CURRENT, Chart

WIDTH, HEIGHT = 480, 320  # of a chart
INK = "#333333"  # where a page would give its text's colour


def write_png(charts: list[Chart], path: Path) -> None:
    """Draw charts side by side, each below its title."""
    import vl_convert

    first = charts[0]["spec"]
    whole = {
        "$schema": first["$schema"],
        "background": "white",
        "config": first["config"],
        "hconcat": [_panel(chart) for chart in charts],
    }
    text = json.dumps(whole).replace(f'"{CURRENT}"', f'"{INK}"')
    with write_atomically(path) as temporary:
        temporary.write_bytes(vl_convert.vegalite_to_png(text, ppi=150, allowed_base_urls=[]))


def _panel(chart: Chart) -> Chart:
    """A chart's own part of a specification, in a size of its own."""
    apart = ("$schema", "background", "config", "width", "height")
    own = {name: value for name, value in chart["spec"].items() if name not in apart}
    title = {"text": chart["title"], "subtitle": chart["note"], "anchor": "start"}
    return {"title": title, "width": WIDTH, "height": HEIGHT, **own}
