"""Checkpoints: what is written is read back, and every kind of file upstream left behind opens."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints import filled_weights, save_filled
from fill import fill_state_dict

import rfdetr_edge
from rfdetr_edge.classes import COCO_NAMES, coco_classes, named_classes, with_slots
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.keypoint_schema import (
    ClassKeypoints,
    KeypointSchema,
    class_keypoints,
    numbered_schema,
)
from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint import build_model, file_weights, load_checkpoint, save_checkpoint
from trainer.checkpoint_names import from_file_names, to_file_names
from trainer.config import TrainConfig, model_config
from trainer.fit import fit
from trainer.model.rfdetr import RFDETR

GOLDEN = Path(__file__).parent.parent / "golden"
NANO = json.loads((GOLDEN / "manifests" / "nano.json").read_text())
CELLS = named_classes("background-last", ["RBC", "WBC"], [4, 9])
NUMBERED = ["class_0", "class_1"]


@pytest.fixture(scope="module")
def nano() -> dict[str, torch.Tensor]:
    """Weights of nano under upstream's names, 91 slots."""
    filled = fill_state_dict(NANO)
    return {name: torch.from_numpy(array) for name, array in filled.items()}


def _save(path: Path, **content: object) -> Path:
    torch.save(content, path)
    return path


def test_what_is_written_is_read_back(tmp_path):
    model = RFDETR(VARIANTS["tiny"], slots=3)
    model.encoder.fix_grid(6, 6)
    path = tmp_path / "best.pth"
    save_checkpoint(
        path,
        model,
        classes=CELLS,
        model=model_config("tiny", resolution=96),
        train=TrainConfig(dataset_dir=tmp_path, antialias=False, notes={"plate": [3, "b"]}),
        epoch=7,
        source="ema",
    )
    found = load_checkpoint(path)
    assert found.variant == VARIANTS["tiny"]
    assert (found.classes, found.resolution, found.antialias) == (CELLS, 96, False)
    assert found.notes == {"plate": [3, "b"]}
    data = torch.load(path, weights_only=True)
    assert (data["epoch"], data["best_total_source"]) == (7, "ema")
    assert data["model_config"]["positional_encoding_size"] == 6
    assert not found.model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, atol=0, rtol=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.pth"]


@pytest.mark.parametrize("variant", ["seg-tiny", "keypoint-tiny"])
def test_masks_and_keypoints_are_read_back(tmp_path, variant):
    named = class_keypoints(["left_ear", "right_ear", "nose"], ((0, 2),), [0.1, 0.1, 0.2])
    schema = KeypointSchema((named, ClassKeypoints()), trace_alpha=0.5)
    schema = schema if variant == "keypoint-tiny" else None
    model = RFDETR(VARIANTS[variant], 3, schema.counts if schema else ())
    save_checkpoint(
        tmp_path / "best.pth",
        model,
        classes=CELLS,
        schema=schema,
        model=model_config(variant),
        train=TrainConfig(dataset_dir=tmp_path),
    )
    found = load_checkpoint(tmp_path / "best.pth")
    assert (found.variant, found.classes, found.schema) == (VARIANTS[variant], CELLS, schema)
    assert found.model.keypoint_counts == ((3, 0) if schema else ())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, atol=0, rtol=0)


def test_a_keypoint_file_has_upstreams_masks():
    manifest = json.loads((GOLDEN / "manifests" / "keypoint-preview-multi.json").read_text())
    variant = replace(VARIANTS["keypoint-preview"], num_queries=40)
    weights = file_weights(RFDETR(variant, 4, (5, 0, 3)))
    assert {name: list(t.shape) for name, t in weights.items()} == manifest["state_dict"]
    active, blocked = (weights[name] for name in manifest["buffers"])
    assert active.dtype == blocked.dtype == torch.bool
    assert active.sum(dim=1).tolist() == [5, 0, 3]
    assert active[2].tolist() == [True, True, True, False, False]
    assert not blocked[0].any()
    assert not blocked[:, 0].any()
    assert not blocked[1:6, 1:6].any()
    assert not blocked[6:, 6:].any()
    assert blocked[1:6, 6:].all()
    assert blocked[6:, 1:6].all()


