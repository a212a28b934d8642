"""The package's abilities on a machine: those that work, what the others lack, and the commands that bring it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Need
from tempme_export.doctor.machine import Machine


@dataclass(frozen=True)
class Capability:
    """Something a user may want to do.

    enables  what it is
    missing  part -> why it cannot be used; nothing where the capability works
    install  the commands that would mend it
    """

    name: str
    enables: str
    missing: Mapping[str, str]
    install: tuple[str, ...]

    @property
    def works(self) -> bool:
        """True where it can be done."""
        return not self.missing


@dataclass(frozen=True)
class Diagnosis:
    """A machine and what can be done with it."""

    machine: Machine
    capabilities: tuple[Capability, ...]

    def missing(self, required: Iterable[str] = ()) -> tuple[Capability, ...]:
        """Capabilities that do not work, of `core` and the required ones."""
        needed = {"core", *required}
        return tuple(one for one in self.capabilities if one.name in needed and not one.works)

    def to_dict(self) -> dict[str, Any]:
        """Values for `--json`."""
        capabilities = {
            one.name: {"works": one.works} | {k: v for k, v in asdict(one).items() if k != "name"}
            for one in self.capabilities
        }
        return {"machine": asdict(self.machine), "capabilities": capabilities}


_CORE = "pip install --upgrade tempme-export"
_DRIVER = "install NVIDIA's driver (https://www.nvidia.com/drivers), or start the container with --gpus all"
_EXPORT = "pip install 'tempme-export[export]'"
_CORE_PARTS = ("numpy", "polars", "pillow", "tokenizers", "ftfy")
_EXPORT_PARTS = ("torch", "open_clip_torch", "onnx", "onnxscript", "safetensors")
_GPU = {"driver": _DRIVER, "torch on GPU": "pip install --force-reinstall torch"}
_TRITON = {"triton": "pip install triton", "C compiler": "sudo apt install gcc python3-dev"}

_CORE_RULE = Need("core", "use bundles, given a runtime", dict.fromkeys(_CORE_PARTS, _CORE))
_EXPORT_RULE = Need("export", "train, export and run with torch", dict.fromkeys(_EXPORT_PARTS, _EXPORT))
_OPTIONAL = (
    Need("video", "read video files", {"av": "pip install 'tempme-export[video]'"}),
    Need("plot", "draw charts", {"matplotlib": "pip install 'tempme-export[plot]'"}),
    Need("gpu", "train and run on a GPU with torch", _GPU),
    Need("kernels", "fused kernels on a GPU", {**_GPU, **_TRITON, "fused kernels": "pip install --upgrade triton"}),
)


def rules() -> tuple[Need, ...]:
    """All abilities, in this order: use bundles, make them, CPU backends, optional parts, GPU backends."""
    on = {"cpu": list[Need](), "cuda": list[Need]()}
    for one in registry.BACKENDS:
        if one.need is not None:
            on[one.devices[0]].append(one.need)
    return (_CORE_RULE, _EXPORT_RULE, *on["cpu"], *_OPTIONAL, *on["cuda"])


def names() -> tuple[str, ...]:
    """Names of the rules."""
    return tuple(rule.name for rule in rules())


def diagnose(machine: Machine) -> Diagnosis:
    """The diagnosis of a machine. A part that was not probed for want of another is not named beside it."""

    def assess(rule: Need) -> Capability:
        found = {name: machine.part(name) for name in rule.parts}
        broken = {name: part.problem for name, part in found.items() if part is not None and part.problem}
        missing = broken or {name: "was not probed" for name, part in found.items() if part is None}
        install = tuple(dict.fromkeys(rule.parts[name] for name in missing))
        return Capability(rule.name, rule.enables, missing, install)

    return Diagnosis(machine, tuple(map(assess, rules())))
