"""`predict` and its optimised form: what users rely on, and equality with the deployed path."""

import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from checkpoints import save_filled
from fill import fill_state_dict

from exporters.onnx_export import OnnxOptions, export_onnx
from rfdetr_edge import Detector, demo
from rfdetr_edge.classes import COCO_NAMES, coco_classes, named_classes
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.images import read_image
from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint import load_checkpoint
from trainer.checkpoint_names import from_file_names, to_file_names
from trainer.config import model_config
from trainer.inference import ModelContext, optimize, predict
from trainer.model.rfdetr import RFDETR

with warnings.catch_warnings():  # it warns about its own dependencies on import
    warnings.simplefilter("ignore")
    supervision = pytest.importorskip("supervision")
Image = pytest.importorskip("PIL.Image")

PHOTOS = demo.photo_paths()
PHOTO = PHOTOS[0]
NAMES = ("RBC", "WBC", "Platelets")
LOW = 0.2  # the filled weights are sure of little


@pytest.fixture(scope="module")
def network() -> RFDETR:
    """The tiny network, 3 classes and background, every weight from its name."""
    model = RFDETR(VARIANTS["tiny"], 4)
    shapes = {name: list(t.shape) for name, t in to_file_names(model.state_dict()).items()}
    filled = {name: torch.from_numpy(array) for name, array in fill_state_dict(shapes).items()}
    model.load_state_dict(from_file_names(filled))
    return model


@pytest.fixture
def context(network: RFDETR) -> ModelContext:
    """A fresh context of the filled network, which no test changes."""
    classes = named_classes("background-last", NAMES)
    args = model_config("tiny", num_classes=3)
    return ModelContext(network, torch.device("cpu"), 352, classes, None, True, args)


def firing(slot: int, slots: int, classes) -> ModelContext:
    """A nano network of random weights whose queries all say one slot."""
    torch.manual_seed(0)
    model = RFDETR(VARIANTS["nano"], slots)
    model.class_head.bias.data[slot] = 6.0
    return ModelContext(model, torch.device("cpu"), 384, classes, None, True, model_config("nano"))


def assert_same(one, other, pixels: float = 1e-2) -> None:
    assert len(one) == len(other) > 5
    np.testing.assert_array_equal(one.class_id, other.class_id)
    np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-4)
    np.testing.assert_allclose(one.xyxy, other.xyxy, atol=pixels)


