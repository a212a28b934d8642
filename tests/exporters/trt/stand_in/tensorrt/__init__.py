"""NVIDIA's bindings as the package that their own modules import, but for classes that Python code cannot make."""

import tensorrt_bindings
from tensorrt_bindings import *  # noqa: F403

__version__ = tensorrt_bindings.__version__
__path__ = tensorrt_bindings.__path__  # of `tensorrt.plugin`


class IDimensionExpr:
    """A symbolic dimension: a number, or a function of how many videos there are."""

    def __init__(self, value, constant):
        self.value, self.constant = value, constant

    def is_constant(self):
        return self.constant

    def get_constant_value(self):
        assert self.constant, "TensorRT knows no number for this dimension"
        return self.value(None)


class ISymExpr:
    """Takes any expression, and NVIDIA's own takes those of C++ alone."""


def DimsExprs(length):
    return [None] * length


class Registry:
    """Plugin creators by name, version and namespace."""

    def __init__(self):
        self.creators = {}

    def register_creator(self, creator, namespace):
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name, version, namespace):
        return self.creators[name, version, namespace]


_registry = Registry()


def get_plugin_registry():
    return _registry
