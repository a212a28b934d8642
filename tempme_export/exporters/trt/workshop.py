"""Tools that build an engine on the machine at hand: TensorRT, the GPU, and the compiler of the plugins' kernels."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from tempme_export.exporters.trt.reports import Failure
from tempme_export.exporters.trt.requirements import missing_for_engine
from tempme_export.runtime.nvidia import Gpu, find_gpu
from tempme_export.runtime.tensorrt_package import import_tensorrt

if TYPE_CHECKING:
    from tempme_export.exporters.plugin_nodes import PluginNode
    from tempme_export.kernels.aot import Compiled, Variant


class Workshop:
    """This machine. Imports torch and Triton where they are used: what is missing is told without them."""

    def missing(self, device: str) -> tuple[str, ...]:
        """As `missing_for_engine`."""
        return missing_for_engine(device)

    def tensorrt(self) -> Any:
        """The package. Raises BackendError as `import_tensorrt`."""
        return import_tensorrt()

    def gpu(self, device: str) -> Gpu:
        """Raises BackendError as `find_gpu`."""
        return find_gpu(device)

    def on(self, device: str) -> AbstractContextManager[Any]:
        """Within, TensorRT works on this GPU. Raises BackendError as `torch_device`."""
        import torch

        from tempme_export.runtime.devices import torch_device

        return torch.cuda.device(torch_device(device))

    def variants(self, nodes: "Sequence[PluginNode]", precision: str) -> "Sequence[Variant]":
        """Every kernel that TensorRT may ask for. Raises ExportError and BackendError as `plugin_variants`."""
        from tempme_export.exporters.trt.plugin_launches import plugin_variants

        return plugin_variants(nodes, precision)

    def compile(self, variant: "Variant", target: str) -> "Compiled":
        """Compile a kernel before TensorRT asks for it. Raises ExportError as `plugin_builds.build`."""
        from tempme_export.exporters.trt.plugin_builds import build

        return build(variant, target)

    def register(self, target: str, failure: Failure) -> None:
        """Make our nodes plugins; `failure` keeps what goes wrong in them. Raises as `plugins.installed`."""
        from tempme_export.exporters.trt.plugins import installed

        installed().register(target, failure)
