"""The mask benchmark: like figures of like work, and memory that is really measured."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from benchmarks.masks import FRAME, GRID, KEPT, WAYS, blobs, frames, main, peak_mb, rle


def test_blobs_are_like_masks_of_instances() -> None:
    logits = blobs(np.random.default_rng(1), 40)
    assert logits.shape == (40, GRID, GRID)
    cells = (logits > 0).sum(axis=(1, 2))
    assert np.count_nonzero(cells) > 35
    assert cells.max() > 2 * np.median(cells)
    assert (logits < 0).any(axis=(1, 2)).all()


def test_both_ways_find_the_same_masks() -> None:
    logits = blobs(np.random.default_rng(2), 6)
    whole = np.stack(frames(logits))
    assert whole.shape == (6, *FRAME)
    kept = coco_mask.decode(rle(logits)).transpose(2, 0, 1)
    assert kept.any(axis=(1, 2)).all()
    assert np.mean(kept != whole[KEPT]) < 1e-4  # OpenCV rounds its weights otherwise


def test_a_peak_is_what_a_run_holds() -> None:
    held, dropped = peak_mb("frames"), peak_mb("frames, dropped")
    assert held > 300 * FRAME[0] * FRAME[1] / 1e6 > 20 * dropped > 0
    assert peak_mb("rle") < 60


def test_an_unknown_way_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["masks", "--peak-of", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        main()
    message = capsys.readouterr().err
    assert all(way in message for way in WAYS)
