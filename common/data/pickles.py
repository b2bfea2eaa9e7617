# SPDX-License-Identifier: Apache-2.0
"""Arrays out of pickle files, without running anything that such a file may contain."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from common.checks import InputError

# The constructors are taken from NumPy's own reduction of arrays, so that they fit the NumPy at hand whatever module
# name (numpy.core before, numpy._core since 2.0) the file mentions.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
_SCALAR = np.float32(0).__reduce__()[0]


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """What pickles of protocol 0 to 2 call to turn text back into bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding} is not expected")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
    **{
        (f"{core}.{module}", name): constructor
        for core in ("numpy.core", "numpy._core")
        for module, name, constructor in (
            ("multiarray", "_reconstruct", _RECONSTRUCT),
            ("multiarray", "scalar", _SCALAR),
            ("numeric", "_frombuffer", _FROM_BUFFER),
        )
    },
}


class _ForbiddenGlobal(Exception):
    pass


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ADMITTED[module_name, global_name]
        except KeyError:
            raise _ForbiddenGlobal(f"{module_name}.{global_name}") from None


def load_arrays(path: str | Path) -> tuple[np.ndarray, ...]:
    """Read a pickled array or tuple or list of numeric arrays, as the TransMorph and EOIR data sets are made of.

    Args:
        path: the ``.pkl`` file.

    Returns:
        The arrays in their order.

    Raises:
        InputError: the file is missing or damaged, names anything but NumPy arrays, or holds something else.
    """
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file).load()
    except _ForbiddenGlobal as error:
        raise InputError(
            f"The pickle {path} asks for {error}, but only NumPy arrays are admitted; nothing of it was run: "
            "do not use this file unless you trust it and have saved its arrays anew."
        ) from None
    except FileNotFoundError:
        raise InputError(f"The pickle {path} does not exist; check the data folder.") from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"The pickle {path} cannot be read ({reason}); copy it anew.") from error
    arrays = tuple(content) if isinstance(content, (tuple, list)) else (content,)
    if not arrays or not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in arrays):
        raise InputError(f"The pickle {path} does not hold a tuple of numeric NumPy arrays; expected (image, label).")
    return arrays
