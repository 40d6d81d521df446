"""The recipes that ship with the trainer are settings it takes."""

from pathlib import Path

import pytest

import trainer
from rfdetr_edge.yaml_file import read_yaml
from trainer.config import TrainConfig, model_config, train_config
from trainer.data.augmentation import read_augmentation
from trainer.optim import rate_factor


def test_the_embedded_models_recipe_is_valid():
    settings = read_yaml(Path(trainer.__file__).parent / "recipes" / "tiny.yaml")
    model = model_config(settings.pop("model"), resolution=settings.pop("resolution"))
    config = TrainConfig(dataset_dir="data", **settings)
    assert model.row.accepts(config.warm_resolution)
    assert config.aug_config == read_augmentation("MICROSCOPY")
    assert not config.scales_vary
    # 205 photos, batches of 4: the rate rises for 100 steps and ends at a hundredth
    factors = [rate_factor(step, 205 // config.batch_size, config) for step in (98, 99, 100, 15300)]
    assert factors[0] < factors[1] <= 1
    assert factors[2] > 0.999
    assert abs(factors[3] - 0.01) < 1e-6


@pytest.mark.parametrize("name", ["seg-tiny", "keypoint-tiny", "mini"])
def test_the_other_recipes_are_valid(name):
    settings = read_yaml(Path(trainer.__file__).parent / "recipes" / f"{name}.yaml")
    assert settings["model"] == name
    model = model_config(settings.pop("model"), resolution=settings.pop("resolution"))
    config = train_config(model.row.task, dataset_dir="data", **settings)
    assert model.row.accepts(config.warm_resolution)
    if model.row.task != "detection":
        assert config.aug_config.CopyPaste.p == 0  # pastes boxes alone
