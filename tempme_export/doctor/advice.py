"""The command to run next on a machine, from what was found there."""

from dataclasses import dataclass

from tempme_export.doctor.rules import Diagnosis


@dataclass(frozen=True)
class Advice:
    """One command to copy, and the reason for it."""

    command: str
    reason: str


_EXPORT, _VERIFY = "tempme-export ckpt.pt", "tempme-export verify ckpt.tempme"


def advise(diagnosis: Diagnosis) -> Advice:
    """The next command: what mends the nearest gap, or else the most that this machine can make or run."""
    found = {one.name: one for one in diagnosis.capabilities}

    def mend(name: str, reason: str) -> Advice:
        return Advice(found[name].install[0], reason)

    if not found["core"].works:
        return mend("core", f"the core is broken ({', '.join(found['core'].missing)})")
    if not found["cpu"].works:
        return mend("cpu", "ONNX Runtime, which runs and accepts bundles, does not work here")
    if not found["export"].works:
        video = "" if found["video"].works else f"; to read video files: {found['video'].install[0]}"
        return Advice(_VERIFY, f"bundles run here; to make one: {found['export'].install[0]}{video}")
    if found["trt"].works:
        return Advice(f"{_EXPORT} --trt", f"a bundle with a TensorRT engine for {_first_gpu(diagnosis)}")
    if found["gpu"].works:
        return Advice(_EXPORT, f"a bundle; for an engine for {_first_gpu(diagnosis)}: {found['trt'].install[0]}")
    if not found["video"].works:
        return Advice(_EXPORT, f"a bundle; to read video files: {found['video'].install[0]}")
    return Advice(_EXPORT, "a bundle, which runs wherever ONNX runs")


def _first_gpu(diagnosis: Diagnosis) -> str:
    gpus = diagnosis.machine.gpus
    return gpus[0].name if gpus else "the GPU here"
