"""Imports point one way: every module has a layer and knows only its own and those below."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "tempme_export"
FOLDERS = {
    PACKAGE: ROOT / PACKAGE,
    **{f"{PACKAGE}.{name}": ROOT / name for name in ("kernels", "profiles", "bench")},
}

# Lowest first. A name stands for its module and everything below it; "" is tempme_export/__init__.py itself,
# the door for users: it may lead to everything but the commands, and nothing below may go through it.
LAYERS = (
    ("errors", "names", "files", "progress", "profiles"),
    ("kernels",),
    ("encoder.backbone", "encoder.conventions", "encoder.schedule", "encoder.complexity"),
    ("encoder.profile",),
    ("encoder.checkpoint",),
    ("encoder.recipe",),
    ("encoder.random_weights", "encoder.ops"),
    ("encoder",),
    ("parity.tolerance",),  # one table, which everybody reads
    ("runtime.base", "runtime.process"),  # the contract of every backend, which names it
    ("artifacts",),  # the folder and its manifest, which exporters, verdicts and servers read
    ("media",),
    ("data",),
    ("runtime",),
    ("exporters",),
    ("parity",),
    ("quantization",),
    ("retrieval",),
    ("evaluation", "serving"),
    ("pipeline",),
    ("",),
    ("training", "doctor"),
    ("cli", "__main__"),
    ("bench",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

KERNEL_CODE = "kernels.jit"  # what runs on a GPU: these modules are triton's, and load only where it is

# What the ranks would let through: module, what it must not import, why.
FORBIDDEN = (
    ("runtime", "exporters", "a runtime runs artifacts and knows no exporter"),
    ("parity", "exporters", "parity judges artifacts and knows no exporter"),
    ("encoder.reference", "encoder.ops", "the reference stands on definitions alone"),
    ("encoder.reference", "encoder.model", "the reference is not checked against itself"),
    ("encoder.model", "encoder.reference", "the fast encoder is not the reference"),
    ("encoder.model", "kernels", "ops is the only door between model and kernels"),
)

# Using a bundle and making one are two lives: what is here does without MAKING_PACKAGES, lazily too, but for the doors.
# Of two names that a module is inside of, the longer decides.
USING = (
    *("", "__main__", "errors", "names", "files", "progress", "profiles", "encoder", "artifacts"),
    *("media", "data", "runtime"),
    *("parity", "retrieval", "serving", "evaluation", "pipeline", "doctor", "cli"),
)
MAKING = (
    *("kernels", "exporters", "quantization", "training", "bench"),
    *("encoder.checkpoint", "encoder.recipe", "encoder.random_weights", "encoder.ops", "encoder.model"),
    *("encoder.reference", "media.tokenizer", "parity.making"),
    *("runtime.devices", "runtime.pt2", "runtime.pytorch", "runtime.tensorrt", "runtime.tensorrt_engine"),
    *("evaluation.checkpoint_encoder", "evaluation.gate", "evaluation.gate_data", "evaluation.original"),
    *("pipeline.drafts", "pipeline.export", "pipeline.rebuild", "pipeline.spec"),
    *("cli.export_commands", "cli.rtx_check", "cli.train", "cli.train_console"),
)
MAKING_PACKAGES = {"torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript", "open_clip", "safetensors"}
DOORS = {  # from a function alone; the modules that artifacts.registry names, Artifact and Backend open
    ("", "pipeline.export"),
    ("cli.export", "cli.export_commands"),
    ("cli.export", "pipeline.spec"),
    ("retrieval", "media.tokenizer"),  # bundles of earlier versions have none of their own
    ("evaluation.encoders", "media.tokenizer"),
    ("evaluation.encoders", "encoder.recipe"),
    ("evaluation.encoders", "evaluation.checkpoint_encoder"),
    ("doctor.probes", "torch"),
    ("doctor.probes", "encoder.ops"),
}
OPEN_DOORS = {("parity.selftest", "kernels")}  # a number that lies in the package itself, which loads nothing

# These answer --help, so nothing they load on import may load one of these.
QUICK = (
    *("", "bench.cli", "cli.export", "cli.evaluate", "cli.train", "cli.doctor", "cli.entry", "cli.terminal"),
    *("cli.live", "cli.console", "cli.evaluate_console", "cli.train_console", "cli.doctor_console"),
    *("cli.app", "cli.options", "cli.rtx_check", "cli.usage", "cli.train_options"),
    *("doctor.advice", "doctor.rules", "doctor.machine", "doctor.process"),
)
HEAVY = {
    *("av", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "open_clip", "openvino", "safetensors"),
    *("tensorrt", "timm", "torch", "torchvision", "triton", "tokenizers", "ftfy"),
}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether the line runs when the importing module is loaded."""

    target: str
    line: int
    at_load: bool
    in_function: bool


