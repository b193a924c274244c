"""The picture of a run: backlog, actors and slots over time, one above the other."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scale_trace.trace import Trace
from scale_trace.verdict import Summary

WIDTH_PX, HEIGHT_PX, DOTS_PER_INCH = 1400, 800, 100
# Of the palette of Okabe and Ito, which people who are colour-blind can tell apart, with tints.
VERMILION, VERMILION_TINT = "#D55E00", "#F5CDB0"
BLUE, SKY_TINT = "#0072B2", "#9AD2F2"
GREEN_TINT = "#66C4AB"
INK, GREY, LINE, BAND = "#222222", "#666666", "#DDDDDD", "#F2F2F2"
LEFT = 0.008
STYLE = {
    "font.size": 12,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 12,
}


def draw(trace: Trace, run: Summary, file: Path) -> None:
    """Write the picture as a PNG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_PX / DOTS_PER_INCH, HEIGHT_PX / DOTS_PER_INCH))
        figure.set_layout_engine("constrained", rect=(0.003, 0, 0.995, 0.86), hspace=0.02)
        figure.text(LEFT, 0.953, _title(trace), fontsize=18, weight="bold")
        figure.text(LEFT, 0.916, _numbers(trace, run), fontsize=13)
        figure.text(LEFT, 0.885, _settings(trace), color=GREY)
        panels = figure.subplots(3, sharex=True, height_ratios=(3, 3, 2))
        for panel, fill in zip(panels, (_backlog, _actors, _slots), strict=True):
            fill(panel, trace)
            _finish(panel, trace)
        _name_phases(panels[0], trace)
        panels[-1].set_xlabel("Time (s)")
        figure.align_ylabels()
        figure.savefig(file, dpi=DOTS_PER_INCH, format="png", pil_kwargs={"optimize": True})


def _title(trace: Trace) -> str:
    return f"A pool of {trace.actors.min} to {trace.actors.max} actors follows its load"


def _numbers(trace: Trace, run: Summary) -> str:
    told = [f"{run.tasks:,} tasks, {run.results:,} results"]
    if run.grew_s is not None:
        told.append(f"{trace.actors.max} actors running after {run.grew_s:.0f} s")
    told.append(f"burst worked off after {run.worked_off_s:.0f} s")
    if run.shrank_s is not None:
        told.append(f"back to {trace.actors.min} actors {run.shrank_s:.0f} s after the last task")
    return "  ·  ".join(told)


def _settings(trace: Trace) -> str:
    actors = trace.actors
    return (
        f"actors: {{min: {actors.min}, max: {actors.max}, "
        f"target_utilization: {actors.target_utilization:g}, "
        f"scale_down_delay_s: {actors.scale_down_delay_s:g}}}  ·  {trace.slots} slots an actor  ·  "
        f"an answer of the model takes {trace.answer_s:g} s"
    )


def _backlog(panel: Axes, trace: Trace) -> None:
    times = [it.at_s for it in trace.samples]
    backlog = [it.pending for it in trace.samples]
    panel.fill_between(times, backlog, color=VERMILION_TINT, linewidth=0)
    panel.plot(times, backlog, color=VERMILION, linewidth=2, label="waiting in NATS")
    panel.set_ylabel("Backlog (tasks)")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.legend(loc="upper right")


def _actors(panel: Axes, trace: Trace) -> None:
    times = [it.at_s for it in trace.samples]
    running = [it.running for it in trace.samples]
    wanted = [it.wanted for it in trace.samples]
    panel.step(times, wanted, where="post", color=BLUE, linewidth=2.2, label="wanted")
    panel.fill_between(times, running, step="post", color=SKY_TINT, linewidth=0, label="running")
    panel.set_ylabel("Actors")
    panel.set_yticks(range(0, trace.actors.max + 1, 2))
    _legend_above(panel)


def _slots(panel: Axes, trace: Trace) -> None:
    times = [it.at_s for it in trace.samples]
    there = [it.slots for it in trace.samples]
    used = [it.slots_used for it in trace.samples]
    panel.step(times, there, where="post", color=GREY, linewidth=1.5, label="in all")
    panel.fill_between(times, used, step="post", color=GREEN_TINT, linewidth=0, label="in use")
    panel.set_ylabel("Slots")
    _legend_above(panel)


def _legend_above(panel: Axes) -> None:
    panel.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, borderaxespad=0)


def _finish(panel: Axes, trace: Trace) -> None:
    """Mark the phases, and leave no gap between the axes and what is drawn."""
    for phase in trace.phases.in_order[1::2]:
        panel.axvspan(phase.begin_s, phase.end_s, color=BAND, linewidth=0, zorder=0)
    panel.set_xlim(0, trace.phases.after.end_s)
    panel.set_ylim(bottom=0)
    panel.grid(axis="y", color=LINE, linewidth=0.8)


def _name_phases(panel: Axes, trace: Trace) -> None:
    for phase in trace.phases.in_order:
        middle_s = (phase.begin_s + phase.end_s) / 2
        above = panel.get_xaxis_transform()
        panel.text(middle_s, 1.02, phase.load, transform=above, ha="center", va="bottom")
