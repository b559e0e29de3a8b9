# SPDX-License-Identifier: GPL-2.0-or-later
"""The page: one HTML file with everything in it, scripts included, that needs no network."""

from pathlib import Path
from typing import Any, Final

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from abi.errno import errno_name
from fuzz import events
from fuzz.report.campaign_data import CampaignData
from fuzz.story import clause_prose

_HERE: Final = Path(__file__).parent
_INK: Final = "#24292f"
_BLUE: Final = "#1f6feb"
_RED: Final = "#cf222e"


def write_page(data: CampaignData, path: Path) -> None:
    """Write the report of ``data``."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    charts = {"throughput": _throughput(data), "heat": _heat(data), "times": _times(data)}
    text = environment.get_template("page.html.j2").render(
        data=data,
        plotly=get_plotlyjs(),
        charts={name: chart.to_json() for name, chart in charts.items() if chart is not None},
        programs=sum(run.programs for run in data.runs),
        ops=sum(run.ops for run in data.runs),
        seconds=sum(run.seconds for run in data.runs),
        prose=clause_prose,
    )
    path.write_text(text, encoding="utf-8")


def _layout(**more: Any) -> go.Layout:
    return go.Layout(
        template="plotly_white", font={"color": _INK, "size": 13}, margin={"l": 70, "r": 20, "t": 20, "b": 60}, **more
    )


def _throughput(data: CampaignData) -> go.Figure | None:
    """Operations a second: over time where it was sampled, else of each run."""
    if not any(run.ops for run in data.runs):
        return None
    lines = []
    for run in data.runs:
        before_seconds, before_ops, xs, ys = 0.0, 0, [], []
        for number, seconds, ops in data.samples:
            if number == run.number and seconds > before_seconds:
                xs.append(seconds)
                ys.append((ops - before_ops) / (seconds - before_seconds))
                before_seconds, before_ops = seconds, ops
        if xs:
            lines.append(go.Scatter(x=xs, y=ys, mode="lines+markers", name=f"run {run.number}", line={"shape": "hv"}))
    if lines:
        axes = {"xaxis": {"title": "seconds into the run"}, "yaxis": {"title": "operations/s", "rangemode": "tozero"}}
        return go.Figure(lines, _layout(height=300, showlegend=len(lines) > 1, **axes))
    bars = go.Bar(
        x=[f"run {run.number}" for run in data.runs],
        y=[run.rate for run in data.runs],
        marker_color=_BLUE,
        hovertext=[f"{run.ops:,} operations in {run.seconds:.0f} s" for run in data.runs],
    )
    return go.Figure([bars], _layout(height=300, yaxis={"title": "operations/s"}))


def _heat(data: CampaignData) -> go.Figure | None:
    """Operations by answers; what happened besides is in the hover text."""
    if not data.coverage:
        return None
    verbs = sorted({verb for verb, _, _ in data.coverage})
    answers = sorted({errno for _, errno, _ in data.coverage}, reverse=True)
    counts = {(verb, errno): 0 for verb in verbs for errno in answers}
    beside: dict[tuple[str, int], list[str]] = {cell: [] for cell in counts}
    for (verb, errno, mask), times in sorted(data.coverage.items()):
        counts[verb, errno] += times
        beside[verb, errno].append(f"{events.names(mask)}: {times:,}")
    rows = [[counts[verb, errno] for errno in answers] for verb in verbs]
    columns = [errno_name(errno) if errno else "ok" for errno in answers]
    heat = go.Heatmap(
        x=columns,
        y=verbs,
        z=[[max(count, 0).bit_length() or None for count in row] for row in rows],
        text=[[f"{count:,}" if count else "" for count in row] for row in rows],
        customdata=[["<br>".join(beside[verb, errno]) for errno in answers] for verb in verbs],
        texttemplate="%{text}",
        hovertemplate="%{y} answered %{x}: %{text}<br>%{customdata}<extra></extra>",
        colorscale="Blues",
        showscale=False,
        xgap=1,
        ygap=1,
    )
    layout = _layout(height=90 + 24 * len(verbs), xaxis={"side": "top"}, yaxis={"autorange": "reversed"})
    layout.margin.t = 50
    layout.margin.l = 130
    layout.margin.b = 20
    return go.Figure([heat], layout)


def _times(data: CampaignData) -> go.Figure | None:
    """How long each finding took."""
    if not data.findings:
        return None
    found = sorted(data.findings, key=lambda one: one.seconds)
    marks = go.Scatter(
        x=[one.seconds for one in found],
        y=[f"{k}. {one.label}" for k, one in enumerate(found, 1)],
        mode="markers+text",
        text=[", ".join(one.names) or "new" for one in found],
        textposition="middle right",
        marker={"color": [_BLUE if one.names else _RED for one in found], "size": 10},
        hovertext=[one.what for one in found],
        cliponaxis=False,
    )
    axes = {
        "xaxis": {"title": "seconds", "rangemode": "tozero"},
        "yaxis": {"automargin": True, "autorange": "reversed"},
    }
    return go.Figure([marks], _layout(height=110 + 26 * len(found), **axes))
