"""A real training run on three photos: it learns, keeps its files, and goes on where it stopped."""

import csv
import json
from pathlib import Path

import pytest
import torch

from rfdetr_edge.errors import ArtifactError, InputError
from trainer.checkpoint import load_checkpoint
from trainer.checkpoint_names import to_file_names
from trainer.config import TrainConfig
from trainer.fit import fit

EPOCHS = 6


def _config(dataset: Path, output: Path, **settings: object) -> TrainConfig:
    # a warm-up longer than the run: the rate then does not depend on the run's length
    return TrainConfig(
        **{
            "variant": "tiny",
            "dataset": dataset,
            "output": output,
            "epochs": EPOCHS,
            "batch_size": 1,
            "lr": 5e-3,
            "warmup_steps": 100,
            "resolution": 64,
            "eval_interval": 4,
            "num_workers": 0,
            **settings,
        }
    )


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Path:
    """The output folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("run")
    fit(_config(dataset, output))
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


def test_every_file_is_written(run):
    expected = {"checkpoint_best_total.pth", "last.ckpt", "metrics.csv", "training_config.json"}
    assert {path.name for path in run.iterdir()} == expected
    settings = json.loads((run / "training_config.json").read_text())
    assert TrainConfig(**settings) == _config(Path(settings["dataset"]), run)


def test_the_last_epoch_is_validated_whatever_the_interval(run):
    assert sorted(_column(run, "val/mAP_50_95")) == [3, EPOCHS - 1]


def test_the_best_checkpoint_holds_the_averaged_weights(dataset, tmp_path):
    # validated once, at the end, so the best weights are the last ones
    best = fit(_config(dataset, tmp_path, epochs=2, eval_interval=2))
    data = _last(tmp_path)
    kept = to_file_names(load_checkpoint(best).model.state_dict())
    average, current = (
        to_file_names({name.removeprefix("model."): t for name, t in data[key].items()})
        for key in ("state_dict", "current_model_state")
    )
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, average[name], atol=0, rtol=0)
    assert not torch.equal(kept["class_embed.weight"], current["class_embed.weight"])
    assert load_checkpoint(best).resolution == 64
    assert load_checkpoint(best).classes.names == ("RBC", "WBC", "Platelets", "__background__")


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(run, dataset, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    fit(_config(dataset, first, epochs=4, num_workers=1))
    assert _last(first)["epoch"] == 3
    fit(_config(dataset, second, resume=first / "last.ckpt"))
    assert (first / "last.ckpt").is_file()
    assert load_checkpoint(second / "checkpoint_best_total.pth").variant.name == "tiny"
    assert sorted(_column(second, "train/loss")) == [4, 5]
    whole, resumed = _last(run), _last(second)
    assert resumed["epoch"] == whole["epoch"] == EPOCHS - 1
    assert resumed["global_step"] == whole["global_step"] == 3 * EPOCHS
    for weights in ("state_dict", "current_model_state"):
        for name, tensor in whole[weights].items():
            torch.testing.assert_close(resumed[weights][name], tensor, atol=1e-6, rtol=0)


def test_a_run_can_start_from_a_checkpoint_of_other_classes(run, dataset, tmp_path):
    data = torch.load(run / "checkpoint_best_total.pth", weights_only=True)
    for name, tensor in data["model"].items():
        if "class_embed" in name:
            data["model"][name] = tensor[:2]
    torch.save(data, tmp_path / "start.pth")
    start = load_checkpoint(tmp_path / "start.pth")
    best = fit(
        _config(
            dataset,
            tmp_path / "run",
            weights=tmp_path / "start.pth",
            epochs=1,
            lr=1e-9,
            resolution=96,
        )
    )
    tuned = load_checkpoint(best)
    assert (start.model.slots, tuned.model.slots) == (2, 4)
    assert tuned.model.encoder.grid == (6, 6)
    for mine, other in ((slice(0, 2), slice(0, 2)), (slice(2, 4), slice(0, 2))):
        torch.testing.assert_close(
            tuned.model.class_head.weight[mine], start.model.class_head.weight[other]
        )


def test_a_file_that_no_run_can_go_on_from_is_refused(run, dataset, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        fit(_config(dataset, tmp_path / "out", resume=tmp_path / "last.ckpt"))
    with pytest.raises(ArtifactError, match=r"resume from a run's last\.ckpt"):
        fit(_config(dataset, tmp_path / "out", resume=run / "checkpoint_best_total.pth"))
    assert not (tmp_path / "out").exists()


def test_a_broken_image_is_one_line_though_a_worker_met_it(photos, write_split, tmp_path):
    for split in ("train", "valid"):
        write_split(tmp_path / split, photos)
    broken = tmp_path / "valid" / "BloodImage_00068.jpg"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(InputError) as caught:
        fit(_config(tmp_path, tmp_path / "out", epochs=1, num_workers=1))
    assert str(caught.value) == f"{broken} is a truncated JPEG; copy or download it again"


def test_an_output_that_is_a_file_is_refused(dataset, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        fit(_config(dataset, tmp_path / "out"))