def test_a_file_we_write_has_upstreams_keys_and_tensors(tmp_path, nano):
    found = load_checkpoint(_save(tmp_path / "rf-detr-nano.pth", model=nano, args={}))
    assert found.classes == coco_classes()
    path = tmp_path / "again.pth"
    train = TrainConfig(dataset_dir=tmp_path, notes=["a"], aug_config={})
    save_checkpoint(
        path, found.model, classes=found.classes, model=model_config("nano"), train=train
    )
    data = torch.load(path, weights_only=True)
    assert {name: list(tensor.shape) for name, tensor in data["model"].items()} == NANO[
        "state_dict"
    ]
    assert data["model_name"] == "RFDETRNano"
    assert data["args"]["class_names"] == list(COCO_NAMES)
    assert data["args"]["num_classes"] == data["model_config"]["num_classes"] == 90
    assert data["args"]["dataset_dir"] == str(tmp_path)
    assert data["args"]["notes"] == data["notes"] == ["a"]
    assert data["rfdetr_version"] == f"rfdetr-edge {rfdetr_edge.__version__}"
    assert json.loads(json.dumps(data["args"])) == data["args"]
    assert load_checkpoint(path).classes == coco_classes()


@pytest.mark.parametrize(
    "classes",
    [
        coco_classes(),
        named_classes("background-last", ["a", "a"]),  # two classes of one name
        named_classes("contiguous", ["a", "b"], [7, 3]),
        named_classes("background-first", ["a", "b"]),
        with_slots(CELLS, 6),  # num_classes=5 on two classes
        with_slots(named_classes("background-first", ["a"]), 4),
    ],
)
def test_every_class_layout_is_restored(tmp_path, classes):
    path = tmp_path / "x.pth"
    save_checkpoint(
        path,
        RFDETR(VARIANTS["tiny"], len(classes)),
        classes=classes,
        model=model_config("tiny"),
        train=TrainConfig(dataset_dir=tmp_path),
    )
    assert load_checkpoint(path).classes == classes


def test_a_legacy_file_with_a_namespace_opens(tmp_path, nano):
    args = argparse.Namespace(pretrain_weights="rf-detr-nano.pth", resolution=416, lr=1e-4)
    found = load_checkpoint(_save(tmp_path / "checkpoint.pth", model=nano, args=args, epoch=3))
    assert found.variant.name == "nano"
    assert found.resolution == 416
    assert found.model.encoder.grid == (26, 26)
    assert found.antialias


@pytest.mark.parametrize("prefix", ["", "model.", "model._orig_mod.", "_orig_mod.model."])
def test_prefixes_of_lightning_and_compile_are_taken_off(tmp_path, tiny, prefix):
    weights = {prefix + name: tensor for name, tensor in tiny.items()}
    path = _save(tmp_path / "tiny.ckpt", state_dict=weights, epoch=1, args={})
    found = to_file_names(load_checkpoint(path).model.state_dict())
    for name, tensor in tiny.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)


def test_of_our_lightning_file_the_average_is_taken(tmp_path, dataset):
    config = TrainConfig(
        dataset_dir=dataset,
        output_dir=tmp_path,
        epochs=1,
        batch_size=1,
        num_workers=0,
        lr=0.01,
        multi_scale="off",
        tensorboard=False,
    )
    fitted = fit(RFDETR(VARIANTS["tiny"], slots=4), model_config("tiny"), config)
    data = torch.load(tmp_path / "last.ckpt", weights_only=True)
    found = load_checkpoint(tmp_path / "last.ckpt", variant="tiny").model.state_dict()
    for name, tensor in fitted.last.model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)
    plain = data["state_dict"]["network.class_head.bias"]
    assert not torch.equal(plain, found["class_head.bias"])


def test_a_bare_state_dict_opens_when_its_variant_is_named(tmp_path, tiny):
    torch.save(tiny, tmp_path / "tiny.pth")
    assert load_checkpoint(tmp_path / "tiny.pth", variant="tiny").model.slots == 3
    with pytest.raises(ArtifactError, match=r"has no args\. Name one of tiny, .*nano"):
        load_checkpoint(tmp_path / "tiny.pth")


def test_a_table_of_another_grid_is_resized_as_bicubic_antialias_does(tmp_path, nano):
    path = _save(tmp_path / "nano.pth", model=nano, model_config={"resolution": 192}, args={})
    table = nano["backbone.0.encoder.encoder.embeddings.position_embeddings"]
    square = table[0, 1:].reshape(1, 24, 24, 384).permute(0, 3, 1, 2)
    small = F.interpolate(square, size=(12, 12), mode="bicubic", antialias=True)
    found = load_checkpoint(path).model.encoder.positions[0]
    torch.testing.assert_close(found[1:], small[0].permute(1, 2, 0).reshape(144, 384))
    torch.testing.assert_close(found[0], table[0, 0], atol=0, rtol=0)


