"""Checkpoints that are refused: each with one clear error, and none runs code."""

import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import filled_weights, save_filled

from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.keypoint_schema import numbered_schema
from trainer.checkpoint import load_checkpoint


class _Payload:
    """Unpickled by Python itself, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_payload_is_refused_and_does_not_run(tmp_path, tiny, zipped):
    path, witness = tmp_path / "tiny.pth", tmp_path / "witness"
    data = {"model": tiny, "args": _Payload(witness)}
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ArtifactError, match=r"pickles \w+\.mkdir.*can run code.*trust_check"):
        load_checkpoint(path, variant="tiny")
    assert not witness.exists()
    assert load_checkpoint(path, variant="tiny", trust=True).model.slots == 3
    assert witness.exists()  # so the payload was live


def test_a_numpy_scalar_in_the_settings_is_refused_by_name(tmp_path, tiny):
    path = tmp_path / "tiny.pth"
    torch.save({"model": tiny, "args": {"lr": np.float64(1e-4)}}, path)
    with pytest.raises(ArtifactError, match=r"numpy\.\S*scalar.*save it again with tensors"):
        load_checkpoint(path)
    assert load_checkpoint(path, trust=True).variant.name == "tiny"


def test_a_library_that_a_trusted_file_needs_is_named(tmp_path, tiny, monkeypatch):
    path = tmp_path / "tiny.pth"
    library = types.ModuleType("absent_library")
    library.Settings = type("Settings", (), {"__module__": "absent_library"})
    monkeypatch.setitem(sys.modules, "absent_library", library)
    torch.save({"model": tiny, "args": library.Settings()}, path)
    monkeypatch.delitem(sys.modules, "absent_library")
    with pytest.raises(ArtifactError, match=r"not installed: No module named 'absent_library'"):
        load_checkpoint(path, trust=True)


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"hello world\n", b"GIF89a" * 99, b"PK\x05\x06" + bytes(18)]
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "tiny.pth"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tiny\.pth cannot be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, tiny, zipped, share):
    path = tmp_path / "tiny.pth"
    torch.save({"model": tiny}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ArtifactError, match="truncated"):
        load_checkpoint(path)


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        load_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(ArtifactError, match="is a folder"):
        load_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ArtifactError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth")
    torch.save({"model": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
    with pytest.raises(ArtifactError, match="holds no RF-DETR weights"):
        load_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize(
    "spoil", [torch.Tensor.to_sparse, lambda t: t.to("meta"), torch.Tensor.cfloat]
)
def test_a_tensor_that_is_no_plain_array_is_refused(tmp_path, tiny, spoil):
    name = "class_embed.weight"
    torch.save({"model": {**tiny, name: spoil(tiny[name])}}, tmp_path / "tiny.pth")
    with pytest.raises(ArtifactError, match=r"class_embed\.weight that is a matrix of plain fl"):
        load_checkpoint(tmp_path / "tiny.pth")


def test_an_empty_class_head_is_refused(tmp_path, tiny):
    heads = {"transformer.enc_out_class_embed.0.bias": torch.zeros(0)}
    torch.save({"model": {**tiny, **heads}}, tmp_path / "tiny.pth")
    with pytest.raises(ArtifactError, match=r"class_head\.bias: \(0,\), should be \(3,\)"):
        load_checkpoint(tmp_path / "tiny.pth", variant="tiny")


@pytest.mark.parametrize(
    ("held", "wanted", "tasks"),
    [
        ("seg-tiny", "tiny", "segmentation, not detection"),
        ("keypoint-tiny", "seg-tiny", "keypoint, not segmentation"),
        ("tiny", "keypoint-tiny", "detection, not keypoint"),
    ],
)
def test_a_checkpoint_of_another_task_is_refused(tmp_path, held, wanted, tasks):
    path = save_filled(tmp_path / "model.pth", held, 3, None)
    with pytest.raises(ArtifactError, match=f"does not fit variant {wanted}.* its task is {tasks}"):
        load_checkpoint(path, variant=wanted)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rfdetr_edge": {"keypoints": {}}}, r"schema that cannot be read: a keypoint schema is"),
        ({"rfdetr_edge": {"keypoints": numbered_schema([5]).to_dict()}}, r"have \[5\] .*are for 4"),
        ({"model_config": {"num_keypoints_per_class": [1, 2]}}, r"have \[1, 2\] .* are for 4"),
        ({"model_config": {"num_keypoints_per_class": "4"}}, r"keypoints of each class '4'"),
        (
            {"model_config": {"num_keypoints_per_class": [-1, 5]}},
            r"keypoints of each class \[-1, 5",
        ),
        ({"model_config": {"num_keypoints_per_class": [0]}}, "needs a class with keypoints"),
        ({"model_config": {"postprocess_trace_alpha": "x"}}, "trace_alpha 'x'"),
        ({"model_config": {"postprocess_trace_alpha": -1}}, "trace_alpha must be 0 or more"),
        ({}, r"have \[17\] keypoints.* are for 4"),
        ({"model_config": {"num_keypoints_per_class": [0, 0, 0, 4]}}, "3 class slots are too few"),
    ],
)
def test_a_bad_keypoint_schema_is_one_error(tmp_path, content, message):
    weights = filled_weights("keypoint-tiny", 3, (4,))
    del weights["_kp_active_mask"]  # which would say 4
    torch.save({"model": weights, **content}, tmp_path / "tiny.pth")
    with pytest.raises(ArtifactError, match=message):
        load_checkpoint(tmp_path / "tiny.pth", variant="keypoint-tiny")


def test_a_mask_of_points_that_is_not_of_booleans_is_refused(tmp_path):
    weights = filled_weights("keypoint-tiny", 3)
    weights["_kp_active_mask"] = torch.full((1, 17), float("nan"))
    torch.save({"model": weights}, tmp_path / "tiny.pth")
    with pytest.raises(ArtifactError, match=r"1 tensors differ, first _kp_active_mask: \(1, 17\)"):
        load_checkpoint(tmp_path / "tiny.pth", variant="keypoint-tiny")


def test_a_keypoint_file_without_its_points_is_refused(tmp_path):
    weights = filled_weights("keypoint-tiny", 3)
    del weights["transformer.decoder.keypoint_pos_embed"]
    torch.save({"model": weights}, tmp_path / "tiny.pth")
    with pytest.raises(ArtifactError, match=r"1 tensors differ, first decoder\.keypoints\.pos"):
        load_checkpoint(tmp_path / "tiny.pth", variant="keypoint-tiny")
