"""The choices of `tempme-train`: what `training.config` takes, spelled without loading it."""

from enum import StrEnum


class Tune(StrEnum):
    """The parameters that are trained."""

    LORA = "lora"
    ADAPTER = "adapter"
    PROMPT = "prompt"
    FULL = "full"


class Decay(StrEnum):
    """The parameters that weight decay applies to."""

    ALL = "all"
    MATRICES = "matrices"


class Augment(StrEnum):
    """Augmentations of training frames."""

    RANDAUGMENT = "randaugment"
    NONE = "none"


class Precision(StrEnum):
    """Number format of the forward pass."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Store(StrEnum):
    """Number formats of checkpoints."""

    FP32 = "fp32"
    FP16 = "fp16"
