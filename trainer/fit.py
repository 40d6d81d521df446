"""fit: one training run, from a network and a data set to the best checkpoint."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from rfdetr_edge.classes import ClassTable, with_slots
from rfdetr_edge.datasets import Dataset, read_dataset
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.files import make_folder, naming, replacing
from rfdetr_edge.keypoint_schema import KeypointSchema
from trainer.auto_batch import probe_batch_size
from trainer.callbacks import BestWeights, EpochFiles, WholeFiles
from trainer.checkpoint import Checkpoint, build_model, load_checkpoint
from trainer.checkpoint_file import read_file
from trainer.config import ModelConfig, TrainConfig, misfit
from trainer.data.grids import save_grids
from trainer.data.module import DetectionData, scales
from trainer.ema import WeightAverage
from trainer.log import MetricsCsv, plot_curves
from trainer.model.rfdetr import RFDETR
from trainer.module import DetectionModule
from trainer.optim import build_optimizer
from trainer.progress import progress_bar

# What Lightning and torch warn of without need, by the start of the message.
_NOISE = (
    r".*does not have many workers",  # one keeps up with a small network
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 under torch 2.13
    r".*multi-threaded, use of fork",  # Python 3.12: a worker ends OpenCV's threads, not torch's
    r"Be aware that when using `ckpt_path`",  # of a run with other callbacks
    r"The number of training batches",  # small data sets have fewer than Lightning's log interval
    r"It is recommended to use `self\.log",  # of what every rank works out from all ranks' finds
    r"Grad strides do not match bucket view",  # DDP, of the mask head's depthwise convolutions
)


@dataclass(frozen=True, slots=True)
class Fitted:
    """last: the last weights, averaged with use_ema, which were no file. best: the best ones' file.
    test: metrics of the test split, when asked for.
    """

    last: Checkpoint
    best: Path
    test: dict[str, float]


def fit(
    network: RFDETR | None,
    model: ModelConfig,
    config: TrainConfig,
    *,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[pl.Callback] = (),
) -> Fitted:
    """Trains a network, which is not changed; its class heads are fitted to the data set.

    network: None starts from random weights, drawn from the run's seed.

    loggers, callbacks: Lightning's, beside our own. Into `config.output_dir` go
    checkpoint_best_total.pth and its fellows, last_ema.pth, last.ckpt and checkpoint_<epoch>.ckpt
    (for `resume`), training_config.json, metrics.csv, curves.png and TensorBoard's events.
    Raises InputError for a data set or settings that cannot be used, ArtifactError for `resume`.
    """
    if config.warm_resolution is not None and not model.row.accepts(config.warm_resolution):
        raise InputError(f"warm_resolution: {misfit(model.row, config.warm_resolution)}")
    make_folder(config.output_dir)
    pl.seed_everything(config.seed, verbose=False)
    dataset = _dataset(model, config)
    counts = list(dataset.schema.counts) if dataset.schema else []
    model = model.model_copy(
        update={"num_classes": len(dataset.classes) - 1, "num_keypoints_per_class": counts}
    )
    network = _prepared(network, model, config, len(dataset.classes))
    if config.resume_path is not None:
        _check_resumable(config.resume_path, network, config)
    config = _with_batch_size(network, model, config)
    data = DetectionData(config, model, dataset)
    average = WeightAverage(config.ema_decay, config.ema_tau) if config.use_ema else None
    best = BestWeights(dataset, model, config)
    trainer = _trainer(config, [best, *([average] if average else []), *callbacks], loggers)
    if len(dataset.valid.images) < trainer.world_size:
        raise InputError(
            f"each of {trainer.world_size} processes needs an image of the valid split, and "
            f"{config.dataset_dir} has {len(dataset.valid.images)}; use fewer devices"
        )
    module = DetectionModule(network, model, config, dataset.classes, dataset.schema)
    with _plain_errors(), naming(config.output_dir):
        if trainer.is_global_zero:
            _write_settings(model, config, dataset.classes)
            if config.save_dataset_grids:
                grids = make_folder(config.output_dir / "dataset_grids")
                save_grids(data.train_dataloader(), grids, "train", dataset.classes)
                save_grids(data.val_dataloader(), grids, "val", dataset.classes)
        trainer.fit(module, data, ckpt_path=config.resume_path, weights_only=True)
    if trainer.is_global_zero:
        last = config.output_dir / ("last_ema.pth" if average else "last.pth")
        module.save(last, trainer.current_epoch - 1)
        table = config.output_dir / "metrics.csv"
        if table.is_file():  # a finished run that was resumed in another folder trains no epoch
            plot_curves(table, config.output_dir / "curves.png")
    if config.run_test:
        kept = load_checkpoint(best.path).model
        module = DetectionModule(kept, model, config, dataset.classes, dataset.schema)
        with _plain_errors():
            trainer.test(module, data.test_dataloader(), verbose=False)
    trained = Checkpoint(
        model=network.cpu().to(memory_format=torch.contiguous_format).eval(),
        classes=dataset.classes,
        schema=dataset.schema,
        resolution=model.resolution,
        antialias=config.antialias,
        sha256="unsaved",
        notes=config.notes,
    )
    return Fitted(trained, best.path, best.test_result)


def _trainer(
    config: TrainConfig, callbacks: list[pl.Callback], loggers: Sequence[Logger]
) -> pl.Trainer:
    folder = config.output_dir
    bar = progress_bar(config.progress_bar)
    own = [
        MetricsCsv(folder / "metrics.csv"),
        *([bar] if bar else []),
        EpochFiles(folder, config.checkpoint_interval),
    ]
    board = [TensorBoardLogger(folder, name="", version="")] if config.tensorboard else []
    try:
        return pl.Trainer(
            max_epochs=config.epochs,
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
            precision=_precision(config),
            gradient_clip_val=config.clip_max_norm or None,
            accumulate_grad_batches=config.grad_accum_steps,
            callbacks=[*callbacks, *own],
            logger=[*board, *loggers],
            plugins=[WholeFiles()],
            enable_progress_bar=bar is not None,
            enable_model_summary=False,
            check_val_every_n_epoch=config.eval_interval,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,  # the sampler shards by itself (trainer/data/module.py)
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise InputError(f"accelerator, devices or strategy: {error}") from None


def _precision(config: TrainConfig) -> Any:
    """Lightning's name of it. Half precision pays on GPUs, and on CPUs where it is asked for."""
    names = {"bf16": "bf16-mixed", "fp16": "16-mixed", None: "32-true"}
    if config.amp_dtype != "auto":
        return names[config.amp_dtype]
    if not torch.cuda.is_available() or config.accelerator == "cpu":
        return names[None]
    return names["bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Without the warnings above, and with errors as our own code raised them."""
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message)
        try:
            yield
        except InputError as error:  # one of a worker comes with its traceback as text
            raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None
        except SystemExit as error:  # what Lightning makes of an interrupt
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise


