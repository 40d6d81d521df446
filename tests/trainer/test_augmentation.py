"""What `aug_config` may say, what it may not, and that it is stored as it was said."""

import json
import subprocess
import sys

import pytest

from rfdetr_edge.errors import InputError
from trainer.config import TrainConfig
from trainer.data.augmentation import DEFAULT, PRESETS, Augmentation, Chance, read_augmentation


def test_a_transform_that_is_named_takes_its_defaults_and_the_rest_never_happens():
    found = read_augmentation({"GaussianBlur": {"p": 0.2}, "Transpose": {}})
    assert (found.GaussianBlur.p, found.GaussianBlur.sigma_limit) == (0.2, (0.5, 3.0))
    assert found.Transpose.p == 0.5
    others = set(Augmentation.model_fields) - {"GaussianBlur", "Transpose"}
    assert {found.model_dump()[name]["p"] for name in others} == {0}
    assert all(value["p"] == 0 for value in read_augmentation({}).model_dump().values())


@pytest.mark.parametrize(
    "name", ["CONSERVATIVE", "AGGRESSIVE", "AERIAL", "INDUSTRIAL", "MICROSCOPY"]
)
def test_a_preset_is_its_name_or_its_dict(name):
    assert read_augmentation(name) == read_augmentation(PRESETS[name])
    assert read_augmentation(name) not in (Augmentation(), DEFAULT)


def test_only_the_flip_happens_by_default():
    assert Augmentation(HorizontalFlip=Chance(p=0.5)) == DEFAULT


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("AERIAl", "no preset 'AERIAl'; did you mean AERIAL?"),
        ("night", "no preset 'night'; it knows CONSERVATIVE, AGGRESSIVE, AERIAL, INDUSTRIAL"),
        (0.5, "must be a preset or map transforms to values, not 0.5"),
        ({"HorizontalFlipp": {}}, "no HorizontalFlipp; did you mean HorizontalFlip?"),
        ({"CLAHE": {}}, "no CLAHE; it knows CopyPaste, HorizontalFlip, VerticalFlip"),
        ({"HorizontalFlip": {"prob": 1}}, "no HorizontalFlip.prob; it knows p"),
        ({"ColorJitter": {"contrats": 1}}, "no ColorJitter.contrats; did you mean contrast?"),
        ({"HorizontalFlip": {"p": 1.5}}, "HorizontalFlip.p: .*less than or equal to 1; it is 1.5"),
        ({"HorizontalFlip": {"p": "0.5"}}, "HorizontalFlip.p: .*valid number; it is '0.5'"),
        ({"HorizontalFlip": 0.5}, "HorizontalFlip: .*; it is 0.5"),
        ({"GaussianBlur": {"sigma_limit": [0, 1]}}, "sigma_limit.0: .*greater than 0; it is 0"),
        ({"GaussianBlur": {"sigma_limit": 3}}, "sigma_limit: .*tuple; it is 3"),
        ({1: {}}, "1: Keys should be strings"),
    ],
)
def test_a_mistake_is_one_clear_error(value, message):
    with pytest.raises(InputError, match=f"^aug_config .*{message.replace('?', '[?]')}"):
        read_augmentation(value)
    with pytest.raises(ValueError, match="1 validation error for TrainConfig"):
        TrainConfig(dataset_dir="data", aug_config=value)


@pytest.mark.parametrize("value", [None, {}, "MICROSCOPY", {"Transpose": {"p": 1}}])
def test_settings_come_back_from_json(value):
    config = TrainConfig(dataset_dir="data", aug_config=value)
    again = TrainConfig(**json.loads(config.model_dump_json()))
    assert again == config
    assert again.aug_config == (None if value is None else read_augmentation(value))


def test_settings_are_read_without_opencv_and_torch():
    code = (
        "import sys, trainer.data.augmentation; "
        "assert not {'cv2', 'torch'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
