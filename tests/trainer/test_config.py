"""Settings that cannot be meant are errors that say what would do."""

import pytest
from pydantic import ValidationError

from trainer.config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "huge"}, "unknown variant 'huge'; choose one of tiny, nano"),
        ({"resolution": 100}, r"100 is no multiple of 32 .* the nearest are 96 and 128"),
        ({"warm_resolution": 10}, "the nearest are 32 and 64"),
        ({"resolution": -64}, "no multiple of 32"),
        ({"variant": "base", "resolution": 384}, "the nearest are 336 and 392"),
        ({"learning_rate": 1e-3}, r"learning_rate\s+Extra inputs are not permitted"),
        ({"epochs": 0}, r"epochs\s+Input should be greater than or equal to 1"),
        ({"ema_decay": 1.5}, r"ema_decay\s+Input should be less than or equal to 1"),
        ({"precision": "fp16"}, r"precision\s+Input should be 'fp32' or 'bf16'"),
    ],
)
def test_a_wrong_setting_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**{"variant": "tiny", "dataset": "data", **settings})


def test_the_side_is_the_variants_unless_given():
    assert TrainConfig(variant="base", dataset="data").side == 560
    assert TrainConfig(variant="base", dataset="data", resolution=392).side == 392
