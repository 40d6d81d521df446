"""Real training runs on a few photos: they learn, keep their files, go on where they stopped."""

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import run_cli

from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.keypoint_schema import ClassKeypoints, KeypointSchema
from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint import load_checkpoint
from trainer.config import ModelConfig, TrainConfig, model_config, train_config
from trainer.fit import Fitted, fit
from trainer.model.rfdetr import RFDETR

EPOCHS = 4
MODEL = {"resolution": 64}
RUN = {
    "epochs": EPOCHS,
    "batch_size": 1,
    "lr": 5e-3,
    "lr_encoder": 5e-3,
    "multi_scale": False,
    "aug_config": "MICROSCOPY",
    "drop_path": 0.1,
    "eval_interval": 2,
    "num_workers": 0,
    "tensorboard": False,
}


def _settings(dataset: Path, output: Path, **settings: object) -> tuple[ModelConfig, TrainConfig]:
    config = TrainConfig(**{**RUN, "dataset_dir": dataset, "output_dir": output, **settings})
    return model_config("tiny", **MODEL), config


def _network() -> RFDETR:
    torch.manual_seed(0)
    return RFDETR(VARIANTS["tiny"], 4)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Path:
    """The output folder of an undisturbed run."""
    output = tmp_path_factory.mktemp("run")
    fit(_network(), *_settings(dataset, output, tensorboard=True, checkpoint_interval=2))
    return output


def _last(output: Path) -> dict:
    return torch.load(output / "last.ckpt", weights_only=True)


