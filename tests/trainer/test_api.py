"""The documented classes: settings, loading, training, exporting. Prediction: test_inference.py."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from checkpoints import save_filled

import trainer
from rfdetr_edge import Detector, demo
from rfdetr_edge.classes import COCO_NAMES
from rfdetr_edge.variants import VARIANTS
from trainer import (
    RFDETR,
    RFDETRBase,
    RFDETRKeypointTiny,
    RFDETRNano,
    RFDETRSegTiny,
    RFDETRSmall,
    RFDETRTiny,
)
from trainer.config import ModelConfig, TrainConfig
from trainer.rfdetr import CLASSES

NAMES = ["RBC", "WBC", "Platelets"]
NOTES = {"line": 4, "by": "night shift"}


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_filled(tmp_path_factory.mktemp("tiny") / "tiny.pth", "tiny", 4, NAMES)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RFDETR, Path]:
    """A model trained for two epochs on three photos, and its output folder."""
    output = tmp_path_factory.mktemp("trained")
    model = RFDETRTiny()
    model.train(
        dataset_dir=dataset,
        output_dir=output,
        epochs=2,
        batch_size=1,
        num_workers=0,
        multi_scale=False,
        resolution=64,
        device="cpu",
        notes=NOTES,
        save_dataset_grids=False,
    )
    return model, output


def test_every_variant_has_its_class_and_every_class_is_exported():
    assert [row.api_name for row in VARIANTS.values()] == list(CLASSES)
    for name, row in VARIANTS.items():
        cls = CLASSES[row.api_name]
        assert (cls.__name__, cls.variant) == (row.api_name, name)
        assert issubclass(cls, RFDETR)
    assert set(trainer.__all__) == {"RFDETR", *CLASSES}
    assert all(vars(trainer)["__getattr__"](name).__name__ == name for name in dir(trainer))
    with pytest.raises(AttributeError, match="RFDETRHuge"):
        vars(trainer)["__getattr__"]("RFDETRHuge")


def test_naming_the_package_loads_no_torch():
    code = "import sys, trainer; assert 'torch' not in sys.modules; trainer.RFDETRNano"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_settings_of_a_model():
    model = RFDETRTiny(resolution=96)
    config = model.get_model_config()
    assert isinstance(config, ModelConfig)
    assert (config.variant, config.resolution, config.num_classes) == ("tiny", 352, 90)
    assert config.model_fields_set == set()
    assert model.model_config.resolution == model.model.resolution == 96
    assert (config.patch_size, config.num_windows, config.positional_encoding_size) == (16, 2, 22)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolutoin": 64}, "did you mean resolution"),
        ({"resolution": 100}, "the nearest are 96 and 128"),
        ({"hidden_dim": 77}, "hidden_dim is .* here and cannot be set to 77"),
        ({"num_classes": 0}, "num_classes: .*greater than or equal to 1"),
        ({"num_keypoints_per_class": [17]}, "does not fit tiny, a detection variant"),
        ({"device": "gpu7"}, "device 'gpu7'"),
        ({"device": "cuda:99", "num_classes": 1}, "device 'cuda:99'"),
    ],
)
def test_a_wrong_model_setting_is_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        RFDETRTiny(**settings)
    assert "\n" not in str(caught.value)


def test_what_the_variant_says_is_accepted_at_its_value():
    RFDETRTiny(hidden_dim=VARIANTS["tiny"].hidden_dim, num_channels=3)


def test_settings_of_a_run():
    config = RFDETRTiny().get_train_config(dataset_dir="data", wandb=False, epochs=3)
    assert isinstance(config, TrainConfig)
    assert (config.epochs, config.lr, config.lr_encoder, config.batch_size) == (3, 1e-4, 1.5e-4, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "did you mean epochs"),
        ({"wandb": True}, "loggers="),
        ({"optimizer": "sgd"}, r"trainer/optim\.py"),
        ({"clip_max_norm": -1}, "clip_max_norm"),
        ({"notes": object()}, "notes"),
    ],
)
def test_a_wrong_train_setting_is_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        RFDETRTiny().get_train_config(dataset_dir="data", **settings)


def test_names_of_coco_and_of_a_head_that_nobody_named():
    assert RFDETRTiny().class_names == list(COCO_NAMES)
    assert RFDETRKeypointTiny().class_names == ["person"]  # the points are a person's
    assert RFDETRTiny(num_classes=2).class_names == ["class_0", "class_1"]


def test_another_configuration_gives_another_context():
    model = RFDETRTiny(num_classes=2)
    context = model.get_model(model.get_model_config(num_classes=5, resolution=64))
    assert (context.model.slots, context.resolution, context.device.type) == (6, 64, "cpu")
    assert (len(context.class_names), context.args.num_classes) == (5, 5)
    assert model.model.model.slots == 3


def _data(path: Path, **changes: object) -> dict:
    data = torch.load(path, weights_only=True)
    return {key: value for key, value in {**data, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("any.pth", {"model_name": "RFDETRTiny"}),
        ("any.pth", {"model_name": None, "args": {"pretrain_weights": "runs/TINY-3.pth"}}),
        ("rf-detr-tiny.pth", {"model_name": None, "args": {"pretrain_weights": "none"}}),
        (
            "rf-detr-tiny.pth",
            {"model_name": None, "args": argparse.Namespace(pretrain_weights=None, epochs=9)},
        ),
    ],
)
def test_the_class_follows_from_the_file(tiny_file, tmp_path, name, changes):
    torch.save(_data(tiny_file, **changes), tmp_path / name)
    model = RFDETR.from_checkpoint(tmp_path / name)
    assert type(model) is RFDETRTiny
    assert model.model_config.num_classes == 3
    assert "num_classes" not in model.model_config.model_fields_set


def test_a_given_class_count_is_pinned(tiny_file):
    model = RFDETRTiny.from_checkpoint(tiny_file, num_classes=3)
    assert model.class_names == NAMES
    assert "num_classes" in model.model_config.model_fields_set
    other = RFDETRTiny.from_checkpoint(tiny_file, num_classes=6, resolution=128)
    assert (other.model.model.slots, other.model.resolution) == (7, 128)
    kept = RFDETRTiny.from_checkpoint(tiny_file).model.model.class_head.weight
    torch.testing.assert_close(other.model.model.class_head.weight[:4], kept)


def test_given_keypoint_counts_and_trace_alpha_win_over_the_files(tmp_path):
    path = save_filled(tmp_path / "points.pth", "keypoint-tiny", 4, NAMES, (5, 0, 3))
    model = RFDETR.from_checkpoint(path, resolution=64)
    assert type(model) is RFDETRKeypointTiny
    assert model.model_config.num_keypoints_per_class == [5, 0, 3]
    assert model.model_config.model_fields_set == {"resolution", "pretrain_weights"}
    other = RFDETR.from_checkpoint(
        path, resolution=64, num_keypoints_per_class=[7, 2], postprocess_trace_alpha=0.0
    )
    schema = other.model.schema
    assert (schema.counts, schema.trace_alpha, other.class_names) == ((7, 2), 0.0, NAMES)
    tokens, kept = (m.model.model.decoder.keypoints.positions for m in (other, model))
    torch.testing.assert_close(tokens[:8], kept)
    assert other.predict(demo.photo_paths()[0], threshold=0.0).xy.shape[1:] == (7, 2)
    wider = RFDETR.from_checkpoint(path, num_classes=6)
    assert (wider.model.schema.counts, len(wider.class_names)) == ((5, 0, 3), 6)
    with pytest.raises(ValueError, match="2 class slots are too few for keypoints of 3 classes"):
        RFDETR.from_checkpoint(path, num_classes=1)


def test_more_keypoint_counts_than_classes_are_refused():
    with pytest.raises(ValueError, match="has 4 entries; 2 classes, and background"):
        RFDETRKeypointTiny(num_classes=2, num_keypoints_per_class=[5, 5, 5, 5])
    model = RFDETRKeypointTiny(num_classes=2, num_keypoints_per_class=[0, 5], resolution=64)
    assert model.class_names == ["class_0", "class_1"]
    assert model.model.classes.layout == "background-first"


def test_weights_of_another_task_are_refused(tmp_path):
    path = save_filled(tmp_path / "points.pth", "keypoint-tiny", 4, NAMES, (5,))
    for cls in (RFDETRTiny, RFDETRSegTiny):
        with pytest.raises(ValueError, match="its task is keypoint, not"):
            cls(pretrain_weights=str(path))


def test_a_constructor_opens_a_checkpoint_too(tiny_file):
    model = RFDETRTiny(pretrain_weights=str(tiny_file))
    assert model.class_names == NAMES
    with pytest.raises(ValueError, match="nano"):
        RFDETRNano(pretrain_weights=str(tiny_file))


def test_checkpoints_that_cannot_be_opened(tiny_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        RFDETR.from_checkpoint(tmp_path / "gone.pth")
    torch.save(_data(tiny_file, model_name=None), tmp_path / "anonymous.pth")
    with pytest.raises(ValueError, match="does not say which"):
        RFDETR.from_checkpoint(tmp_path / "anonymous.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        RFDETR.from_checkpoint(tmp_path / "text.pth")


def test_pickled_code_runs_only_when_trusted(tiny_file, tmp_path):
    path = tmp_path / "tiny.pth"
    torch.save(_data(tiny_file, extra=Path("pickled")), path)
    with pytest.raises(ValueError, match="trust_checkpoint=True"):
        RFDETR.from_checkpoint(path)
    assert RFDETR.from_checkpoint(path, trust_checkpoint=True).class_names == NAMES


def test_published_weights_that_are_nowhere_say_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("RF_HOME", str(tmp_path))
    # a proxy that refuses: the test must not reach the network
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"rf-detr-nano\.pth"):
        RFDETRNano()


def test_a_bare_name_is_looked_for_in_the_cache(tiny_file, tmp_path, monkeypatch):
    monkeypatch.setenv("RF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    kept = shutil.copy(tiny_file, tmp_path / "cache" / "mine.pth")
    model = RFDETRTiny(pretrain_weights="mine.pth")
    assert (model.model_config.pretrain_weights, model.class_names) == (str(kept), NAMES)
    model.maybe_download_pretrain_weights()
    assert model.model_config.pretrain_weights == str(kept)
    unset = RFDETRTiny()
    unset.maybe_download_pretrain_weights()
    assert unset.model_config.pretrain_weights is None


def test_training_takes_over_classes_resolution_and_weights(trained):
    model, output = trained
    assert model.class_names == NAMES
    assert model.model_config.num_classes == 3
    assert "num_classes" not in model.model_config.model_fields_set
    assert model.model_config.resolution == model.model.resolution == 64
    last = RFDETR.from_checkpoint(output / "last_ema.pth")
    assert type(last) is RFDETRTiny
    for name, tensor in last.model.model.state_dict().items():
        torch.testing.assert_close(model.model.model.state_dict()[name], tensor, rtol=0, atol=0)
    photo = demo.photo_paths()[0]
    mine, files = (m.predict(photo, threshold=0.0) for m in (model, last))
    np.testing.assert_array_equal(mine.xyxy, files.xyxy)


def test_training_takes_over_the_keypoints(parts, tmp_path):
    model = RFDETRKeypointTiny(resolution=64)
    assert model.model.schema.counts == (17,)
    settings = {"epochs": 1, "batch_size": 2, "num_workers": 0, "multi_scale": False}
    best = model.train(dataset_dir=parts, output_dir=tmp_path, tensorboard=False, **settings)
    assert model.model.schema.counts == (5, 5, 0, 6)
    assert model.model_config.num_keypoints_per_class == [5, 5, 0, 6]
    assert "num_keypoints_per_class" not in model.model_config.model_fields_set
    assert model.class_names == ["wrench", "bolt", "washer", "bracket"]
    kept = RFDETR.from_checkpoint(best)
    assert kept.model.schema == model.model.schema
    photo = next((parts / "valid").glob("*.jpg"))
    mine, files = (each.predict(photo, threshold=0.0) for each in (model, kept))
    np.testing.assert_array_equal(mine.xy, files.xy)


def test_notes_are_in_every_checkpoint_and_in_the_artifact(trained, tmp_path):
    model, output = trained
    for path in sorted(output.glob("*.pth")):
        data = torch.load(path, weights_only=True)
        assert (data["notes"], data["args"]["notes"]) == (NOTES, NOTES), path
    assert len(list(output.glob("*.pth"))) == 3
    artifact = model.export(tmp_path, verbose=False)
    props = {row.key: row.value for row in onnx.load(artifact).metadata_props}
    assert json.loads(props["rfdetr_notes"]) == NOTES
    other = model.export(tmp_path / "other", notes="plain text", verbose=False)
    assert {row.key: row.value for row in onnx.load(other).metadata_props}[
        "rfdetr_notes"
    ] == "plain text"


def test_settings_are_kept_beside_the_weights(trained):
    settings = json.loads((trained[1] / "training_config.json").read_text())
    assert settings["model_config_type"] == "RFDETRTinyConfig"
    assert (settings["class_names"], settings["num_classes"]) == (NAMES, 3)
    assert TrainConfig(**settings["train_config"]).epochs == 2
    assert ModelConfig(**settings["model_config"]).resolution == 64


def test_a_training_resolution_stays_and_one_that_does_not_fit_changes_nothing(tmp_path):
    model = RFDETRTiny()
    for value, message in ((100, "nearest are 96 and 128"), (True, "positive integer"),
                           (-32, "positive integer"), (64.0, "positive integer")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.train(dataset_dir="data", resolution=value)
    assert model.model_config.resolution == model.model.resolution == 352
    with pytest.raises(ValueError, match="a data set is a folder"):
        model.train(dataset_dir=tmp_path, output_dir=tmp_path, resolution=np.int64(96))
    assert model.model_config.resolution == model.model.resolution == 96


def test_base_keeps_its_position_table_at_another_resolution():
    config = RFDETRBase.get_model_config(object.__new__(RFDETRBase), resolution=616)
    assert config.positional_encoding_size == 37
    small = RFDETRSmall.get_model_config(object.__new__(RFDETRSmall), resolution=640)
    assert small.positional_encoding_size == 40


@pytest.mark.parametrize(
    "legacy",
    [{"callbacks": {"on_fit_epoch_end": [print]}}, {"start_epoch": 0}, {"do_benchmark": True}],
)
def test_deprecated_arguments_are_warned_of_and_dropped(legacy, tmp_path):
    with (
        pytest.warns(DeprecationWarning, match=next(iter(legacy))),
        pytest.raises(ValueError, match="a data set is a folder"),
    ):
        RFDETRTiny().train(dataset_dir=tmp_path / "none", output_dir=tmp_path / "out", **legacy)


def test_an_unknown_device_is_refused(tmp_path):
    with pytest.raises(ValueError, match="device 'gpu7'"):
        RFDETRTiny().train(dataset_dir=tmp_path, device="gpu7")


def test_an_automatic_batch_needs_a_gpu(dataset, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("no GPU-less machine here")
    with pytest.raises(RuntimeError, match="batch_size='auto'"):
        RFDETRTiny().train(dataset_dir=dataset, output_dir=tmp_path, batch_size="auto")


def test_a_pinned_class_count_is_kept_or_refused(dataset, tmp_path):
    settings = {
        "dataset_dir": dataset, "output_dir": tmp_path, "epochs": 1, "batch_size": 3,
        "num_workers": 0, "multi_scale": False, "resolution": 64, "tensorboard": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="has 3 classes"):
        RFDETRTiny(num_classes=2).train(**settings)
    wide = RFDETRTiny(num_classes=5)
    wide.train(**settings)
    assert wide.model.model.slots == 6
    assert wide.class_names == NAMES


def test_an_export_finds_what_the_model_finds(tiny_file, tmp_path):
    model = RFDETRTiny.from_checkpoint(tiny_file)
    path = model.export(tmp_path, infer_dir=demo.photo_paths()[0], dynamic_batch=True)
    assert path.name == "rfdetr-tiny.onnx"
    photo = demo.photo_paths()[1]
    wanted = model.predict(photo, threshold=0.01)
    with Detector(path) as detector:
        found = detector.predict(photo, threshold=0.01)
    np.testing.assert_array_equal(found.class_id, wanted.class_id)
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=1e-2)


def test_a_backbone_alone(tiny_file, tmp_path):
    model = RFDETRTiny.from_checkpoint(tiny_file, resolution=64)
    path = model.export(tmp_path, backbone_only=True, verbose=False, notes="half")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["features"]
    assert {row.key: row.value for row in onnx.load(path).metadata_props} == {
        "rfdetr_notes": "half"
    }
    image = torch.randn(1, 3, 64, 64)
    network = model.model.model
    with torch.no_grad():
        (wanted,) = network.projector(network.encoder(image))
    (found,) = session.run(None, {"input": image.numpy()})
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "coreml"}, "format 'coreml'"),
        ({"shape": (100, 64)}, "multiple"),
        ({"shape": (64.0, 64)}, "shape"),
        ({"shape": (True, 64)}, "shape"),
        ({"patch_size": 14}, "patch_size"),
        ({"opset_version": 9}, "opset"),
        ({"batch_size": 0}, "batch"),
    ],
)
def test_a_wrong_export_argument_is_one_clear_error(tiny_file, tmp_path, arguments, message):
    model = RFDETRTiny.from_checkpoint(tiny_file)
    with pytest.raises(ValueError, match=message):
        model.export(tmp_path, **arguments)
    assert not list(tmp_path.glob("*.onnx"))


def test_an_optimized_model_shows_its_state_and_is_not_exported(tiny_file, tmp_path):
    model = RFDETRTiny.from_checkpoint(tiny_file, resolution=64)
    assert not model._is_optimized_for_inference
    model.optimize_for_inference(compile=True, batch_size=2)
    assert model._is_optimized_for_inference
    assert (model._optimized_batch_size, model._optimized_resolution) == (2, 64)
    assert model._optimized_has_been_compiled
    assert model._optimized_dtype is torch.float32
    with pytest.raises(ValueError, match="remove_optimized_model"):
        model.export(tmp_path)
    with pytest.raises(ValueError, match="remove_optimized_model"):
        model.predict(demo.photo_paths()[0])
    model.remove_optimized_model()
    assert not model._is_optimized_for_inference
    assert model._optimized_dtype is None