def _dataset(model: ModelConfig, config: TrainConfig) -> Dataset:
    """The data set, with as many class slots as the user asked for and keypoints as they say."""
    dataset = read_dataset(
        config.dataset_dir,
        config.dataset_file,
        config.class_names,
        report=config.output_dir / "dataset_faults.txt",
        task=model.row.task,
    )
    if config.run_test and dataset.test is None:
        raise InputError(f"run_test needs a test split, and {dataset.root} has none")
    classes, slots = dataset.classes, model.num_classes + 1
    if "num_classes" in model.model_fields_set and slots != len(classes):
        if slots < len(classes) or classes.layout != "background-last":
            raise InputError(
                f"num_classes is {model.num_classes}, but {dataset.root} has {len(classes) - 1} "
                "classes; leave num_classes out"
            )
        classes = with_slots(classes, slots)
    return replace(dataset, classes=classes, schema=_schema(dataset, model, config))


def _schema(dataset: Dataset, model: ModelConfig, config: TrainConfig) -> KeypointSchema | None:
    """The data set's keypoints, with what the user says of them."""
    flat, sigmas = config.keypoint_flip_pairs, config.keypoint_oks_sigmas
    if dataset.schema is None:
        if flat or sigmas:
            raise InputError(
                "keypoint_flip_pairs and keypoint_oks_sigmas are for keypoint variants, not "
                f"{model.variant}; leave them out"
            )
        return None
    counts, wanted = list(dataset.schema.counts), model.num_keypoints_per_class
    if "num_keypoints_per_class" in model.model_fields_set and wanted != counts:
        raise InputError(
            f"num_keypoints_per_class is {wanted}, but the classes of {dataset.root} have "
            f"{counts}; leave it out"
        )
    points, start, classes = sum(counts), 0, []
    if (sigmas and len(sigmas) != points) or max(flat, default=0) >= points:
        raise InputError(
            "keypoint_flip_pairs and keypoint_oks_sigmas count the points through all classes of "
            f"{dataset.root}: {points}, class after class"
        )
    every = list(zip(flat[::2], flat[1::2], strict=True))
    for one in dataset.schema.classes:
        end = start + len(one.names)
        pairs = tuple((a - start, b - start) for a, b in every if start <= a < end)
        own = tuple(sigmas[start:end]) if sigmas else one.sigmas
        try:
            changed = replace(one, flip_pairs=pairs if flat else one.flip_pairs, sigmas=own)
        except InputError as error:
            raise InputError(f"keypoint_flip_pairs, class by class: {error}") from None
        classes.append(changed)
        start = end
    return KeypointSchema(tuple(classes), model.postprocess_trace_alpha)