def inside(module: str, name: str) -> bool:
    """Whether a module, named without the package, is `name` or below it. Only the package is inside ""."""
    return module == name or (name != "" and module.startswith(name + "."))


def layer(module: str) -> int | None:
    """The rank of the longest name in the table that the module is inside of; None where none is."""
    names = [name for name in RANKS if inside(module, name)]
    return RANKS[max(names, key=len)] if names else None


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(tree: ast.AST, known: frozenset[str], *, at_load=True, in_function=False) -> Iterator[Import]:
    """Every import below `tree`. `from a import b` is of a.b where that is a module, otherwise of a."""
    for node in ast.iter_child_nodes(tree):
        where = {"at_load": at_load, "in_function": in_function}
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, **where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                member = f"{source}.{alias.name}"
                yield Import(member if member in known else source, node.lineno, **where)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, known, at_load=False, in_function=True)
        elif is_type_checking(node):
            body = ast.Module(node.body, [])
            yield from imports(body, known, at_load=False, in_function=in_function)
            yield from imports(ast.Module(node.orelse, []), known, **where)
        else:
            yield from imports(node, known, **where)


def within(name: str) -> str | None:
    """A dotted name without the package, "" for the package itself, None for what is outside."""
    if name == PACKAGE:
        return ""
    return name.removeprefix(PACKAGE + ".") if name.startswith(PACKAGE + ".") else None


def violations(sources: dict[str, str]) -> list[str]:
    """Every breach in {full module name: source}."""
    known = frozenset(sources)
    trees = {name: ast.parse(source) for name, source in sources.items()}
    found = {name: list(imports(tree, known)) for name, tree in trees.items()}
    each = (module_violations(name, found[name]) for name in sources)
    between = using_violations(found)
    return [*chain.from_iterable(each), *print_violations(trees), *load_violations(found), *between]


def module_violations(name: str, found: list[Import]) -> Iterator[str]:
    module = within(name)
    assert module is not None
    rank = layer(module)
    if rank is None:
        yield f"{name} has no layer; give it one in LAYERS"
        return
    for one in found:
        at, top = f"{name}:{one.line}", one.target.split(".")[0]
        if one.target.startswith(".") or f"{PACKAGE}.{top}" in FOLDERS:
            yield f"{at} imports {one.target}; write {PACKAGE}.<module> in full"
        if top == "triton" and not (inside(module, "kernels") and (one.in_function or inside(module, KERNEL_CODE))):
            yield f"{at} imports triton; only functions in kernels/ and the modules of kernels/jit/ do"
        if inside(within(one.target) or "", KERNEL_CODE) and not (one.in_function or inside(module, KERNEL_CODE)):
            yield f"{at} imports {one.target}; it needs triton, so only functions do"
        target = within(one.target)
        if target is None:
            continue
        above = layer(target)
        if above is None:
            yield f"{at} imports {one.target}, which has no layer"
        elif above > rank:
            yield f"{at} imports {one.target}, which lies above it"
        if inside(module, "kernels") and not inside(target, "kernels"):
            yield f"{at} imports {one.target}; kernels/ knows only kernels/"
        if inside(target, "bench") and not inside(module, "bench"):
            yield f"{at} imports {one.target}; nothing imports bench"
        for importer, imported, reason in FORBIDDEN:
            if inside(module, importer) and inside(target, imported):
                yield f"{at} imports {one.target}: {reason}"


def of_using(module: str) -> bool:
    names = [name for name in (*USING, *MAKING) if inside(module, name)]
    return bool(names) and max(names, key=len) in USING


def using_violations(found: dict[str, list[Import]]) -> Iterator[str]:
    """What the using half imports of the making half, at load or in a function, but not for the type checker."""
    for name, imported in found.items():
        module = within(name) or ""
        if not of_using(module):
            continue
        for one in imported:
            top, target = one.target.split(".")[0], within(one.target)
            making = top in MAKING_PACKAGES if target is None else not of_using(target)
            door = (module, top if target is None else target) in (DOORS if one.in_function else OPEN_DOORS)
            if (one.at_load or one.in_function) and making and not door:
                yield f"{name}:{one.line} imports {one.target}, which using a bundle does without"


def print_violations(trees: dict[str, ast.Module]) -> Iterator[str]:
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield f"{name}:{node.lineno} calls print; output goes through a console"


