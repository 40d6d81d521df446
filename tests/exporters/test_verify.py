"""The gate passes equal outputs and refuses every kind of difference."""

import json
from dataclasses import replace

import numpy as np
import pytest
from graphs import CELLS, SCHEMA, metadata

from exporters.difference import LIMITS
from exporters.verify import compare
from rfdetr_edge.backends import TensorSpec
from rfdetr_edge.backends.fake import FakeSession
from rfdetr_edge.classes import named_classes
from rfdetr_edge.demo import photo_paths
from rfdetr_edge.images import write_image

QUERIES, SLOTS = 20, len(CELLS)
COLUMNS = len(SCHEMA.classes) * SCHEMA.widest
SHAPES = {"masks": (QUERIES, 8, 8), "keypoints": (QUERIES, COLUMNS, 8)}
EXTRAS = {"detection": (), "segmentation": ("masks",), "keypoint": ("keypoints",)}


def _metadata(task: str = "detection"):
    return metadata(resolution=(32, 32), num_select=30, task=task)


METADATA = _metadata().to_json()


def _outputs(seed: int = 0, task: str = "detection") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.2, 0.8, (1, QUERIES, 2))
    size = rng.uniform(0.05, 0.3, (1, QUERIES, 2))
    found = {
        "dets": np.concatenate([centre, size], axis=-1).astype(np.float32),
        "labels": rng.normal(-2, 2, (1, QUERIES, SLOTS)).astype(np.float32),
    }
    for name in EXTRAS[task]:
        found[name] = rng.normal(0, 1, (1, *SHAPES[name])).astype(np.float32)
    return found


def _session(outputs=None, function=None, batch=1, metadata_json=METADATA) -> FakeSession:
    float32 = np.dtype(np.float32)
    extras = EXTRAS[json.loads(metadata_json)["task"]]
    return FakeSession(
        function or (lambda feeds: outputs),
        inputs=(TensorSpec("input", (batch, 3, 32, 32), float32),),
        outputs=(
            TensorSpec("dets", (batch, QUERIES, 4), float32),
            TensorSpec("labels", (batch, QUERIES, SLOTS), float32),
            *(TensorSpec(name, (batch, *SHAPES[name]), float32) for name in extras),
        ),
        metadata_json=metadata_json,
    )


def _compare(candidate: dict[str, np.ndarray], reference=None, task="detection"):
    document = _metadata(task).to_json()
    sessions = (
        _session(outputs, metadata_json=document)
        for outputs in (reference or _outputs(task=task), candidate)
    )
    return compare(*sessions, photo_paths()[:1])


def test_equal_outputs_pass_with_every_ranked_pair():
    comparison = _compare(_outputs())
    assert comparison.passed
    assert comparison.pairs == 30
    assert max(comparison.worst[:2]) < 1e-6
    assert comparison.worst[2:] == (None,) * 4
    assert "mask" not in str(comparison)


def test_rounding_passes():
    candidate = _outputs()
    candidate["dets"] += 1e-6
    candidate["labels"] += 1e-5
    assert _compare(candidate).passed


def _shift_box(outputs):
    best = outputs["labels"].max(-1).argmax()
    outputs["dets"][0, best, 0] += 0.002


def _raise_score(outputs):
    # 0.012 in logits is over 1e-3 in score around 0.5
    outputs["labels"] += np.where(np.abs(outputs["labels"]) < 1, 0.012, 0).astype(np.float32)


def _shift_classes(outputs):
    outputs["labels"] = np.roll(outputs["labels"], 1, axis=-1)


def _lose_everything(outputs):
    outputs["labels"][:] = -20


def _invent_one(outputs):
    query = outputs["labels"].max(-1).argmin()
    outputs["labels"][0, query, 0] = 8


@pytest.mark.parametrize(
    "spoil", [_shift_box, _raise_score, _shift_classes, _lose_everything, _invent_one]
)
def test_every_kind_of_difference_fails(spoil):
    candidate = _outputs()
    spoil(candidate)
    comparison = _compare(candidate)
    assert not comparison.passed
    assert comparison.failures


@pytest.mark.parametrize("task", ["segmentation", "keypoint"])
def test_masks_and_keypoints_have_figures_and_may_round(task):
    candidate = _outputs(task=task)
    assert not any(_compare(candidate, task=task).worst)
    for array in candidate.values():
        array += 1e-5
    comparison = _compare(candidate, task=task)
    assert comparison.passed
    assert comparison.pairs == 30
    shown = str(comparison)
    assert ("mask IoU" in shown) == (task == "segmentation")
    assert ("covariance" in shown) == (task == "keypoint")


