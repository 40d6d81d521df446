"""fit(config): one training run, from a data set to the best checkpoint."""

import json
import warnings
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.files import make_folder, naming, replacing
from trainer.callbacks import BestByAP, weight_average
from trainer.checkpoint import build_model, load_weights
from trainer.checkpoint_file import read_file
from trainer.config import TrainConfig
from trainer.data.coco import read_classes
from trainer.data.module import DetectionData
from trainer.model.rfdetr import RFDETR
from trainer.module import DetectionModule

# What Lightning and torch warn of without need, by the start of the message.
_NOISE = (
    r".*does not have many workers",  # one keeps up with a small network
    r".* directory .* exists and is not empty",  # training_config.json lies there already
    r"The dirpath has changed",  # a resumed run may write into another folder
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 under torch 2.13
    r".*multi-threaded, use of fork",  # Python 3.12: a worker ends OpenCV's threads, not torch's
)


def fit(config: TrainConfig, *, progress: bool = False) -> Path:
    """Trains and returns the checkpoint of the weights with the highest AP on the valid split.

    Beside it in `config.output`: last.ckpt (Lightning's, for `resume`), metrics.csv and
    training_config.json. Raises InputError for a data set, ArtifactError for a checkpoint that
    cannot be used.
    """
    if config.resume is not None:
        _check_resumable(config.resume)
    pl.seed_everything(config.seed)
    classes = read_classes(config.dataset)
    data = DetectionData(config, classes)
    make_folder(config.output)
    module = DetectionModule(_start(config, classes), config, classes)
    best = BestByAP(data.valid_split.annotations, config, classes)
    last = ModelCheckpoint(config.output, filename="last", enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=config.epochs,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        gradient_clip_val=config.clip_max_norm,
        callbacks=[best, weight_average(config.ema_decay), last]
        + ([TQDMProgressBar()] if progress else []),
        enable_progress_bar=progress,
        enable_model_summary=False,
        check_val_every_n_epoch=config.eval_interval,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=CSVLogger(config.output, name="", version=""),
    )
    with replacing(config.output / "training_config.json") as temporary:
        text = json.dumps(json.loads(config.model_dump_json()), indent=2)
        temporary.write_text(text + "\n")
    with warnings.catch_warnings(), naming(config.output):
        for message in _NOISE:
            warnings.filterwarnings("ignore", message)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=config.resume, weights_only=True)
        except InputError as error:  # one of a worker comes with its traceback as text
            raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None
    return best.path


def _check_resumable(path: Path) -> None:
    if "optimizer_states" not in read_file(path)[0]:
        raise ArtifactError(
            f"{path} has no optimizer state to go on from; resume from a run's last.ckpt, or start "
            "a new run from these weights"
        )


def _start(config: TrainConfig, classes: ClassTable) -> RFDETR:
    variant = config.table_entry
    if config.weights is not None:
        return build_model(
            variant,
            load_weights(config.weights),
            path=config.weights,
            resolution=config.side,
            slots=len(classes),
        )
    model = RFDETR(variant, len(classes))
    side = variant.position_grid_at(config.side)
    model.encoder.fix_grid(side, side)
    return model