def test_class_heads_are_cut_or_tiled(tmp_path, tiny):
    weights = from_file_names(tiny)
    before = weights["class_head.weight"]
    for slots in (2, 3, 7):
        model = build_model(VARIANTS["tiny"], weights, path=tmp_path, resolution=352, slots=slots)
        expected = before.repeat(3, 1)[:slots]
        torch.testing.assert_close(model.class_head.weight.detach(), expected, atol=0, rtol=0)
        assert all(group.class_head.bias.shape == (slots,) for group in model.proposals)


@pytest.mark.parametrize("counts", [(5,), (20,), (3, 0, 2)])
def test_points_of_other_counts_are_cut_or_tiled(tmp_path, counts):
    person = RFDETR(VARIANTS["keypoint-tiny"], 3).state_dict()
    model = build_model(
        VARIANTS["keypoint-tiny"],
        person,
        path=tmp_path,
        resolution=352,
        slots=4,
        keypoint_counts=counts,
    )
    assert model.keypoint_counts == counts
    for name in ("keypoints.queries.queries", "decoder.keypoints.positions"):
        expected = person[name].repeat(2, 1)[: sum(counts)]
        torch.testing.assert_close(model.state_dict()[name], expected, atol=0, rtol=0)


def test_without_a_projector_of_its_own_the_keypoints_take_a_copy(tmp_path):
    weights = filled_weights("keypoint-tiny", 3)
    own = [name for name in weights if "cross_attn_projector" in name]
    assert own
    left = {name: tensor for name, tensor in weights.items() if name not in own}
    left["keypoint_head.keypoint_proj.weight"] = torch.zeros(2)  # in the published file
    path = _save(tmp_path / "keypoint-tiny.pth", model=left, args={})
    found = file_weights(load_checkpoint(path).model)
    for name in own:
        shared = name.replace("cross_attn_projector", "projector")
        torch.testing.assert_close(found[name], weights[shared], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("counts", "content", "expected"),
    [
        ((17,), {}, numbered_schema([17])),
        ((5, 0, 3), {}, numbered_schema([5, 0, 3])),  # as its mask says
        ((5,), {"num_keypoints_per_class": [4, 1]}, numbered_schema([5])),  # the mask wins
        ((0, 5), {"postprocess_trace_alpha": 0}, numbered_schema([0, 5], 0.0)),
    ],
)
def test_the_schema_is_found(tmp_path, counts, content, expected):
    weights = filled_weights("keypoint-tiny", 4, counts)
    path = _save(tmp_path / "keypoint-tiny.pth", model=weights, args={}, model_config=content)
    assert load_checkpoint(path).schema == expected


def test_a_file_without_a_mask_has_the_counts_of_its_settings(tmp_path):
    weights = filled_weights("keypoint-tiny", 4, (4, 1))
    del weights["_kp_active_mask"]
    settings = {"num_keypoints_per_class": [4, 1]}
    path = _save(tmp_path / "keypoint-tiny.pth", model=weights, args={}, model_config=settings)
    assert load_checkpoint(path).model.keypoint_counts == (4, 1)


@pytest.mark.parametrize(
    ("counts", "slots", "names", "expected"),
    [
        ((17,), 2, None, named_classes("background-last", ["person"])),
        ((17,), 91, list(COCO_NAMES), with_slots(named_classes("background-last", ["person"]), 91)),
        ((0, 17), 91, None, coco_classes()),
        ((0, 17), 2, ["person"], named_classes("background-first", ["person"])),
        ((0, 5), 2, None, named_classes("background-first", ["class_0"])),
        ((5, 3), 3, ["a", "b"], named_classes("background-last", ["a", "b"])),
    ],
)
def test_keypoints_say_which_slot_is_background(tmp_path, counts, slots, names, expected):
    path = save_filled(tmp_path / "x.pth", "keypoint-tiny", slots, names, counts)
    assert load_checkpoint(path).classes == expected


