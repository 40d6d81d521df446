"""Which of the libraries gives `CudaBackend`: pycuda where it loads, else cuda-bindings."""

import importlib
import logging

from rfdetr_edge.cuda.protocol import CudaBackend
from rfdetr_edge.errors import BackendUnavailable

# module with the adapter, and the extra that installs what it imports
_CHOICES = (
    ("rfdetr_edge.cuda.pycuda", "tensorrt"),
    ("rfdetr_edge.cuda.cudabindings", "cuda"),
)

logger = logging.getLogger(__name__)


def open_cuda() -> CudaBackend:
    """The first GPU; `driver.probe_driver` comes first.

    Raises BackendUnavailable where neither library loads, BackendError when CUDA does not start.
    """
    reasons = []
    for module, extra in _CHOICES:
        try:
            adapter = importlib.import_module(module)
        except ImportError as error:  # not installed, or its binaries do not fit this system
            reasons.append(f"{error}: pip install 'rfdetr-edge[{extra}]'")
            continue
        logger.info("CUDA through %s", module)
        cuda: CudaBackend = adapter.open_cuda()
        return cuda
    raise BackendUnavailable(
        f"TensorRT engines need pycuda or cuda-bindings ({'; or '.join(reasons)}); where pycuda "
        "does not build, docs/build_pycuda.sh does it"
    )
