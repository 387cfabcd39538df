"""Every error vit_edge raises on purpose, in one tree.

A command line exits with `exit_code`: 2 where the call is wrong, 3 where something handed to us or
found here is bad, 4 where a check that was asked for failed, 1 where nothing of these fits.

A message says what happened, what was found against what was expected, and what to do next. The
command lines print it without a traceback.
"""

from __future__ import annotations


class VitEdgeError(Exception):
    """The root: catch it to catch everything vit_edge raises on purpose."""

    exit_code = 1


class UsageError(VitEdgeError):
    """The call is wrong: an unknown name, a value outside its range, options that exclude."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional package is needed; the message ends in the pip line to type."""


class InputError(VitEdgeError):
    """Something handed to vit_edge is bad."""

    exit_code = 3


class ImageError(InputError):
    """An image that cannot be used."""


class ImageDecodeError(ImageError):
    """Not an image, or a damaged one."""


class UnsupportedImageError(ImageError):
    """An image in a format that is never opened here, or whose decoder is not installed."""


class ImageTooLargeError(ImageError):
    """An image whose header promises more pixels or bytes than the limits allow."""


class ArrayError(ImageError):
    """A NumPy image of the wrong dtype, rank, layout or range."""


class CheckpointError(InputError):
    """Weights or a configuration that do not fit together."""


class HubError(CheckpointError):
    """The model hub cannot be reached, or does not have what was asked."""


class RecipeError(InputError):
    """An export recipe with unknown keys or values that exclude each other."""


class ModelError(InputError):
    """An ONNX file that is unsafe, broken, or newer than the runtime."""


class BundleError(InputError):
    """A bundle directory that is incomplete or inconsistent."""


class IntegrityError(BundleError):
    """A file differs from what the manifest, or our own record, says of it."""


class EngineError(BundleError):
    """A built engine that belongs to another model, runtime or machine."""


class BackendError(VitEdgeError):
    """A runtime is missing, lacks what was asked of it, or refuses the bundle."""

    exit_code = 3


class PredictionError(VitEdgeError):
    """A backend returned non-finite values, or the wrong shape."""

    exit_code = 3


class ResourceError(VitEdgeError):
    """Out of disk space or memory, or a child process died; the message says which limit."""

    exit_code = 3


class ParityError(VitEdgeError):
    """A comparison that was asked for did not hold."""

    exit_code = 4
