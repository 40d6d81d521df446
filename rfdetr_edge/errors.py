"""Every error the runtime raises on purpose.

    RFDETREdgeError
    ├── ArtifactError            the file is missing, broken, or no detector
    │   └── MetadataError        its metadata is absent, malformed, or of a newer schema
    ├── BackendError             the executor refused the artifact or failed while running it
    │   └── BackendUnavailable   its library is not installed; names the extra that installs it
    └── InputError               an image, array, folder or option that cannot be used

ArtifactError and InputError are also ValueErrors. Each message says what was wrong and what to do
next. Errors of foreign libraries are mapped to these where the library is called, so callers need
to catch nothing else.
"""


class RFDETREdgeError(Exception):
    """Base of every error raised on purpose by rfdetr-edge."""


class ArtifactError(RFDETREdgeError, ValueError):
    """An artifact or checkpoint that is missing, broken, or not what it should be."""


class MetadataError(ArtifactError):
    """Metadata that is absent, malformed, or written by a newer schema."""


class BackendError(RFDETREdgeError):
    """An executor that refused an artifact or failed while running it."""


class BackendUnavailable(BackendError):
    """A library that is not installed. The message names the extra that installs it."""


class InputError(RFDETREdgeError, ValueError):
    """An image, array, folder or option that cannot be used."""