def _prepared(
    network: RFDETR | None, model: ModelConfig, config: TrainConfig, slots: int
) -> RFDETR:
    """A copy with heads and position table that fit; what gets no gradient is frozen."""
    counts = model.num_keypoints_per_class
    start = RFDETR(model.row, slots, counts) if network is None else network
    prepared = build_model(
        model.row,
        start.state_dict(),
        path=Path("the network"),
        resolution=model.resolution,
        slots=slots,
        keypoint_counts=counts,
    )
    encoder = prepared.encoder
    encoder.drop_path = config.drop_path
    # not part of the forward pass, which DDP would wait for
    unused = [encoder.mask_token]
    unused += [p for block in encoder.blocks[encoder.taps[-1] :] for p in block.parameters()]
    for parameter in encoder.parameters() if model.freeze_encoder else unused:
        parameter.requires_grad_(False)
    # Normalisation leaves maps channels last; convolutions that keep them so spare transpositions.
    prepared.to(memory_format=torch.channels_last)
    return prepared


def _with_batch_size(network: RFDETR, model: ModelConfig, config: TrainConfig) -> TrainConfig:
    """The settings with a number for batch_size="auto"."""
    if config.batch_size != "auto":
        return config
    if config.devices != 1 and not (isinstance(config.devices, list) and len(config.devices) == 1):
        raise InputError("batch_size='auto' measures one device; give a number for several")
    side = max(model.resolution, config.warm_resolution or 0)
    if config.scales_vary:
        side = scales(side, model.row.block_size, expanded=config.expanded_scales)[-1]
    cuda = torch.cuda.is_available() and config.accelerator != "cpu"
    index = config.devices[0] if isinstance(config.devices, list) else 0
    size, steps = probe_batch_size(
        network,
        config,
        device=torch.device("cuda", int(index)) if cuda else torch.device("cpu"),
        side=side,
        autocast={"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(_precision(config)),
    )
    return config.model_copy(update={"batch_size": size, "grad_accum_steps": steps})


def _check_resumable(path: Path, network: RFDETR, config: TrainConfig) -> None:
    data, _ = read_file(path)
    if not data.get("optimizer_states"):
        raise ArtifactError(
            f"{path} has no optimizer state to go on from; resume from a run's last.ckpt, or start "
            "a new run from these weights"
        )
    found = {name: tensor.shape for name, tensor in data.get("state_dict", {}).items()}
    wanted = {f"network.{name}": tensor.shape for name, tensor in network.state_dict().items()}
    # Lightning goes on with the rates of the file, and says nothing of others that are asked for
    before, now = (
        [(group[rate], group["weight_decay"], len(group["params"])) for group in groups]
        for rate, groups in (
            ("initial_lr", data["optimizer_states"][0]["param_groups"]),
            ("lr", build_optimizer(network, config).param_groups),
        )
    )
    if found != wanted or before != now:
        raise ArtifactError(
            f"{path} was written by a run of another variant, resolution, class or keypoint count, "
            "learning rate or decay; resume it with the settings of its training_config.json"
        )


def _write_settings(model: ModelConfig, config: TrainConfig, classes: ClassTable) -> None:
    settings = {
        "train_config": config.model_dump(mode="json"),
        "model_config": model.model_dump(mode="json"),
        "model_config_type": f"{model.row.api_name}Config",
        "class_names": list(classes.foreground()),
        "num_classes": model.num_classes,
    }
    with replacing(config.output_dir / "training_config.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