def load_violations(found: dict[str, list[Import]]) -> Iterator[str]:
    """Follow what the quick modules load when they are imported, themselves included."""
    for start in (f"{PACKAGE}.{name}".rstrip(".") for name in QUICK):
        waiting, seen = [(start,)] if start in found else [], {start}
        while waiting:
            path = waiting.pop()
            for one in found[path[-1]]:
                if not one.at_load:
                    continue
                if one.target.split(".")[0] in HEAVY:
                    yield f"{' -> '.join(path)}:{one.line} loads {one.target} on import"
                parts = one.target.split(".")  # importing a.b.c runs a and a.b too
                for loaded in (".".join(parts[: n + 1]) for n in range(len(parts))):
                    if loaded in found and loaded not in seen:
                        seen.add(loaded)
                        waiting.append((*path, loaded))


def package_sources() -> dict[str, str]:
    sources = {}
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            sources[name] = file.read_text(encoding="utf-8")
    return sources


def test_the_package_keeps_the_direction() -> None:
    sources = package_sources()
    assert {PACKAGE, f"{PACKAGE}.errors", f"{PACKAGE}.kernels", f"{PACKAGE}.bench.cli"} <= set(sources)
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("novelty", "", "has no layer"),
        ("encoder.schedule", "from tempme_export.encoder.profile import Profile", "lies above it"),
        ("encoder.schedule", "def f():\n    from tempme_export.encoder import profile", "lies above it"),
        ("encoder.schedule", "if TYPE_CHECKING:\n    import tempme_export.encoder.model", "lies above it"),
        ("encoder.profile", "from tempme_export import load", "lies above it"),
        ("encoder.model", "import tempme_export.novelty", "has no layer"),
        ("encoder.schedule", "from .errors import ProfileError", "in full"),
        ("encoder.ops", "from kernels import dense", "in full"),
        ("kernels.dense", "from tempme_export.errors import InputError", "kernels/ knows only kernels/"),
        ("cli.export", "def f():\n    from tempme_export.bench.run import run", "nothing imports bench"),
        ("runtime.ort", "from tempme_export.exporters.onnx import export_video", "knows no exporter"),
        ("parity", "from tempme_export.exporters import onnx", "knows no exporter"),
        ("encoder.reference", "from tempme_export.encoder import ops", "definitions alone"),
        ("encoder.model", "from tempme_export.kernels import dense", "only door"),
        ("kernels.match", "import triton", "only functions in kernels/"),
        ("kernels.match", "from tempme_export.kernels.jit.match import score_rows_kernel", "it needs triton"),
        (
            "kernels.match",
            "try:\n    import triton.language as tl\nexcept ImportError:\n    pass",
            "only func",
        ),
        ("encoder.ops", "def f():\n    from triton import jit", "only functions in kernels/"),
        ("encoder.schedule", "def f():\n    print('x')", "calls print"),
        ("cli.export", "import torch.nn", "loads torch.nn on import"),
        (
            "bench.cli",
            "from tempme_export.encoder.reference import Reference",
            "bench.cli -> tempme_export.encoder.reference:",
        ),
        ("", "class A:\n    import onnx", "loads onnx on import"),
        ("cli.console", "try:\n    import av\nexcept ImportError:\n    av = None", "loads av on import"),
        ("runtime.ort", "def f():\n    import onnx", "does without"),
        ("parity.checks", "from tempme_export.encoder.reference import Reference", "does without"),
        ("retrieval", "from tempme_export.runtime.pt2 import Pt2Runner", "does without"),
        ("data.frames", "class A:\n    def f(self):\n        import torch.nn", "does without"),
    ],
)
def test_a_breach_is_found(module: str, source: str, said: str) -> None:
    sources = {PACKAGE: "", f"{PACKAGE}.encoder.reference": "import torch", f"{PACKAGE}.exporters.onnx": ""}
    for name in ("ops", "profile"):
        sources[f"{PACKAGE}.encoder.{name}"] = ""
    sources[f"{PACKAGE}.{module}".rstrip(".")] = source
    assert any(said in line for line in violations(sources)), violations(sources)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("encoder.profile", "from tempme_export import profiles\nfrom tempme_export.errors import ProfileError"),
        ("kernels.match", "import torch\ndef launch():\n    import triton\n    import triton.language as tl"),
        ("kernels.match", "from tempme_export.kernels.reference import match_tokens_ref"),
        ("cli.train", "def main():\n    import torch"),
        ("cli.export", "if TYPE_CHECKING:\n    import torch"),
        ("bench.cli", "def f():\n    from tempme_export.encoder.reference import Reference"),
        ("bench.run", "import tempme_export.bench.report, tempme_export.cli.export, torch"),
        ("cli.console", "console.print('x')"),
        ("retrieval", "def f():\n    from tempme_export.media.tokenizer import Tokenizer"),
        ("parity.checks", "if TYPE_CHECKING:\n    from tempme_export.encoder.reference import Reference"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    sources = {PACKAGE: "", f"{PACKAGE}.encoder.reference": "import torch", f"{PACKAGE}.profiles": ""}
    sources[f"{PACKAGE}.{module}"] = source
    assert violations(sources) == []