def test_spare_queries_are_cut_off_group_by_group(tmp_path):
    large = replace(VARIANTS["tiny"], num_queries=80, groups=6)
    weights = RFDETR(large, slots=3).state_dict()
    weights["query_boxes.weight"] = torch.arange(6.0 * 80).repeat_interleave(4).reshape(480, 4)
    model = build_model(VARIANTS["tiny"], weights, path=tmp_path, resolution=352)
    expected = torch.cat([torch.arange(60.0) + 80 * group for group in range(5)])
    torch.testing.assert_close(model.query_boxes.weight[:, 0].detach(), expected)
    assert model.query_features.weight.shape == (300, 128)
    points = replace(VARIANTS["keypoint-tiny"], groups=4)
    spare = RFDETR(points, slots=3).state_dict()
    counts = points.keypoint_counts
    options = {"path": tmp_path, "resolution": 352, "keypoint_counts": counts}
    assert len(build_model(VARIANTS["keypoint-tiny"], spare, **options).proposals) == 3
    for few in (replace(large, num_queries=59), replace(large, groups=4)):
        with pytest.raises(
            ArtifactError, match=r"query_.*be \(300, |first proposals\.4\..*: missing"
        ):
            build_model(
                VARIANTS["tiny"],
                RFDETR(few, slots=3).state_dict(),
                path=tmp_path,
                resolution=352,
            )


def test_another_patch_size_is_named(tmp_path, nano):
    with pytest.raises(ArtifactError, match=r"variant base.*patch_size is 16, not 14"):
        load_checkpoint(_save(tmp_path / "nano.pth", model=nano), variant="base")


@pytest.mark.parametrize(
    ("content", "filename", "expected"),
    [
        ({"model_name": "RFDETRTiny"}, "rf-detr-nano.pth", "tiny"),
        (
            {"model_name": "RFDETRTiny", "args": {"pretrain_weights": "nano"}},
            "x.pth",
            "tiny",
        ),
        ({"args": {"pretrain_weights": "RF-DETR-TINY.pth"}}, "rf-detr-nano.pth", "tiny"),
        ({"args": {"pretrain_weights": None}}, "my-tiny.pth", "tiny"),
        ({"args": {"pretrain_weights": "null"}}, "my-Tiny.pth", "tiny"),
        ({"args": {}}, "tiny_fold3.pth", "tiny"),
        ({"model_name": "RFDETRHuge", "args": {}}, "tiny.pth", "tiny"),
        ({"model_name": " RFDETRTiny "}, "x.pth", "tiny"),
        ({"model_name": "tiny", "args": {"pretrain_weights": "a/tiny.pth"}}, "x.pth", "tiny"),
    ],
)
def test_the_variant_is_found(tmp_path, tiny, content, filename, expected):
    path = _save(tmp_path / filename, model=tiny, **content)
    assert load_checkpoint(path).variant.name == expected


@pytest.mark.parametrize(
    ("content", "filename", "message"),
    [
        ({"args": {}}, "checkpoint.pth", r"'checkpoint.pth' names none.* Name one of tiny, .*nano"),
        ({"args": {"pretrain_weights": "rf-detr-xlarge.pth"}}, "tiny.pth", "--variant"),
        ({"args": {}}, "minimal.pth", "'minimal.pth' names none"),
        ({"args": {}}, "rf-detr-seg-huge-tiny.pth", "--variant"),
        ({"args": {}}, "rf-detr-seg-tiny.pth", "variant seg-tiny.*task is detection"),
        ({"args": {}}, "rf-detr-keypoint-tiny.pth", "variant keypoint-tiny.*task is detection"),
        ({"args": {}}, "rf-detr-keypoint-preview-xlarge.pth", "variant keypoint-preview,"),
        ({"args": {}}, "rf-detr-seg-xxlarge.pt", "variant seg-2xlarge,"),
        ({"args": {}}, "rf-detr-seg-xlarge.pt", "variant seg-xlarge,"),
        ({"args": {}}, "rf-detr-seg-large.pt", "variant seg-large,"),
        ({"args": {}}, "seg-preview-nano.pt", "variant seg-preview,"),
        ({"args": {"pretrain_weights": "o365"}, "model_name": "X"}, "tiny.pth", "is 'X', and 'o3"),
        ({"model_name": "RFDETRHuge"}, "tiny.pth", "is 'RFDETRHuge', and it has no args"),
        # large stands before nano and base in the search
        ({"args": {}}, "nano-large.pth", "does not fit variant large"),
        ({"args": {}}, "rf-detr-large-deprecated.pth", "does not fit variant large,"),
        ({"model_name": "RFDETRLargeDeprecated"}, "tiny.pth", "variant large-deprecated"),
        (
            {"args": {}, "model_config": {"resolution": 100}},
            "tiny.pth",
            "resolution 100 is no multiple of 32",
        ),
        ({"args": {"resolution": "64"}}, "tiny.pth", "its resolution is '64'"),
    ],
)
def test_a_variant_that_is_not_clear_is_refused(tmp_path, tiny, content, filename, message):
    path = _save(tmp_path / filename, model=tiny, **content)
    with pytest.raises(ArtifactError, match=message):
        load_checkpoint(path)


