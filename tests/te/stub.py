"""The installed Transformer Engine on a machine without a GPU: its layers are built, saved and loaded, never run.

Its extension, which pip would compile against torch, is replaced by names; everything else is the package as installed.
"""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import torch

CUDNN_VERSION = 91000


class Name:
    """A type, an enumeration or a kernel of the extension: it can be named, and not be called."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __getattr__(self, name: str) -> Name:
        if name.startswith("__"):
            raise AttributeError(name)
        found = Name(f"{self.path}.{name}")
        setattr(self, name, found)  # one object for each name: they are keys of dictionaries
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"{self.path} was called: it needs a GPU")


class Extension(types.ModuleType):
    """Stands for transformer_engine_torch."""

    @staticmethod
    def get_cudnn_version() -> int:
        return CUDNN_VERSION

    def __getattr__(self, name: str) -> Name:
        if name.startswith("__"):
            raise AttributeError(name)
        found = Name(f"{self.__name__}.{name}")
        setattr(self, name, found)
        return found


class TorchWithGpu:
    """torch as Transformer Engine's layers see it: they refuse to be built without a GPU."""

    class cuda:
        @staticmethod
        def is_available() -> bool:
            return True

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def install() -> None:
    """Make `import transformer_engine.pytorch` work; before megatron-core is imported."""
    extension = Extension("transformer_engine_torch")
    extension.get_cudnn_version = Extension.get_cudnn_version  # type: ignore[method-assign] # seen by `import *`
    sys.modules[extension.__name__] = extension
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the extension is missing
        import transformer_engine.common

        transformer_engine.common.load_framework_extension = lambda framework: None
        import transformer_engine.pytorch.module.base as base
    base.torch = TorchWithGpu()