def _column(output: Path, name: str) -> dict[int, float]:
    """A column of metrics.csv by epoch."""
    with (output / "metrics.csv").open() as file:
        return {int(row["epoch"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


def test_the_loss_falls(run):
    loss = _column(run, "train/loss")
    assert sorted(loss) == list(range(EPOCHS))
    assert loss[EPOCHS - 1] < 0.9 * loss[0]


def test_every_documented_file_is_written(run):
    expected = {
        "checkpoint_best_ema.pth",
        "checkpoint_best_total.pth",
        "last_ema.pth",
        "last.ckpt",
        "checkpoint_1.ckpt",
        "checkpoint_3.ckpt",
        "metrics.csv",
        "curves.png",
        "training_config.json",
        "hparams.yaml",
    }
    names = {path.name for path in run.iterdir()}
    assert {name for name in names if not name.startswith("events.out.tfevents")} == expected
    assert len(names) == len(expected) + 1
    settings = json.loads((run / "training_config.json").read_text())["train_config"]
    assert TrainConfig(**settings).output_dir == run


def test_the_last_epoch_is_validated_whatever_the_interval(dataset, tmp_path):
    fit(_network(), *_settings(dataset, tmp_path, epochs=3))
    assert sorted(_column(tmp_path, "val/mAP_50_95")) == [1, 2]
    assert sorted(_column(tmp_path, "val/loss")) == [1, 2]


def test_the_best_checkpoint_holds_the_averaged_weights(dataset, tmp_path):
    # validated once, at the end, so the best weights are the last ones
    fitted = fit(_network(), *_settings(dataset, tmp_path, epochs=2, eval_interval=2))
    kept = load_checkpoint(fitted.best).model.state_dict()
    average = _last(tmp_path)["callbacks"]["WeightAverage"]["average"]
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, average[name], atol=0, rtol=0)
        torch.testing.assert_close(tensor, fitted.last.model.state_dict()[name], atol=0, rtol=0)
    plain = _last(tmp_path)["state_dict"]
    assert not torch.equal(kept["class_head.weight"], plain["network.class_head.weight"])
    assert load_checkpoint(fitted.best).resolution == 64
    assert load_checkpoint(fitted.best).classes.names == (
        "RBC",
        "WBC",
        "Platelets",
        "__background__",
    )


def test_without_an_average_the_regular_weights_are_kept(dataset, tmp_path):
    fitted = fit(_network(), *_settings(dataset, tmp_path, epochs=1, use_ema=False))
    assert (tmp_path / "checkpoint_best_regular.pth").is_file()
    assert not list(tmp_path.glob("*ema*"))
    plain = _last(tmp_path)["state_dict"]
    for name, tensor in load_checkpoint(fitted.best).model.state_dict().items():
        torch.testing.assert_close(tensor, plain[f"network.{name}"], atol=0, rtol=0)


# In one thread, started by itself so that it can be killed; the paths and settings come as JSON.
_SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from trainer import RFDETRTiny
given = json.loads(sys.argv[1])
RFDETRTiny(pretrain_weights=None, **given.pop("model")).train(**given)
"""


def _start(dataset: Path, output: Path, **settings: object) -> "subprocess.Popen[str]":
    given = {**RUN, "model": MODEL, "dataset_dir": str(dataset), "output_dir": str(output)}
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, json.dumps({**given, **settings})],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_ends_like_an_undisturbed_one_when_resumed(dataset, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = _start(dataset, whole)
    process = _start(dataset, killed)
    # as soon as epoch 2 has ended, so in the midst of epoch 3, the third of 0 to 3
    while process.poll() is None and not (
        (killed / "metrics.csv").is_file() and 1 in _column(killed, "train/loss")
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    assert _last(killed)["epoch"] < EPOCHS - 1
    resumed = _start(dataset, killed, resume="last")
    for finished in (undisturbed, resumed):
        errors = finished.communicate()[1]
        assert finished.returncode == 0, errors
    assert (killed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    first, second = _last(whole), _last(killed)
    assert first["epoch"] == second["epoch"] == EPOCHS - 1
    assert first["global_step"] == second["global_step"] == 5 * EPOCHS
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        _assert_equal(first[part], second[part], part)
    for name in ("checkpoint_best_total.pth", "last_ema.pth"):
        states = [
            torch.load(folder / name, weights_only=True)["model"] for folder in (whole, killed)
        ]
        _assert_equal(*states, name)


def _assert_equal(first: object, second: object, place: str) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), place
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for key, value in first.items():
            _assert_equal(value, second[key], f"{place}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), place
        for index, value in enumerate(first):
            _assert_equal(value, second[index], f"{place}[{index}]")
    else:
        assert first == second, place


def test_a_run_goes_on_in_another_folder(run, dataset, tmp_path):
    model, config = _settings(dataset, tmp_path, resume=run / "checkpoint_1.ckpt")
    fit(_network(), model, config)
    assert _column(tmp_path, "train/loss") == pytest.approx(_column(run, "train/loss"), rel=1e-6)
    assert (run / "last.ckpt").is_file()
    assert load_checkpoint(tmp_path / "checkpoint_best_total.pth").variant.name == "tiny"


def test_a_finished_run_stays_as_it_is_when_resumed(dataset, tmp_path):
    fit(_network(), *_settings(dataset, tmp_path, epochs=1))
    names = ("metrics.csv", "last_ema.pth", "checkpoint_best_total.pth")
    before = [(tmp_path / name).read_bytes() for name in names[:1]]
    weights = [load_checkpoint(tmp_path / name).model.state_dict() for name in names[1:]]
    fitted = fit(_network(), *_settings(dataset, tmp_path, epochs=1, resume="last"))
    assert [(tmp_path / name).read_bytes() for name in names[:1]] == before
    for name, kept in zip(names[1:], weights, strict=True):
        _assert_equal(load_checkpoint(tmp_path / name).model.state_dict(), kept, name)
    _assert_equal(fitted.last.model.state_dict(), weights[0], "network")


def test_a_run_can_start_from_a_checkpoint_of_other_classes(dataset, tmp_path):
    start = RFDETR(VARIANTS["tiny"], 2)
    model, config = _settings(
        dataset, tmp_path, epochs=1, lr=1e-9, lr_encoder=1e-9, eval_interval=1
    )
    tuned = fit(start, model, config).last.model
    assert (start.slots, tuned.slots) == (2, 4)
    assert tuned.encoder.grid == (4, 4)
    for mine, other in ((slice(0, 2), slice(0, 2)), (slice(2, 4), slice(0, 2))):
        torch.testing.assert_close(tuned.class_head.weight[mine], start.class_head.weight[other])


def test_a_frozen_encoder_does_not_move(dataset, tmp_path):
    network = _network()
    network.encoder.fix_grid(4, 4)
    model = model_config("tiny", freeze_encoder=True, **MODEL)
    _, config = _settings(dataset, tmp_path, epochs=1, weight_decay=0.1)
    tuned = fit(network, model, config).last.model
    for name, tensor in tuned.encoder.state_dict().items():
        torch.testing.assert_close(tensor, network.encoder.state_dict()[name], atol=0, rtol=0)
    assert not torch.equal(tuned.class_head.weight, network.class_head.weight)


def test_a_run_that_stalls_ends_early(dataset, tmp_path):
    # without a learning rate nothing gets better
    settings = {"epochs": 6, "lr": 0, "lr_encoder": 0, "eval_interval": 1}
    stopping = {"early_stopping": True, "early_stopping_patience": 2}
    fit(_network(), *_settings(dataset, tmp_path, **settings, **stopping))
    assert sorted(_column(tmp_path, "val/mAP_50_95")) == [0, 1, 2]


def test_the_test_split_is_evaluated_with_the_best_weights(dataset, photos, write_split, tmp_path):
    for split in ("train", "valid", "test"):
        write_split(tmp_path / "data" / split, photos)
    fitted = fit(
        _network(), *_settings(tmp_path / "data", tmp_path / "out", run_test=True, epochs=2)
    )
    best = _column(tmp_path / "out", "val/mAP_50_95")[1]
    assert fitted.test["test/mAP_50_95"] == pytest.approx(best, abs=1e-6)
    with pytest.raises(InputError, match="run_test needs a test split"):
        fit(_network(), *_settings(dataset, tmp_path / "none", run_test=True))


def test_a_file_that_no_run_can_go_on_from_is_refused(run, dataset, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        fit(_network(), *_settings(dataset, tmp_path / "a", resume=tmp_path / "last.ckpt"))
    best = run / "checkpoint_best_total.pth"
    with pytest.raises(ArtifactError, match=r"resume from a run's last\.ckpt"):
        fit(_network(), *_settings(dataset, tmp_path / "b", resume=best))
    model = model_config("tiny", resolution=96)
    _, config = _settings(dataset, tmp_path / "c", resume=run / "last.ckpt")
    with pytest.raises(ArtifactError, match="another variant, resolution, class or keypoint count"):
        fit(_network(), model, config)
    _, config = _settings(dataset, tmp_path / "d", resume=run / "last.ckpt", lr=1e-3)
    with pytest.raises(ArtifactError, match="learning rate or decay"):
        fit(_network(), model_config("tiny", **MODEL), config)


def test_checkpoints_never_pass_through_another_disk(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    fit(_network(), *_settings(dataset, tmp_path / "out", epochs=1, checkpoint_interval=1))
    assert _last(tmp_path / "out")["epoch"] == 0
    assert (tmp_path / "out" / "checkpoint_0.ckpt").is_file()
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    "machine",
    [{"accelerator": "abacus"}, {"strategy": "divination"}, {"devices": 0}, {"devices": "some"}],
)
def test_a_machine_that_is_not_there_is_one_line(dataset, tmp_path, machine):
    settings = {"accelerator": "cpu", **machine}
    with pytest.raises(InputError, match="accelerator, devices or strategy: ") as caught:
        fit(_network(), *_settings(dataset, tmp_path, **settings))
    assert "\n" not in str(caught.value)


def test_more_processes_than_images_to_validate_are_refused(dataset, tmp_path):
    settings = {"accelerator": "cpu", "devices": 4, "strategy": "ddp"}
    with pytest.raises(InputError, match="each of 4 processes needs an image of the valid split"):
        fit(_network(), *_settings(dataset, tmp_path, **settings))


@pytest.mark.parametrize("grids", [False, True])
def test_a_broken_image_is_one_line_though_a_worker_met_it(photos, write_split, tmp_path, grids):
    for split in ("train", "valid"):
        write_split(tmp_path / split, photos)
    broken = tmp_path / "valid" / "BloodImage_00068.jpg"
    # begins and ends as a PNG of the right size, so that the check before the start passes
    size = struct.pack(">2I", photos["images"][0]["width"], photos["images"][0]["height"])
    head, end = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"IEND\xaeB`\x82"
    broken.write_bytes(head + size + bytes(100) + end)
    settings = {"epochs": 1, "num_workers": 1, "eval_interval": 1, "save_dataset_grids": grids}
    model, config = _settings(tmp_path, tmp_path / "out", **settings)
    with pytest.raises(InputError) as caught:
        fit(_network(), model, config)
    assert str(caught.value) == f"{broken} is truncated, or no image that OpenCV can read"


def test_an_output_that_is_a_file_is_refused(dataset, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        fit(_network(), *_settings(dataset, tmp_path / "out"))


def test_the_command_line_takes_a_file_and_options_before_it(dataset, tmp_path):
    (tmp_path / "run.yaml").write_text("model: tiny\nresolution: 96\nepochs: 9\nnum_workers: 0\n")
    result = run_cli(
        *("train", "--config", tmp_path / "run.yaml", "--dataset", dataset),
        *(
            "--output",
            tmp_path / "out",
            "--epochs",
            1,
            "--batch-size",
            3,
            "--set",
            "multi_scale=off",
        ),
        *("--set", "tensorboard=false", "--notes", "from the shell"),
        stdout=subprocess.PIPE,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "out" / "checkpoint_best_total.pth")
    data = torch.load(tmp_path / "out" / "last_ema.pth", weights_only=True)
    assert (data["notes"], data["model_config"]["resolution"]) == ("from the shell", 96)
    assert len(_column(tmp_path / "out", "train/loss")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "x"], "name a model"),
        (["--model", "tiny"], "dataset_dir: Field required"),
        (["--model", "tiny", "--dataset", "x", "--set", "epochs"], "NAME=VALUE"),
        (["--model", "tiny", "--dataset", "x", "--set", "epoch=3"], "did you mean epochs"),
        (["--model", "tiny", "--dataset", "x", "--batch-size", "many"], "batch_size"),
        (["--config", "gone.yaml"], "no such configuration file"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exits_2(arguments, message):
    result = run_cli("train", *arguments, stdout=subprocess.PIPE)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell runs in the background ignores interrupts, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_exits_130_and_can_go_on(dataset, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "rfdetr_edge", "train", "--model", "tiny", "--dataset", str(dataset),
         "--output", str(tmp_path), "--epochs", "500", "--resolution", "64", "--num-workers", "0",
         "--batch-size", "1", "--set", "tensorboard=false", "--set", "multi_scale=off"],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "last.ckpt").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()  # or it would train on beside the other tests
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "optimizer_states" in _last(tmp_path)


POINTS = (5, 5, 0, 6)  # of the synthetic parts
TASK_RUN = {**RUN, "aug_config": "INDUSTRIAL", "epochs": 2}


def _fit(parts: Path, output: Path, variant: str, model: dict, **settings: object) -> Fitted:
    """Two epochs from random weights."""
    chosen = model_config(variant, **MODEL, **model)
    given = {**TASK_RUN, "dataset_dir": parts, "output_dir": output, **settings}
    return fit(None, chosen, train_config(chosen.row.task, **given))


@pytest.mark.parametrize(
    ("variant", "losses", "metric"),
    [
        ("seg-tiny", {"mask_ce", "mask_dice"}, "segm_mAP_50_95"),
        (
            "keypoint-tiny",
            {f"keypoints_{part}" for part in ("l1", "findable", "visible", "nll")},
            "keypoint_map_50_95",
        ),
    ],
)
def test_masks_and_keypoints_are_learned_and_a_resumed_run_is_no_different(
    parts, tmp_path, variant, losses, metric
):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    first = _fit(parts, whole, variant, {}, checkpoint_interval=1)
    for name in losses:
        start, end = _column(whole, f"train/loss_{name}").values()
        assert end < start or name == "keypoints_visible", name
    assert sorted(_column(whole, f"val/{metric}")) == [1]
    again = _fit(parts, resumed, variant, {}, resume=whole / "checkpoint_0.ckpt")
    # by the batch's own random numbers, those of the masks' points included
    assert (resumed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    _assert_equal(again.last.model.state_dict(), first.last.model.state_dict(), "network")
    kept = load_checkpoint(first.best)
    assert (kept.variant.name, kept.schema) == (variant, first.last.schema)


def test_the_data_set_and_the_settings_say_what_the_keypoints_are(photos, write_split, tmp_path):
    for category, names in zip(photos["categories"], (["top", "bottom"], ["eye"]), strict=False):
        category["keypoints"] = names
        for row in photos["annotations"]:
            if row["category_id"] == category["id"]:
                x, y, width, height = row["bbox"]
                row["keypoints"] = [x, y, 2, x + width, y + height, 1][: 3 * len(names)]
    for split in ("train", "valid"):
        write_split(tmp_path / "data" / split, photos)
    start = RFDETR(VARIANTS["keypoint-tiny"], 2)
    assert start.keypoint_counts == (17,)
    chosen = model_config("keypoint-tiny", postprocess_trace_alpha=0.5, **MODEL)
    own = {"keypoint_flip_pairs": [0, 1], "keypoint_oks_sigmas": [0.3, 0.4, 0.2]}
    given = {
        **TASK_RUN,
        "dataset_dir": tmp_path / "data",
        "output_dir": tmp_path / "out",
        "epochs": 1,
        **own,
    }
    fitted = fit(start, chosen, train_config("keypoint", **given))
    points = ClassKeypoints(("top", "bottom"), (), (0.3, 0.4), ((0, 1),))
    eye = ClassKeypoints(("eye",), sigmas=(0.2,))
    wanted = KeypointSchema((points, eye, ClassKeypoints()), trace_alpha=0.5)
    assert load_checkpoint(fitted.best).schema == fitted.last.schema == wanted
    assert fitted.last.model.keypoint_counts == (2, 1, 0)


@pytest.mark.parametrize(
    ("variant", "model", "settings", "message"),
    [
        (
            "keypoint-tiny",
            {"num_keypoints_per_class": [17]},
            {},
            r"num_keypoints_per_class is \[17\], but the classes of .* have \[5, 5, 0, 6\]",
        ),
        ("keypoint-tiny", {}, {"keypoint_oks_sigmas": [0.1] * 5}, ": 16, class after class"),
        ("keypoint-tiny", {}, {"keypoint_flip_pairs": [10, 9]}, r"two of 6 keypoints.*\(0, -1\)"),
        ("keypoint-tiny", {}, {"keypoint_flip_pairs": [16, 0]}, ": 16, class after class"),
        ("keypoint-tiny", {}, {"keypoint_flip_pairs": [0, 5]}, r"flip_pairs pairs two of 5"),
        ("seg-tiny", {}, {"keypoint_oks_sigmas": [0.1]}, "for keypoint variants, not seg-tiny"),
        ("tiny", {}, {"keypoint_flip_pairs": [0, 1]}, "for keypoint variants, not tiny"),
    ],
)
def test_keypoint_settings_that_do_not_fit_are_refused(
    parts, tmp_path, variant, model, settings, message
):
    with pytest.raises(InputError, match=message) as caught:
        _fit(parts, tmp_path, variant, model, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "message"),
    [("seg-tiny", "segmentation"), ("keypoint-tiny", "no class has keypoints")],
)
def test_a_data_set_of_boxes_teaches_no_masks_or_keypoints(dataset, tmp_path, variant, message):
    with pytest.raises(InputError, match=message):
        _fit(dataset, tmp_path, variant, {})


def test_the_keypoints_projector_learns_though_the_encoder_is_frozen(parts, tmp_path):
    start = RFDETR(VARIANTS["keypoint-tiny"], 5, POINTS)
    start.encoder.fix_grid(4, 4)
    chosen = model_config("keypoint-tiny", freeze_encoder=True, **MODEL)
    given = {
        **TASK_RUN,
        "dataset_dir": parts,
        "output_dir": tmp_path,
        "epochs": 1,
        "weight_decay": 0.1,
    }
    tuned = fit(start, chosen, train_config("keypoint", **given)).last.model.state_dict()
    moved = {name for name, tensor in start.state_dict().items() if not tensor.equal(tuned[name])}
    assert not any(name.startswith("encoder.") for name in moved)
    for part in ("projector.", "keypoints.projector.", "keypoints.proposal_heads.", "decoder."):
        assert any(name.startswith(part) for name in moved), part