def _best(outputs) -> tuple[int, int]:
    """Query and slot of the best pair."""
    return np.unravel_index(outputs["labels"][0].argmax(), (QUERIES, SLOTS))


def _flip_a_cell(outputs):
    mask = outputs["masks"][0, _best(outputs)[0]]
    row = np.unravel_index(np.abs(mask).argmax(), mask.shape)
    mask[row] *= -1


def _empty_a_mask(outputs):
    outputs["masks"][0, _best(outputs)[0]] = -1


@pytest.mark.parametrize("spoil", [_flip_a_cell, _empty_a_mask])
def test_one_mask_that_differs_fails(spoil):
    candidate = _outputs(task="segmentation")
    spoil(candidate)
    comparison = _compare(candidate, task="segmentation")
    assert not comparison.passed
    assert comparison.pairs == 30
    assert max(comparison.worst[:2]) < 1e-6
    assert comparison.worst.mask > LIMITS.mask
    assert "1 - mask IoU" in comparison.failures[0]


def test_cells_on_the_outline_do_not_count():
    reference, candidate = _outputs(task="segmentation"), _outputs(task="segmentation")
    for outputs, logit in ((reference, 1e-4), (candidate, -1e-4)):
        outputs["masks"][:] = -5
        outputs["masks"][..., 3, 3] = 2  # one cell; its neighbour would halve the IoU
        outputs["masks"][..., 3, 4] = logit
    assert _compare(candidate, reference, "segmentation").worst.mask == 0
    candidate["masks"][..., 3, 4] = -0.1
    reference["masks"][..., 3, 4] = 0.1
    assert _compare(candidate, reference, "segmentation").worst.mask == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("channel", "change", "part"),
    [(0, 0.002, "points"), (1, 0.002, "points"), (2, 0.02, "confidence"), (4, 0.02, "covariance")],
)
def test_one_point_that_differs_fails(channel, change, part):
    reference, candidate = _outputs(task="keypoint"), _outputs(task="keypoint")
    for outputs in (reference, candidate):
        outputs["labels"][0, 4, 2] = 9  # a class with one point, surely the best pair
        outputs["keypoints"][0, 4, 2 * SCHEMA.widest, 2] = 0  # the sigmoid is steepest
    candidate["keypoints"][0, 4, 2 * SCHEMA.widest, channel] += change
    comparison = _compare(candidate, reference, "keypoint")
    assert not comparison.passed
    assert comparison.pairs == 30
    assert len(comparison.failures) == 2  # seen from both sides
    over = comparison.worst._replace(mask=0)._asdict()
    assert over.pop(part) > LIMITS._asdict()[part]
    assert max(over.values()) < 1e-6


def test_a_covariance_that_only_one_side_has_fails():
    candidate = _outputs(task="keypoint")
    candidate["keypoints"][..., 4] = 500  # beyond what float32 holds
    comparison = _compare(candidate, task="keypoint")
    assert not comparison.passed
    assert comparison.worst.covariance == np.inf
    assert _compare(candidate, candidate, "keypoint").worst.covariance == 0


def test_padded_columns_do_not_count():
    candidate = _outputs(task="keypoint")
    candidate["keypoints"][:, :, SCHEMA.widest : 2 * SCHEMA.widest] += 7  # the class without points
    assert not any(_compare(candidate, task="keypoint").worst)


def test_uncertain_points_do_not_hide_who_was_ranked_last():
    """Certain points raise the last ranked pair far above the cut-off of the class scores."""
    reference = _outputs(task="keypoint")
    reference["labels"][:] = np.linspace(2, -2, QUERIES * SLOTS).reshape(1, QUERIES, SLOTS)
    query, slot = divmod(29, SLOTS)
    reference["keypoints"][0, query : query + 2, :, 4:7] = [9, 0, 9]
    candidate = {name: array.copy() for name, array in reference.items()}
    # the pairs at places 30 and 31 change places by rounding
    tied = reference["labels"][0, query, slot]
    reference["labels"].flat[30] = tied - 1e-5
    candidate["labels"].flat[30] = tied + 1e-5
    comparison = _compare(candidate, reference, "keypoint")
    assert comparison.passed
    assert comparison.pairs == 29


