"""What there is to know of an artifact of lower precision: one JSON file and one HTML page.

The page stands alone: its pictures and its chart are inside, and it asks no server for anything.
"""

import base64
import html
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from exporters.agreement import CONFIDENT, agreement
from exporters.formats import Format, format_of
from exporters.lossy import Judgement
from exporters.sensitivity import Row
from exporters.trials import Outcome, Trial
from rfdetr_edge.backends import open_session, proving_providers
from rfdetr_edge.detections import Detections
from rfdetr_edge.draw import draw
from rfdetr_edge.files import replacing
from rfdetr_edge.metadata import ModelMetadata

_WORST = 3  # pictures
_PICTURE_WIDTH = 560
_RUNS = 15
_WARM_UP = 3


def write_report(
    stem: Path,
    source: Path,
    artifact: Path,
    metadata: ModelMetadata,
    trial: Trial,
    judgement: Judgement,
    counts: Mapping[str, int],
    rows: Sequence[Row],
) -> None:
    """Writes `<stem>.report.json` and `<stem>.report.html`.

    source, artifact: the FP32 file and what was made of it. metadata: of the artifact. trial,
    judgement: how it was judged. counts: of FP16, what was done to the graph. rows: of INT8, what
    each layer costs.
    """
    kind = format_of(artifact)
    assert kind is not None  # it was made by one of our own
    facts = _facts(kind, source, artifact, metadata, judgement, counts, rows)
    pictures = _pictures(trial, judgement)
    for suffix, text in (
        (".report.json", json.dumps(facts, indent=1, allow_nan=False)),
        (".report.html", _page(stem.name, facts, pictures)),
    ):
        with replacing(stem.with_name(stem.name + suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _facts(
    kind: Format,
    source: Path,
    artifact: Path,
    metadata: ModelMetadata,
    judgement: Judgement,
    counts: Mapping[str, int],
    rows: Sequence[Row],
) -> dict[str, Any]:
    seen = kind.inspected(artifact)
    sizes = [path.stat().st_size for path in (source, artifact)]
    facts: dict[str, Any] = {
        "variant": metadata.variant,
        "precision": metadata.precision,
        "passed": judgement.passed,
        "failures": list(judgement.failures),
        "bytes": {"fp32": sizes[0], metadata.precision: sizes[1], "ratio": sizes[1] / sizes[0]},
        "weights": dict(seen.weights),
        "latency_ratio": latency_ratio(source, artifact, metadata),
        "counts": {**kind.counts(artifact), **counts},
        "converter": metadata.provenance.converter,
        "calibration": None,
        "agreement": None,
        "drops": {},
        "elsewhere": {name: _seen(outcome) for name, outcome in judgement.elsewhere.items()},
        "layers": [asdict(row) for row in rows],
    }
    if metadata.provenance.calibration is not None:
        facts["calibration"] = asdict(metadata.provenance.calibration)
    if judgement.outcome is not None:
        facts |= _seen(judgement.outcome)
    return facts


def _seen(outcome: Outcome) -> dict[str, Any]:
    return {
        "agreement": asdict(outcome.agreement),
        "drops": {
            kind: {
                name: None if math.isnan(value) else value
                for name, value in {**asdict(drop), "points": drop.points}.items()
            }
            for kind, drop in outcome.drops.items()
        },
    }


def latency_ratio(source: Path, artifact: Path, metadata: ModelMetadata) -> float:
    """Median time of the artifact's run over the source's: on one thread, taken in turns."""
    feed = np.zeros((1, 3, *metadata.input.resolution), np.float32)
    sessions = [
        open_session(path, provider=proving_providers(path)[0], threads=1)
        for path in (source, artifact)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_WARM_UP + _RUNS):
        for session, spent in zip(sessions, times, strict=True):
            batch = session.inputs[0].shape[0] or 1
            start = time.perf_counter()
            session.run({session.inputs[0].name: np.repeat(feed, batch, axis=0)})
            spent.append(time.perf_counter() - start)
    for session in sessions:
        session.close()
    first, second = (float(np.median(spent[_WARM_UP:])) for spent in times)
    return second / first


def _pictures(trial: Trial, judgement: Judgement) -> list[tuple[str, str, str]]:
    """The images with the largest disagreement: name, and both pictures as JPEG in base64."""
    if judgement.outcome is None:
        return []
    pairs = list(zip(trial.reference, judgement.outcome.found, strict=True))
    apart = [agreement([pair]).disagreement for pair in pairs]
    worst = sorted(range(len(pairs)), key=lambda number: -apart[number])[:_WORST]
    chosen = {}
    for number, (name, image) in enumerate(
        zip(trial.images.images, trial.images.pixels(), strict=True)
    ):
        if number in worst:
            if image.dtype != np.uint8:
                image = np.rint(image * 255).astype(np.uint8)
            left, right = (_jpeg(image, found) for found in pairs[number])
            chosen[number] = Path(name).name, left, right
    return [chosen[number] for number in worst]


def _jpeg(image: NDArray[np.uint8], found: Detections) -> str:
    drawn = draw(np.ascontiguousarray(image), found[found.confidence >= CONFIDENT])
    height, width = drawn.shape[:2]
    if width > _PICTURE_WIDTH:
        size = (_PICTURE_WIDTH, round(height * _PICTURE_WIDTH / width))
        drawn = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return base64.b64encode(encoded.tobytes()).decode()


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { padding: .15em .8em .15em 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #4a7fb5; height: .8em } .float .bar { background: #c9803a }
.passed { color: #1a7f37 } .refused { color: #b3261e } figure { margin: 1em 0 }
.pair { display: flex; gap: 8px } .pair img { max-width: 49% }
"""


def _page(name: str, facts: Mapping[str, Any], pictures: Sequence[tuple[str, str, str]]) -> str:
    verdict = "passed" if facts["passed"] else "refused"
    parts = [
        f"<h1>{html.escape(name)}: {facts['variant']} in {facts['precision']}</h1>",
        f"<p class={verdict}><b>{verdict}</b></p>",
        *(f"<p class=refused>{html.escape(line)}</p>" for line in facts["failures"]),
        _table(_summary(facts)),
    ]
    if facts["layers"]:
        parts.append(_chart(facts["layers"]))
    if pictures:
        parts.append("<h2>Where the two disagree most</h2><p>Left FP32, right this artifact.</p>")
        parts += [
            f"<figure><div class=pair><img src='data:image/jpeg;base64,{left}'>"
            f"<img src='data:image/jpeg;base64,{right}'></div>"
            f"<figcaption>{html.escape(title)}</figcaption></figure>"
            for title, left, right in pictures
        ]
    title = html.escape(name)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _summary(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    sizes = facts["bytes"]
    rows = [
        ("size", f"{sizes[facts['precision']] / 1e6:.2f} MB, {sizes['ratio']:.2f} of FP32"),
        ("latency", f"{facts['latency_ratio']:.2f} of FP32 (one thread, this machine)"),
        ("weights", ", ".join(f"{n:,} in {kind}" for kind, n in facts["weights"].items())),
    ]
    if facts["converter"]:
        rows.append(("FP32 graph made by", facts["converter"]))
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in facts["counts"].items()]
    rows += _seen_rows(facts)
    for provider, seen in facts["elsewhere"].items():
        rows += [(f"{name}, on {provider}", text) for name, text in _seen_rows(seen)]
    if calibration := facts["calibration"]:
        rows.append(
            ("calibration", f"{calibration['images']} images, SHA-256 {calibration['sha256']}")
        )
    return rows


def _seen_rows(seen: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for kind, drop in seen["drops"].items():
        interval = ""
        if drop["low"] is not None:
            interval = f" (95 % interval {drop['low']:.2f} to {drop['high']:.2f})"
        rows.append(
            (
                f"{kind} AP",
                f"{drop['reference']:.4f} to {drop['candidate']:.4f}: "
                f"{drop['points']:.2f} points lost{interval}",
            )
        )
    if agreed := seen["agreement"]:
        rows.append(
            (
                "confident detections",
                f"{agreed['wanted'] - agreed['lost']} of {agreed['wanted']} kept, "
                f"{agreed['invented']} invented, on {agreed['images']} images",
            )
        )
    return rows


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = (f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{''.join(cells)}</table>"


def _chart(layers: Sequence[Mapping[str, Any]]) -> str:
    """One bar a block, or a layer where these were tried; what stays float in another colour."""
    tried = any(row["cost"] is not None for row in layers)
    costs: dict[str, tuple[float, bool]] = {}
    for row in layers:
        name, cost = (row["layer"], row["cost"]) if tried else (row["block"], row["block_cost"])
        costs[name] = (cost, row["quantized"])
    largest = max(cost for cost, _ in costs.values()) or 1.0
    lines = [
        f"<tr class={'int8' if quantized else 'float'}><td>{html.escape(name)}</td>"
        f"<td class=number>{cost:.4f}</td><td>{'int8' if quantized else 'float'}</td>"
        f"<td style='width: 400px'><div class=bar style='width: {100 * cost / largest:.1f}%'></div>"
        "</td></tr>"
        for name, (cost, quantized) in sorted(costs.items(), key=lambda item: -item[1][0])
    ]
    return (
        "<h2>What each part costs in INT8</h2><p>How far detections move when it alone is "
        f"quantised, 0 to 1.</p><table>{''.join(lines)}</table>"
    )