def test_the_variant_can_be_named(tmp_path, tiny):
    path = _save(tmp_path / "checkpoint.pth", model=tiny)
    assert load_checkpoint(path, variant="tiny").variant.name == "tiny"
    with pytest.raises(InputError, match=r"unknown variant 'huge'; choose one of tiny, .*nano"):
        load_checkpoint(path, variant="huge")


@pytest.mark.parametrize(
    ("args", "own", "names", "ids"),
    [
        ({"class_names": ["a", "b"]}, {}, ("a", "b"), (0, 1)),
        ({"class_names": ["a", "b"]}, {"category_ids": [7, 2]}, ("a", "b"), (7, 2)),
        ({}, {}, ("class_0", "class_1"), (0, 1)),
    ],
)
def test_class_names_are_those_of_the_file(tmp_path, tiny, caplog, args, own, names, ids):
    path = _save(tmp_path / "tiny.pth", model=tiny, args=args, rfdetr_edge=own)
    table = load_checkpoint(path).classes
    assert table == named_classes("background-last", names, ids)
    assert not caplog.records


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["a", "b", "c"], None),
        ("ab", None),
        ([1, 2], None),
        (torch.ones(2), None),
        (["a", "b"], [3]),
        (["a", "b"], ["3", 4]),
    ],
)
def test_malformed_classes_are_warned_of_and_numbered(tmp_path, tiny, caplog, names, ids):
    args, own = {"class_names": names}, {"category_ids": ids}
    path = _save(tmp_path / "tiny.pth", model=tiny, args=args, rfdetr_edge=own)
    assert load_checkpoint(path).classes == named_classes("background-last", NUMBERED)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{path}: class_names {names!r} with" in caplog.text
    assert f"{ids!r} do not fit its 3 slots" in caplog.text


def test_upstreams_names_may_be_fewer_than_the_slots(tmp_path, tiny, caplog):
    path = _save(tmp_path / "tiny.pth", model=tiny, args={"class_names": ["cell"]})
    table = load_checkpoint(path).classes
    assert table.names == ("cell", "", "__background__")
    assert table.category_ids == (0, None, None)
    assert not caplog.records


def test_weights_that_do_not_fit_are_one_error(tmp_path, tiny):
    table = "backbone.0.encoder.encoder.embeddings.position_embeddings"
    lacking = {name: tensor for name, tensor in tiny.items() if name != table}
    with pytest.raises(ArtifactError, match=r"1 tensors differ, first encoder\.pos.*: missing"):
        load_checkpoint(_save(tmp_path / "tiny.pth", model=lacking), variant="tiny")
    lacking = {name: tensor for name, tensor in tiny.items() if name != "refpoint_embed.weight"}
    with pytest.raises(ArtifactError, match=r"1 tensors differ, first query_boxes.*: missing"):
        load_checkpoint(_save(tmp_path / "tiny.pth", model=lacking), variant="tiny")
    for name, tensor in ((table, torch.zeros(1, 9)), ("query_feat.weight", torch.zeros(10, 128))):
        path = _save(tmp_path / "tiny.pth", model={**tiny, name: tensor})
        with pytest.raises(ArtifactError, match=r": \(\d+, \d+\), should be \("):
            load_checkpoint(path, variant="tiny")
    path = _save(tmp_path / "tiny.pth", model={**tiny, "zebra": torch.zeros(2)})
    with pytest.raises(ArtifactError, match=r"first zebra: \(2,\), should be absent"):
        load_checkpoint(path, variant="tiny")


def test_the_resolution_follows_the_table_only_where_the_variant_says_so(tiny, tmp_path):
    fixed = replace(VARIANTS["tiny"], position_grid=21)
    model = build_model(fixed, from_file_names(tiny), path=tmp_path, resolution=352)
    assert model.encoder.grid == (21, 21)
    assert model.encoder.positions.shape == (1, 1 + 21**2, 192)
