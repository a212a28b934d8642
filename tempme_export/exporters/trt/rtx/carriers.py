"""Plugins of the kind `IPluginV3One`, which TensorRT-RTX takes, around those that `tensorrt.plugin` makes.

Their classes derive from those of TensorRT-RTX's bindings, so they are made when these are loaded. What TensorRT-RTX
asks is passed on; what it would run is refused, as there is no GPU.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tempme_export.exporters.trt.reports import Failure

Template = Callable[[Any], Any]
"""Attributes -> a plugin of `tensorrt.plugin`."""
Asked = Callable[[Any, Any, Any], None]
"""Hears of a template whose shapes were asked for, of another like it, and of the builder of expressions."""


def make_creator(rtx: ModuleType, creator: Any, template: Template, asked: Asked, failure: Failure) -> Any:
    """A creator of plugins in TensorRT-RTX that are those of `creator`.

    template  makes one with these attributes
    asked     hears what was asked
    failure   keeps the first exception, which TensorRT-RTX only logs
    """
    carrier = _carrier(rtx, template, asked, failure)

    class Creator(rtx.IPluginCreatorV3One):  # type: ignore[misc, name-defined]
        """Of one type of node."""

        def __init__(self) -> None:
            rtx.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace = creator.name, creator.plugin_namespace
            self.plugin_version, self.field_names = creator.plugin_version, creator.field_names

        def create_plugin(self, name: str, given: Any, phase: Any) -> Any:
            """The attributes are copied: they are the parser's own."""
            with failure.kept():
                attributes = _Attributes(rtx, [(one.name, np.array(one.data), one.type) for one in given])
                return carrier(template(attributes.fields()), attributes)

    return Creator()


class _Attributes:
    """A node's attributes. TensorRT-RTX's fields point at their values and do not keep them alive, so this does."""

    def __init__(self, rtx: ModuleType, values: Sequence[tuple[str, Any, Any]]) -> None:
        self._rtx, self._values = rtx, values

    def fields(self) -> Any:
        """As creators take them."""
        return self._rtx.PluginFieldCollection([self._rtx.PluginField(*one) for one in self._values])


def _carrier(rtx: ModuleType, template: Template, asked: Asked, failure: Failure) -> Any:
    parts = (rtx.IPluginV3, rtx.IPluginV3OneCore, rtx.IPluginV3OneBuild, rtx.IPluginV3OneRuntime)

    class Carrier(*parts):  # type: ignore[misc]
        """Carries one plugin of `tensorrt.plugin`."""

        def __init__(self, inner: Any, attributes: _Attributes) -> None:
            for part in parts:
                part.__init__(self)
            self.inner, self.attributes = inner, attributes
            self.plugin_name, self.plugin_namespace = inner.plugin_name, inner.plugin_namespace
            self.plugin_version, self.num_outputs = inner.plugin_version, inner.num_outputs

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Carrier(self.inner.clone(), self.attributes)

        def get_output_data_types(self, types: Any) -> Any:
            """Ranks are not told, and types do not depend on them."""
            with failure.kept():
                return self.inner.get_output_data_types(types, [1] * len(types))

        def get_output_shapes(self, shapes: Any, of_shapes: Any, expressions: Any) -> Any:
            with failure.kept():
                found = self.inner.get_output_shapes(shapes, of_shapes, expressions)
                asked(self.inner, template(self.attributes.fields()), expressions)
                return found

        def supports_format_combination(self, place: int, described: Any, n_inputs: int) -> bool:
            with failure.kept():
                offered = self.inner.get_supported_format_combinations(described, n_inputs)[place]
                found = described[place].desc
                return bool(found.type == offered.type and found.format == offered.format)

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            with failure.kept():
                self.inner.configure_plugin(inputs, outputs)

        def get_valid_tactics(self) -> Any:
            with failure.kept():
                return self.inner.get_valid_tactics()

        def set_tactic(self, tactic: int) -> None:
            self.inner.set_tactic(tactic)

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return 0

        def get_fields_to_serialize(self) -> Any:
            return self.attributes.fields()

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            """Nothing depends on it."""

        def enqueue(self, *arguments: Any) -> None:
            raise NotImplementedError("nothing is launched: TensorRT-RTX builds here and does not run")

    return Carrier
