"""Settings: every documented one is taken at its value; what cannot be meant says what would do."""

from pathlib import Path

import pytest

from rfdetr_edge.errors import InputError
from trainer.config import TrainConfig, model_config, train_config

# Every setting that upstream 1.11.2 documents, at its default.
DOCUMENTED = {
    "lr": 1e-4, "lr_encoder": 1.5e-4, "batch_size": 4, "grad_accum_steps": 1,
    "eval_batch_size": None, "pad_targets_to": None, "auto_batch_target_effective": 16,
    "auto_batch_max_targets_per_image": 100, "auto_batch_ema_headroom": 0.7, "epochs": 100,
    "resume": None, "ema_decay": 0.993, "ema_tau": 100, "checkpoint_interval": 10,
    "skip_best_epochs": 0, "smooth_alpha": 0.0, "warmup_epochs": 0.0, "lr_vit_layer_decay": 0.8,
    "lr_component_decay": 0.7, "drop_path": 0.0, "cls_loss_coef": 1.0, "keypoint_flip_pairs": [],
    "keypoint_l1_loss_coef": 0, "keypoint_findable_loss_coef": 0, "keypoint_visible_loss_coef": 0,
    "keypoint_nll_loss_coef": 0, "keypoint_oks_sigmas": None, "dataset_file": "roboflow",
    "square_resize_div_64": True, "output_dir": "output", "multi_scale": "per-batch",
    "expanded_scales": True, "use_ema": True, "ema_update_interval": 1, "eval_base_model": False,
    "eval_ema_only": False, "num_workers": 2, "weight_decay": 1e-4, "amp_dtype": "auto",
    "best_model_metric": "map", "early_stopping": False, "early_stopping_patience": 10,
    "early_stopping_min_delta": 0.001, "early_stopping_use_ema": False, "progress_bar": None,
    "tensorboard": True, "wandb": False, "mlflow": False, "clearml": False, "project": None,
    "run": None, "class_names": None, "run_test": False, "eval_max_dets": 500, "eval_interval": 1,
    "log_per_class_metrics": False, "eval_backend": "vernier", "eval_masks_head_resolution": False,
    "aug_config": None, "scale_jitter": True, "augmentation_backend": "cpu",
    "save_dataset_grids": False, "notes": None, "accelerator": "auto", "clip_max_norm": 0.1,
    "seed": None, "sync_bn": False, "strategy": "auto", "devices": 1, "num_nodes": 1,
    "fp16_eval": False, "lr_scheduler": "step", "lr_scheduler_kwargs": {},
    "lr_scheduler_interval": "step", "lr_scheduler_monitor": "val/loss", "optimizer": "adamw",
    "optimizer_kwargs": {}, "dont_save_weights": False, "train_log_sync_dist": False,
    "train_log_on_step": False, "compact_train_metrics": True, "compute_train_metrics": False,
    "num_sanity_val_steps": 0, "compute_val_loss": "auto", "compute_test_loss": True,
    "pin_memory": None, "persistent_workers": None, "prefetch_factor": None, "pack_targets": True,
}  # fmt: skip


def test_every_documented_default_is_taken_and_is_ours():
    config = TrainConfig(dataset_dir="data", **DOCUMENTED)
    assert config == TrainConfig(dataset_dir="data")
    assert config.seed == 42  # what None means upstream


@pytest.mark.parametrize("name", sorted({*DOCUMENTED} - {*TrainConfig.model_fields}))
def test_what_is_a_constant_here_cannot_be_changed(name):
    with pytest.raises(InputError, match=f"^{name} is .* here and cannot be set to 'other'"):
        train_config("detection", **{"dataset_dir": "data", name: "other"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1e-3}, "TrainConfig has no setting 'learning_rate'"),
        ({"warmup_epoch": 1}, "did you mean warmup_epochs"),
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1"),
        ({"ema_decay": 1.5}, "ema_decay: Input should be less than or equal to 1"),
        ({"drop_path": 1.0}, "drop_path: Input should be less than 1"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"lr": float("nan")}, "lr: Input should be"),
        ({"amp_dtype": "fp32"}, "amp_dtype: Input should be 'auto', 'bf16' or 'fp16'"),
        ({"lr_scheduler_kwargs": {"gamma": 0.1}}, "lr_scheduler_kwargs"),
        ({"keypoint_flip_pairs": [1, 2, 3]}, "keypoint_flip_pairs: must be pairs in a row"),
        ({"keypoint_oks_sigmas": [0.1, 0.0]}, "keypoint_oks_sigmas.1: Input should be greater"),
    ],
)
def test_a_wrong_setting_of_a_run_is_one_line(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        train_config("detection", **{"dataset_dir": "data", **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "huge"}, "unknown variant 'huge'; choose one of tiny, seg-tiny"),
        ({"num_keypoints_per_class": [5]}, r"num_keypoints_per_class \[5\] does not fit tiny"),
        ({"variant": "keypoint-tiny", "num_keypoints_per_class": [0]}, "does not fit"),
        ({"segmentation_head": True}, "segmentation_head is False here"),
        ({"resolution": 100}, r"100 is no multiple of 32 .* the nearest are 96 and 128"),
        ({"resolution": 10}, "the nearest are 32 and 64"),
        ({"resolution": -64}, "no multiple of 32"),
        ({"variant": "base", "resolution": 384}, "the nearest are 336 and 392"),
        ({"group_detr": 1}, "group_detr is 5 here"),
    ],
)
def test_a_wrong_setting_of_a_model_is_one_line(settings, message):
    given = {"variant": "tiny", "resolution": 64, "num_classes": 3, **settings}
    with pytest.raises(InputError, match=message) as caught:
        model_config(**given)
    assert "\n" not in str(caught.value)


def test_a_model_is_the_variants_unless_given():
    base = model_config("base", num_classes=2)
    assert (base.resolution, base.num_classes) == (560, 2)
    assert base.model_fields_set == {"num_classes"}
    base.adopt(num_classes=7, resolution=392)
    assert (base.resolution, base.num_classes) == (392, 7)
    assert base.model_fields_set == {"num_classes"}


def test_a_keypoint_run_has_defaults_of_its_own():
    config = train_config("keypoint", dataset_dir="data", smooth_alpha=0.25)
    assert config.coefficients["loss_ce"] == 2
    assert config.coefficients["loss_keypoints_nll"] == 1
    assert (config.skip_best_epochs, config.smooth_alpha) == (10, 0.25)
    for task in ("detection", "segmentation"):
        assert train_config(task, dataset_dir="data") == TrainConfig(dataset_dir="data")


def test_a_keypoint_model_has_the_points_of_its_variant_unless_given():
    model = model_config("keypoint-preview")
    assert model.num_keypoints_per_class == [17]
    assert "num_keypoints_per_class" not in model.model_fields_set
    assert model_config("keypoint-preview", num_keypoints_per_class=[5, 0]).num_classes == 90


def test_the_checkpoint_to_go_on_from():
    places = {
        resume: TrainConfig(dataset_dir="data", output_dir="out", resume=resume).resume_path
        for resume in (None, "last", "a/b.ckpt")
    }
    assert places == {None: None, "last": Path("out/last.ckpt"), "a/b.ckpt": Path("a/b.ckpt")}