def test_statements_that_differ_fail_before_anything_runs():
    schema = replace(SCHEMA, trace_alpha=0.5)
    points = _metadata("keypoint")
    renamed = replace(SCHEMA.classes[2], names=("nose",))
    for changed, message in (
        (replace(points, keypoints=schema), "the trace_alpha: 0.5 instead of 0.2"),
        (
            replace(points, keypoints=replace(SCHEMA, classes=(*SCHEMA.classes[:2], renamed))),
            "the keypoint names: ",
        ),
        (_metadata("segmentation"), "the task: segmentation instead of keypoint"),
    ):
        reference, candidate = (
            _session(_outputs(task=one.task), metadata_json=one.to_json())
            for one in (points, changed)
        )
        comparison = compare(reference, candidate, photo_paths()[:1])
        assert not comparison.passed
        assert comparison.images == 0
        assert message in str(comparison)


def _by_image(feeds):
    """Boxes that follow the mean of the left half of each image."""
    means = feeds["input"][..., :16].mean(axis=(1, 2, 3))
    each = _outputs()
    moved = [each["dets"] + [[[0.01 * mean, 0, 0, 0]]] for mean in means]
    return {
        "dets": np.concatenate(moved).astype(np.float32),
        "labels": np.repeat(each["labels"], len(means), axis=0),
    }


def _all_as_the_first(feeds):
    return {name: array[:1].repeat(len(array), 0) for name, array in _by_image(feeds).items()}


@pytest.mark.parametrize("batch", [3, None])
def test_every_image_of_a_batch_is_compared(batch):
    reference, photos = _session(function=_by_image), photo_paths()[:1]
    passed = compare(reference, _session(function=_by_image, batch=batch), photos)
    assert passed.passed
    assert passed.pairs == 30 * (3 if batch else 1 + 3)
    mixed = compare(reference, _session(function=_all_as_the_first, batch=batch), photos)
    assert not mixed.passed


def test_classes_of_other_names_fail():
    classes = named_classes("background-last", ["WBC", "RBC", "Platelets"][: SLOTS - 1])
    renamed = replace(metadata(resolution=(32, 32), num_select=30), classes=classes).to_json()
    candidate = _session(_outputs(), metadata_json=renamed)
    comparison = compare(_session(_outputs()), candidate, photo_paths()[:1])
    assert not comparison.passed
    assert "the classes: WBC" in str(comparison)


def test_flat_scores_do_not_excuse_every_pair():
    reference, candidate = _outputs(), _outputs()
    for outputs in (reference, candidate):
        outputs["labels"] = -4 + 1e-3 * outputs["labels"]
    assert _compare(candidate, reference).passed
    candidate["dets"][:, 1:, :2] += 0.1
    comparison = _compare(candidate, reference)
    assert not comparison.passed
    assert "at the cut-off" in str(comparison)


@pytest.mark.parametrize(("shift", "passed"), [(1e-6, True), (1e-3, False)])
@pytest.mark.parametrize("side", [1, 4000])
def test_boxes_are_judged_alike_whatever_the_size_of_the_photo(tmp_path, side, shift, passed):
    write_image(tmp_path / "flat.png", np.zeros((side, side, 3), np.uint8))
    reference, candidate = _outputs(), _outputs()
    for outputs in (reference, candidate):
        outputs["dets"][..., 2:] = 5e-4
    candidate["dets"][..., :2] += np.float32(shift)
    comparison = compare(_session(reference), _session(candidate), [tmp_path / "flat.png"])
    assert comparison.passed is passed


def test_a_pair_may_only_be_missing_at_the_cut_off():
    reference = _outputs()
    order = np.sort(reference["labels"].ravel())[::-1]
    last, next_one = order[29], order[30]
    # the last ranked pair and the first one that is not change places within the tolerance
    tied = reference["labels"].copy()
    tied[reference["labels"] == next_one] = last - 1e-4
    swapped = tied.copy()
    swapped[reference["labels"] == last] = last - 2e-4
    comparison = _compare({**reference, "labels": swapped}, reference={**reference, "labels": tied})
    assert comparison.passed
    assert comparison.pairs == 29


def test_an_undecided_reference_judges_nothing():
    noisy_seen = []

    def undecided(feeds):
        # what it finds turns on the last bits of its input, as a tie in a ranking does
        noisy_seen.append(feeds["input"])
        return _outputs(seed=len({array.tobytes() for array in noisy_seen}) % 7)

    comparison = compare(
        _session(function=undecided), _session(_outputs(seed=99)), photo_paths()[:1]
    )
    assert not comparison.passed
    assert comparison.unstable == 1
    assert "nothing was compared" in str(comparison)