@pytest.fixture
def address() -> Iterator[str]:
    """The embedded photos on a server of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=PHOTO.parent)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_kind_of_image_gives_the_same(context, address):
    rgb = read_image(PHOTO, upright=True)
    expected = predict(context, PHOTO, LOW)
    scaled = rgb / np.float32(255)
    tensor = torch.from_numpy(scaled.transpose(2, 0, 1))
    for image in (str(PHOTO), f"{address}/{PHOTO.name}", Image.fromarray(rgb), rgb, scaled, tensor):
        found = predict(context, image, LOW)
        assert_same(found, expected)
        np.testing.assert_array_equal(found.metadata["source_image"], rgb)


def test_a_result_has_the_documented_fields(context):
    found = predict(context, PHOTO, LOW)
    assert isinstance(found, supervision.Detections)
    assert (found.xyxy.dtype, found.confidence.dtype) == (np.float32, np.float32)
    assert found.class_id.dtype == np.int64
    assert found.data["class_name"].tolist() == [
        (*NAMES, "__background__")[i] for i in found.class_id
    ]
    assert found.data["source_shape"].dtype == np.int64
    assert found.data["source_shape"].tolist() == [[480, 640]] * len(found)
    assert (np.diff(found.confidence) <= 0).all()


def test_the_source_image_is_a_copy_that_can_be_drawn_on_or_left_out(context):
    rgb = read_image(PHOTO, upright=True)
    for image in (rgb, Image.fromarray(rgb)):
        source = predict(context, image).metadata["source_image"]
        assert (source.shape, source.dtype) == (rgb.shape, np.uint8)
        source[:] = 0
    assert rgb.any()
    assert "source_image" not in predict(context, rgb, include_source_image=False).metadata


def test_the_threshold_is_strict_and_nothing_found_is_empty(context):
    every = predict(context, PHOTO, 0.0)
    assert len(every) == 100  # num_select of tiny
    cut = float(every.confidence[20])
    assert len(predict(context, PHOTO, cut)) == (every.confidence > cut).sum() <= 20
    none = predict(context, PHOTO, 1.0)
    assert (none.xyxy.shape, none.data["source_shape"].shape) == ((0, 4), (0, 2))
    assert none.data["class_name"].shape == (0,)


def test_a_list_is_one_batch_and_a_list_of_one_gives_one(context):
    singles = [predict(context, path, LOW) for path in PHOTOS]
    smaller = read_image(PHOTOS[1], upright=True)[:200, :300]
    found = predict(context, [PHOTOS[0], smaller, PHOTOS[2]], LOW)
    assert isinstance(found, list)
    assert found[1].data["source_shape"][0].tolist() == [200, 300]
    assert_same(found[0], singles[0])
    assert_same(found[2], singles[2])
    assert_same(predict(context, (PHOTO,), LOW), singles[0])
    with pytest.raises(InputError, match="list of images is empty"):
        predict(context, [])


def test_files_are_turned_upright_and_pillow_images_are_not(context, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path / "turned.jpg"
    Image.open(PHOTO).save(path, exif=exif)
    assert predict(context, path).metadata["source_image"].shape == (640, 480, 3)
    assert predict(context, Image.open(path)).metadata["source_image"].shape == (480, 640, 3)


@pytest.mark.parametrize("shape", [None, (256, 384)])
def test_the_deployed_artifact_finds_the_same(tmp_path, shape):
    checkpoint = load_checkpoint(save_filled(tmp_path / "tiny.pth", "tiny", 4, list(NAMES)))
    export_onnx(checkpoint, tmp_path / "tiny.onnx", OnnxOptions(shape=shape), images=None)
    context = ModelContext(
        checkpoint.model,
        torch.device("cpu"),
        checkpoint.resolution,
        checkpoint.classes,
        None,
        checkpoint.antialias,
        model_config("tiny"),
    )
    with Detector(tmp_path / "tiny.onnx") as detector:
        for path in PHOTOS:
            deployed = detector.predict(path, threshold=LOW).to_supervision()
            found = predict(context, path, LOW, shape=shape)
            # float32 sums in another order: 1e-5 of the outputs, times 640 pixels
            assert_same(found, deployed, pixels=1e-2)
            for key in ("class_name", "source_shape"):
                np.testing.assert_array_equal(found.data[key], deployed.data[key])


@pytest.mark.parametrize(("slot", "name"), [(18, "dog"), (90, "toothbrush"), (12, "")])
def test_coco_slots_are_category_ids(slot, name):
    context = firing(slot, 91, coco_classes())
    found = predict(context, PHOTO)
    assert set(found.class_id) == {slot}
    assert set(found.data["class_name"]) == {name}
    assert context.class_names == list(COCO_NAMES)


def test_the_last_slot_of_a_fine_tuned_head_is_background():
    context = firing(2, 3, named_classes("background-last", ["cell", "cell"]))
    assert set(predict(context, PHOTO).data["class_name"]) == {"__background__"}
    assert context.class_names == ["cell", "cell"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        (np.full((8, 8, 3), 1.5), "to 1.5"),
        (np.full((8, 8, 3), -0.5), "from -0.5"),
        (torch.full((3, 8, 8), 1.5), "to 1.5"),
        (torch.full((3, 8, 8), -0.5), "from -0.5"),
        (torch.full((3, 8, 8), torch.nan), "NaN"),
        (torch.zeros(8, 8, 3), r"\(8, 8, 3\); wanted \(C, H, W\)"),
        (torch.zeros(1, 8, 8), r"\(C, H, W\) with 3 channels"),
        (torch.zeros(1, 3, 8, 8), r"\(C, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        ("missing.jpg", "no image file missing.jpg"),
        (None, "NoneType"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(context, image, message):
    with pytest.raises(InputError, match=f"image 1 of 2: .*{message}"):
        predict(context, [PHOTO, image])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": 352}, "two positive integers"),
        ({"shape": (352,)}, "two positive integers"),
        ({"shape": (352, 352, 3)}, "two positive integers"),
        ({"shape": (352.0, 352)}, "two positive integers"),
        ({"shape": (True, 352)}, "does not fit"),
        ({"shape": (352, 0)}, "two positive integers"),
        ({"shape": (-32, 352)}, "two positive integers"),
        ({"shape": (352, 350)}, "nearest are 320 and 352"),
        ({"patch_size": 14}, "patch_size of tiny is 16, not 14"),
        ({"patch_size": 16.0}, "patch_size"),
        ({"patch_size": True}, "patch_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
    ],
)
def test_an_option_that_does_not_fit_is_a_value_error(context, options, message):
    with pytest.raises(ValueError, match=message):
        predict(context, PHOTO, **options)


def test_options_that_fit_are_taken(context):
    expected = predict(context, PHOTO, LOW)
    assert_same(predict(context, PHOTO, LOW, (np.int64(352), 352), 16), expected)


def test_the_network_is_evaluated_even_after_training(context):
    expected = predict(context, PHOTO, LOW)
    context.model.train()
    assert_same(predict(context, PHOTO, LOW), expected)


def test_broken_weights_are_named(context):
    model = RFDETR(VARIANTS["tiny"], 4)
    model.class_head.bias.data[0] = torch.nan
    context.model = model
    with pytest.raises(ArtifactError, match="NaN"):
        predict(context, PHOTO)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_optimised_model_finds_the_same(context, compiled):
    expected = predict(context, PHOTOS, LOW)
    optimize(context, compile=compiled, batch_size=3)
    state = context.optimized
    assert (state.resolution, state.dtype) == (352, torch.float32)
    assert state.batch_size == (3 if compiled else None)
    assert context.inference_model is state.model
    assert isinstance(state.model, torch.jit.ScriptModule) == compiled
    for found, wanted in zip(predict(context, PHOTOS, LOW), expected, strict=True):
        assert_same(found, wanted)


def test_an_optimised_model_refuses_what_it_was_not_made_for(context):
    optimize(context, batch_size=2)
    with pytest.raises(ValueError, match=r"batch size mismatch.*remove_optimized_model\(\)"):
        predict(context, PHOTO)
    optimize(context, compile=False, batch_size=2)
    assert len(predict(context, PHOTOS)) == 3
    for shape in ((320, 352), (352, 320)):
        with pytest.raises(ValueError, match=r"resolution mismatch.*remove_optimized_model\(\)"):
            predict(context, PHOTO, shape=shape)
    context.resolution = 320
    with pytest.raises(ValueError, match=r"resolution mismatch.*352x352 pixels, not 1 of 320x320"):
        predict(context, PHOTO)
    context.optimized = None
    assert context.inference_model is None
    assert len(predict(context, PHOTO, 0.0)) == 100


def test_another_resolution_than_the_tables_is_optimised_too(context):
    context.resolution = 256
    expected = predict(context, PHOTO, LOW)
    table = context.model.encoder.positions
    optimize(context)
    assert_same(predict(context, PHOTO, LOW), expected)
    assert context.model.encoder.positions is table  # the ordinary network is untouched


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16"])
def test_half_precision_ranks_nearly_alike_and_returns_float32(context, dtype):
    expected = predict(context, PHOTO, 0.0)
    optimize(context, dtype=dtype)
    assert context.optimized.dtype is (torch.float16 if dtype == "float16" else torch.bfloat16)
    parameters = dict(context.inference_model.named_parameters())
    assert parameters["model.encoder.blocks.0.fc1.weight"].dtype is context.optimized.dtype
    found = predict(context, PHOTO, 0.0)
    assert found.xyxy.dtype == found.confidence.dtype == np.float32
    # Random weights turn near ties around, so that single boxes say little.
    difference = np.abs(found.confidence - expected.confidence).mean()
    assert 0 < difference < (0.01 if dtype == "float16" else 0.05)


@pytest.mark.parametrize("dtype", ["float999", "nn", "int64", torch.int64, 16, None])
def test_another_dtype_is_a_type_error(context, dtype):
    optimize(context, compile=False)
    kept = context.optimized
    with pytest.raises(TypeError, match=r"dtype must be a torch\.dtype"):
        optimize(context, dtype=dtype)
    assert context.optimized is kept


@pytest.mark.parametrize("batch_size", [0, -1, 1.0, True, None])
def test_a_batch_size_is_a_positive_integer(context, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        optimize(context, batch_size=batch_size)
    optimize(context, compile=False, batch_size=batch_size)  # does not matter there


def test_a_failed_optimisation_leaves_the_ordinary_network(context):
    expected = predict(context, PHOTO, LOW)
    optimize(context, compile=False)
    with pytest.raises(RuntimeError, match="memory"):
        optimize(context, batch_size=10**9)
    assert context.optimized is None
    assert_same(predict(context, PHOTO, LOW), expected)


def test_postprocess_gives_every_ranked_pair(context):
    tensor = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    outputs = context.model.eval()(tensor)  # with gradients, as in a training step
    sizes = torch.tensor([[480, 640], [100, 50]])
    results = context.postprocess(outputs, sizes)
    assert [len(result["scores"]) for result in results] == [100, 100]
    for (height, width), result in zip(sizes.tolist(), results, strict=True):
        assert (result["labels"].dtype, result["boxes"].shape) == (torch.int64, (100, 4))
        assert bool((result["boxes"][:, 2:] <= torch.tensor([width, height])).all())
        assert bool((result["scores"].diff() <= 0).all())
    best = outputs.final.logits.sigmoid().flatten(1).max(1).values.detach()
    torch.testing.assert_close(torch.stack([result["scores"][0] for result in results]), best)
    pair = tuple(outputs.final)  # what an optimised model gives
    for one, other in zip(context.postprocess(pair, sizes), results, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("scores", "labels", "boxes"))


POINTS = (5, 0, 3)


@pytest.fixture(scope="module")
def of_a_task(tmp_path_factory) -> Callable[[str], ModelContext]:
    """A context of the filled network of a variant, at 96 pixels."""
    folder = tmp_path_factory.mktemp("tasks")

    def make(variant: str) -> ModelContext:
        counts = POINTS if VARIANTS[variant].task == "keypoint" else ()
        path = save_filled(folder / f"{variant}.pth", variant, 4, list(NAMES), counts)
        found = load_checkpoint(path)
        rest = (found.classes, found.schema, found.antialias, model_config(variant))
        return ModelContext(found.model, torch.device("cpu"), 96, *rest)

    return make


def test_masks_are_whole_frames(of_a_task):
    first, second = predict(of_a_task("seg-tiny"), [PHOTO, np.zeros((50, 70, 3), np.uint8)], LOW)
    assert isinstance(first, supervision.Detections)
    assert len(first) > 5
    assert (first.mask.shape, first.mask.dtype) == ((len(first), 480, 640), bool)
    assert second.mask.shape == (len(second), 50, 70)
    assert 0 < first.mask.mean() < 1
    assert first.metadata["source_image"].shape == (480, 640, 3)
    assert {*first.data} == {"class_name", "source_shape"}
    assert len(predict(of_a_task("seg-tiny"), PHOTO, 1.0)) == 0


def test_keypoints_have_the_documented_fields(of_a_task):
    context = of_a_task("keypoint-tiny")
    found = predict(context, PHOTO, LOW)
    count = len(found)
    assert isinstance(found, supervision.KeyPoints)
    assert count > 5
    assert (found.xy.shape, found.keypoint_confidence.shape) == ((count, 5, 2), (count, 5))
    assert (found.detection_confidence > LOW).all()
    assert found.class_id.shape == (count,)
    shapes = {name: np.shape(value) for name, value in found.data.items()}
    assert shapes == {
        "class_name": (count,),
        "source_shape": (count, 2),
        "xyxy": (count, 4),
        "covariance": (count, 5, 2, 2),
        "keypoint_precision_cholesky": (count, 5, 3),
        "source_image": (count, 480, 640, 3),
    }
    some = found[found.detection_confidence > np.median(found.detection_confidence)]
    assert 0 < len(some) < count
    assert len(some.data["source_image"]) == len(some.data["xyxy"]) == len(some)
    assert "source_image" not in predict(context, PHOTO, LOW, include_source_image=False).data
    assert len(predict(context, PHOTO, 1.0)) == 0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("variant", ["seg-tiny", "keypoint-tiny"])
def test_an_optimised_model_of_every_task_finds_the_same(of_a_task, variant, compiled):
    context = of_a_task(variant)
    sizes, tensor = torch.tensor([[48, 64]]), torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        (expected,) = context.postprocess(context.model(tensor), sizes)
        optimize(context, compile=compiled)
        (found,) = context.postprocess(context.inference_model(tensor), sizes)
    assert found.keys() == expected.keys()
    rows = len(found["scores"])
    for name, value in found.items():
        assert len(value) == rows
        wanted = expected[name].float()
        # the columns beyond a class's own points are NaN
        torch.testing.assert_close(value.float(), wanted, rtol=1e-3, atol=1e-3, equal_nan=True)
    if variant == "seg-tiny":
        assert (found["masks"].shape, found["masks"].dtype) == ((rows, 1, 48, 64), torch.bool)
    else:
        assert found["keypoints"].shape == found["keypoint_precision_cholesky"].shape
        assert found["keypoints"].shape == (rows, 5, 3)
        assert (found["scores"] > 0).all()
        assert 0 <= found["keypoints"][..., 2].min() <= found["keypoints"][..., 2].max() <= 1
