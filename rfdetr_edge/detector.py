"""The whole way from images to detections with one artifact. Reads no video and draws nothing."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from rfdetr_edge.backends import (
    ImageRun,
    Session,
    fitting_tuning,
    open_image_session,
    open_session,
)
from rfdetr_edge.binding import bind
from rfdetr_edge.classes import Layout
from rfdetr_edge.detections import Detections
from rfdetr_edge.errors import BackendError, InputError, RFDETREdgeError
from rfdetr_edge.heap import keep_freed_memory
from rfdetr_edge.images import ImageInput, PilImage, Url, image_files, load_image
from rfdetr_edge.metadata import ModelMetadata
from rfdetr_edge.postprocess import RawOutputs, postprocess
from rfdetr_edge.preprocess import check_image, preprocess_batch

_DYNAMIC_BATCH = 8  # more images a run gain little on the devices meant here and cost memory

Images = ImageInput | list[Any] | tuple[Any, ...]


class Detector:
    """An artifact, ready to run. Use it in a `with` block, or call `close`.

    path: the artifact, e.g. `model.onnx`.
    backend: a name of `rfdetr_edge.backends.BACKENDS`; None chooses by the file's suffix.
    provider: what executes it, e.g. "cpu" or "cuda". None takes the best of the installed build.
        It never falls back: when the provider does not start, that is a BackendError.
    threads: CPU threads of one run; an engine has no use for them. None takes what `rfdetr-edge
        tune` found for this artifact on this machine's CPU, with all it found beside; without that
        it is left to the backend.
    class_layout: what the class slots mean, for files without rfdetr-edge metadata, such as
        upstream's own: "coco" for published COCO checkpoints, "background-last" for fine-tuned
        ones, "background-first", "contiguous". Such a file gets the antialiased resize with which
        the published accuracy was measured.
    class_names: the foreground classes in order, to name or rename them.
    device_preprocess: images go to the GPU as bytes and are preprocessed there, for `.engine`
        artifacts alone; float images are then refused. Opening takes the CUDA toolkit's nvcc.

    Opening one lets glibc keep the memory of frames for the whole process (rfdetr_edge.heap).

    Raises ArtifactError, MetadataError, BackendError, BackendUnavailable or InputError; each says
    what to do next.
    """

    # what preprocesses and runs images, where the device does both
    _image_run: ImageRun | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        backend: str | None = None,
        provider: str | None = None,
        threads: int | None = None,
        class_layout: Layout | None = None,
        class_names: Sequence[str] | None = None,
        device_preprocess: bool = False,
    ) -> None:
        if device_preprocess:
            capable = open_image_session(path, backend, provider)
            self._bind(capable, class_layout, class_names)
            try:
                self._image_run = capable.image_run(self.metadata.input)
            except RFDETREdgeError:
                capable.close()
                raise
            return
        tuning = fitting_tuning(path, backend, provider) if threads is None else None
        session = open_session(path, backend, provider, threads, tuning)
        self._bind(session, class_layout, class_names)

    @classmethod
    def from_session(
        cls,
        session: Session,
        *,
        class_layout: Layout | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "Detector":
        """A detector on an open session, for example a `FakeSession`; `close` closes it too."""
        detector = cls.__new__(cls)
        detector._bind(session, class_layout, class_names)
        return detector

    def _bind(
        self, session: Session, class_layout: Layout | None, class_names: Sequence[str] | None
    ) -> None:
        try:
            self._binding = bind(session, class_layout, class_names)
        except RFDETREdgeError:
            session.close()
            raise
        self._session = session
        keep_freed_memory()

    @property
    def metadata(self) -> ModelMetadata:
        """What the artifact says about itself; for a file without metadata, what could be told."""
        return self._binding.metadata

    @property
    def provider(self) -> str:
        """What really executes the artifact, e.g. "cpu"."""
        return self._session.provider

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) in pixels that images are squashed to."""
        return self.metadata.input.resolution

    @property
    def batch_size(self) -> int | None:
        """Images of one run where the artifact fixes them, None where any number will do."""
        return self._binding.batch

    def __enter__(self) -> "Detector":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the session's memory back; `predict` raises BackendError from then on."""
        self._session.close()

    def warm_up(self) -> None:
        """One run on an empty image: the first run of most backends is slower than all others."""
        self._outputs([np.zeros((*self.resolution, 3), np.uint8)] * (self.batch_size or 1))

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        threshold: float = ...,
        bgr: bool = ...,
        batch_size: int | None = ...,
    ) -> list[Detections]: ...
    @overload
    def predict(
        self,
        images: bytes | bytearray | memoryview | Url | PilImage | NDArray[Any],
        *,
        threshold: float = ...,
        bgr: bool = ...,
        batch_size: int | None = ...,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        images: str | os.PathLike[str],
        *,
        threshold: float = ...,
        bgr: bool = ...,
        batch_size: int | None = ...,
    ) -> Any: ...

    def predict(
        self,
        images: Images,
        *,
        threshold: float = 0.5,
        bgr: bool = False,
        batch_size: int | None = None,
    ) -> Detections | list[Detections]:
        """Detects objects on one image, a list or tuple of images, or a folder of image files.

        images: each a path, the bytes of an image file, a `Url`, a Pillow image, or an HxWx3 RGB
            array (uint8, or floats in 0-1), of any sizes. Files are turned upright by their EXIF
            tag, arrays and Pillow images are taken as they are. A folder gives its images sorted
            by name.
        threshold: 0 to 1; detections with a confidence above it are kept.
        bgr: arrays are in OpenCV's channel order. Other kinds of images are not affected.
        batch_size: images a run. None takes the artifact's batch, or up to 8 where any will do.

        Returns Detections for one image, a list for a list, tuple or folder, in the same order.
        Raises InputError for what cannot be used, BackendError when the run fails or gives
        what is no number.
        """
        if not (isinstance(threshold, int | float | np.floating) and 0.0 <= threshold <= 1.0):
            raise InputError(f"threshold must be a number from 0 to 1, not {threshold!r}")
        chunk = self._chunk_size(batch_size)
        if isinstance(images, str | os.PathLike) and _is_folder(images):
            return list(self._detections(image_files(Path(images)), chunk, threshold, bgr))
        if isinstance(images, list | tuple):
            return list(self._detections(images, chunk, threshold, bgr))
        return self._predict_chunk([_load(images, bgr)], threshold)[0]

    def _chunk_size(self, batch_size: int | None) -> int:
        fixed = self.batch_size
        if batch_size is None:
            return fixed or _DYNAMIC_BATCH
        if batch_size < 1 or (fixed is not None and batch_size > fixed):
            limit = f"1 to {fixed}, the artifact's fixed batch" if fixed else "at least 1"
            raise InputError(f"batch_size must be {limit}, not {batch_size}")
        return batch_size

    def _detections(
        self, images: Sequence[ImageInput], chunk: int, threshold: float, bgr: bool
    ) -> Iterator[Detections]:
        """Decodes a chunk at a time, so that a large folder never lies in memory."""
        for start in range(0, len(images), chunk):
            arrays = []
            for index, image in enumerate(images[start : start + chunk], start):
                try:
                    arrays.append(_load(image, bgr))
                except InputError as error:
                    raise InputError(f"image {index} of {len(images)}: {error}") from error
            yield from self._predict_chunk(arrays, threshold)

    def _predict_chunk(self, images: list[NDArray[Any]], threshold: float) -> list[Detections]:
        outputs = self._outputs(images)
        return postprocess(
            outputs.of(slice(len(images))),
            source_sizes=[image.shape[:2] for image in images],
            classes=self.metadata.classes,
            num_select=self.metadata.num_select,
            threshold=threshold,
            schema=self.metadata.keypoints,
        )

    def _run_tensor(self, images: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Preprocessed here. Fewer images than a fixed batch are filled up with zeros."""
        tensor = preprocess_batch(images, self.metadata.input)
        missing = (self.batch_size or len(images)) - len(images)
        if missing:
            tensor = np.concatenate([tensor, np.zeros((missing, *tensor.shape[1:]), np.float32)])
        return self._session.run({self._binding.input_name: tensor})

    def _outputs(self, images: Sequence[NDArray[Any]]) -> RawOutputs:
        run = self._image_run or self._run_tensor
        outputs = self._binding.raw_outputs(run(images))
        if not outputs.are_numbers():
            raise BackendError(
                f"the artifact gave NaN or infinity on {self.provider}: it is broken, or its "
                "precision too low for this device; export it again and verify it there"
            )
        return outputs


def _is_folder(path: str | os.PathLike[str]) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):  # too long, out of reach, a NUL: reading it tells
        return False


def _load(image: ImageInput, bgr: bool) -> NDArray[Any]:
    array = load_image(image, upright=True)
    if not isinstance(image, np.ndarray):
        return array
    check_image(array)  # here too, so that the error can name the image
    return array[:, :, ::-1] if bgr else array
