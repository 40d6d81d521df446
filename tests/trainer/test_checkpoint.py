"""Checkpoints: what is written is read back, and every kind of file upstream left behind opens."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fill import fill_state_dict

from rfdetr_edge.classes import coco_classes, named_classes
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint import build_model, load_checkpoint, load_weights, save_checkpoint
from trainer.checkpoint_names import to_file_names
from trainer.model.rfdetr import RFDETR

NANO = json.loads((Path(__file__).parent.parent / "golden" / "manifests" / "nano.json").read_text())
CELLS = named_classes("background-last", ["RBC", "WBC"], [4, 9])


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
        path, model, classes=CELLS, resolution=96, antialias=False, notes={"plate": [3, "b"]}
    )
    found = load_checkpoint(path)
    assert found.variant == VARIANTS["tiny"]
    assert found.classes == CELLS
    assert (found.resolution, found.antialias) == (96, False)
    assert found.notes == {"plate": [3, "b"]}
    assert not found.model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, atol=0, rtol=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.pth"]


def test_a_file_we_write_has_upstreams_keys_and_tensors(tmp_path, nano):
    first = _save(tmp_path / "rf-detr-nano.pth", model=nano, args={})
    found = load_checkpoint(first)
    assert found.classes == coco_classes()
    path = tmp_path / "again.pth"
    save_checkpoint(path, found.model, classes=found.classes, resolution=384, antialias=True)
    data = torch.load(path, weights_only=True)
    assert {name: list(tensor.shape) for name, tensor in data["model"].items()} == NANO[
        "state_dict"
    ]
    assert data["model_name"] == "RFDETRNano"
    assert len(data["args"]["class_names"]) == data["model_config"]["num_classes"] == 80
    assert load_checkpoint(path).classes == coco_classes()


def test_a_legacy_file_with_a_namespace_opens(tmp_path, nano):
    args = argparse.Namespace(pretrain_weights="rf-detr-nano.pth", resolution=416, lr=1e-4)
    found = load_checkpoint(_save(tmp_path / "checkpoint.pth", model=nano, args=args, epoch=3))
    assert found.variant.name == "nano"
    assert found.resolution == 416
    assert found.model.encoder.grid == (26, 26)
    assert found.antialias


@pytest.mark.parametrize("prefix", ["", "model.", "model._orig_mod."])
def test_prefixes_of_lightning_and_compile_are_taken_off(tmp_path, tiny, prefix):
    weights = {prefix + name: tensor for name, tensor in tiny.items()}
    path = _save(tmp_path / "tiny.ckpt", state_dict=weights, epoch=1, global_step=7)
    found = to_file_names(load_checkpoint(path).model.state_dict())
    for name, tensor in tiny.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)


def test_a_bare_state_dict_opens(tmp_path, tiny):
    torch.save(tiny, tmp_path / "tiny.pth")
    assert load_checkpoint(tmp_path / "tiny.pth").model.slots == 3


def test_a_table_of_another_grid_is_resized_as_bicubic_antialias_does(tmp_path, nano):
    path = _save(tmp_path / "nano.pth", model=nano, model_config={"resolution": 192})
    table = nano["backbone.0.encoder.encoder.embeddings.position_embeddings"]
    square = table[0, 1:].reshape(1, 24, 24, 384).permute(0, 3, 1, 2)
    small = F.interpolate(square, size=(12, 12), mode="bicubic", antialias=True)
    found = load_checkpoint(path).model.encoder.positions[0]
    torch.testing.assert_close(found[1:], small[0].permute(1, 2, 0).reshape(144, 384))
    torch.testing.assert_close(found[0], table[0, 0], atol=0, rtol=0)


def test_class_heads_are_cut_or_tiled(tmp_path, tiny):
    weights = load_weights(_save(tmp_path / "tiny.pth", model=tiny))
    before = weights["class_head.weight"]
    for slots in (2, 3, 7):
        model = build_model(VARIANTS["tiny"], weights, path=tmp_path, slots=slots)
        expected = before.repeat(3, 1)[:slots]
        torch.testing.assert_close(model.class_head.weight.detach(), expected, atol=0, rtol=0)
        assert all(group.class_head.bias.shape == (slots,) for group in model.proposals)


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
        ({}, "tiny_fold3.pth", "tiny"),
    ],
)
def test_the_variant_is_found(tmp_path, tiny, content, filename, expected):
    path = _save(tmp_path / filename, model=tiny, **content)
    assert load_checkpoint(path).variant.name == expected


@pytest.mark.parametrize(
    ("content", "filename", "message"),
    [
        ({}, "checkpoint.pth", r"names none of tiny, nano.*--variant"),
        ({"args": {"pretrain_weights": "rf-detr-xlarge.pth"}}, "tiny.pth", "--variant"),
        ({}, "rf-detr-seg-tiny.pth", "--variant"),
        ({"model_name": "RFDETRHuge"}, "tiny.pth", "says it is a RFDETRHuge"),
        # large stands before nano and base in the search
        ({}, "nano-large.pth", "does not fit variant large"),
        ({"model_config": {"resolution": 100}}, "tiny.pth", "resolution is 100.*multiple of 32"),
    ],
)
def test_a_variant_that_is_not_clear_is_refused(tmp_path, tiny, content, filename, message):
    path = _save(tmp_path / filename, model=tiny, **content)
    with pytest.raises(ArtifactError, match=message):
        load_checkpoint(path)


def test_the_variant_can_be_named(tmp_path, tiny):
    path = _save(tmp_path / "checkpoint.pth", model=tiny)
    assert load_checkpoint(path, variant="tiny").variant.name == "tiny"
    with pytest.raises(InputError, match="unknown variant 'huge'; choose one of tiny, nano"):
        load_checkpoint(path, variant="huge")


@pytest.mark.parametrize(
    ("args", "own", "names", "ids"),
    [
        ({"class_names": ["a", "b"]}, {}, ("a", "b"), (0, 1)),
        ({"class_names": ["a", "b"]}, {"category_ids": [7, 2]}, ("a", "b"), (7, 2)),
        ({}, {}, ("class_0", "class_1"), (0, 1)),
        ({"class_names": ["a", "b", "c"]}, {}, ("class_0", "class_1"), (0, 1)),
        ({"class_names": "ab"}, {}, ("class_0", "class_1"), (0, 1)),
        ({"class_names": [1, 2]}, {}, ("class_0", "class_1"), (0, 1)),
        ({"class_names": 7}, {"category_ids": 7}, ("class_0", "class_1"), (0, 1)),
    ],
)
def test_class_names_are_those_of_the_file(tmp_path, tiny, args, own, names, ids):
    path = _save(tmp_path / "tiny.pth", model=tiny, args=args, rfdetr_edge=own)
    table = load_checkpoint(path).classes
    assert table == named_classes("background-last", names, ids)


def test_weights_that_do_not_fit_are_one_error(tmp_path, tiny):
    table = "backbone.0.encoder.encoder.embeddings.position_embeddings"
    lacking = {name: tensor for name, tensor in tiny.items() if name != table}
    with pytest.raises(ArtifactError, match=r"1 tensors are missing.*encoder\.positions"):
        load_checkpoint(_save(tmp_path / "tiny.pth", model=lacking))
    for name, tensor in ((table, torch.zeros(1, 9)), ("query_feat.weight", torch.zeros(10, 128))):
        path = _save(tmp_path / "tiny.pth", model={**tiny, name: tensor})
        with pytest.raises(ArtifactError, match=r"has shape \(\d+, \d+\), expected"):
            load_checkpoint(path)


def test_the_resolution_follows_the_table_only_where_the_variant_says_so(tiny, tmp_path):
    weights = load_weights(_save(tmp_path / "tiny.pth", model=tiny))
    fixed = replace(VARIANTS["tiny"], position_grid=21)
    model = build_model(fixed, weights, path=tmp_path, resolution=352)
    assert model.encoder.grid == (21, 21)
    assert model.encoder.positions.shape == (1, 1 + 21**2, 192)
