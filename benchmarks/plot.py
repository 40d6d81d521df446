"""AP against latency as a picture for documents; needs matplotlib."""

from io import BytesIO

from matplotlib.figure import Figure

from benchmarks.chart import ap_interval, colour, measured_ap
from benchmarks.result import Report


def plot(report: Report) -> bytes:
    """A PNG, 800x500 pixels: each model with the 95 % intervals of its median and its AP."""
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for place, one, accuracy in measured_ap(report.results):
        x, y = one.latency.p50, accuracy.ap
        low, high = ap_interval(report.results, accuracy)
        across, up = [[max(x - one.low, 0)], [max(one.high - x, 0)]], [[y - low], [high - y]]
        axes.errorbar(x, y, xerr=across, yerr=up, fmt="o", capsize=3, color=colour(place))
        axes.annotate(one.name, (x, y), xytext=(6, 6), textcoords="offset points")
    axes.set_xlabel("median ms, image file to detections")
    axes.set_ylabel("AP")
    # room for the names
    axes.set_xlim(0, 1.3 * max((one.high for _, one, _ in measured_ap(report.results)), default=1))
    axes.grid(alpha=0.3)
    data = BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
