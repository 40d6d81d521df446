"""The one place that imports OpenCV and supervision, on first use.

`import rfdetr_edge` stays light, and a missing extra is one clear error where it is first needed.
OpenCV is no dependency of the package, since a pip copy would shadow a Jetson's own build.
"""

import importlib
from types import ModuleType

from rfdetr_edge.errors import BackendUnavailable


def opencv() -> ModuleType:
    """The module `cv2`. Raises BackendUnavailable when it is missing or does not load."""
    return _load(
        "cv2",
        "OpenCV",
        "pip install 'rfdetr-edge[opencv]'; where the system brings its own, as on a Jetson, "
        "make the venv with --system-site-packages instead",
    )


def supervision() -> ModuleType:
    """The module `supervision`. Raises BackendUnavailable when it is missing or does not load."""
    return _load("supervision", "supervision", "pip install 'rfdetr-edge[supervision]'")


def _load(module: str, title: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise BackendUnavailable(
                f"{title} is installed but needs {error.name!r}: {error}"
            ) from error
        raise BackendUnavailable(f"{title} is not installed: {remedy}") from None
    except ImportError as error:  # a system library it links to is absent, such as libGL
        raise BackendUnavailable(
            f"{title} is installed but does not load ({error}): {remedy}"
        ) from error
