"""What is installed: one package, complete, with no bare names, and the tested set that goes with it."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGES: list[str] = PYPROJECT["tool"]["setuptools"]["packages"]
MAPPED: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]
BARE = sorted(folder for package, folder in MAPPED.items() if package != folder)

HEAVY = {
    "torch",
    "torchvision",
    "open_clip",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "av",
}


def folder_of(package: str) -> Path:
    """A mapped package's, or below that of the nearest mapped package above it."""
    if package in MAPPED:
        return ROOT / MAPPED[package]
    parent, _, name = package.rpartition(".")
    return folder_of(parent) / name


def modules_on_disk() -> dict[str, Path]:
    """Every module of the package and its file, by the name under which it is installed."""
    return {
        package if file.stem == "__init__" else f"{package}.{file.stem}": file
        for package in PACKAGES
        for file in sorted(folder_of(package).glob("*.py"))
    }


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def output_of(*command: str | Path, cwd: Path, **variables: str) -> str:
    done = run(*command, cwd=cwd, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_packages_equal_the_folders_on_disk() -> None:
    """A package missing from the list works when installed editable and is absent from the wheel."""
    found = set()
    for package, folder in MAPPED.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert sorted(found) == sorted(PACKAGES)


def test_every_folder_with_modules_is_a_package() -> None:
    """Without an __init__.py a mapped folder is missing from an editable install."""
    folders = {file.parent for folder in MAPPED.values() for file in (ROOT / folder).rglob("*.py")}
    folders |= {ROOT / folder for folder in MAPPED.values()}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("name", BARE)
def test_the_bare_folder_refuses_to_be_imported(name: str) -> None:
    done = run(sys.executable, "-c", f"import {name}", cwd=ROOT)
    assert done.returncode == 1
    assert f"ImportError: import tempme_export.{name}, not the bare folder" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the tree, so that the build leaves nothing in the tree itself."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in MAPPED.values():
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, tree / name)
    (tree / "tests").mkdir()
    shutil.copy(__file__, tree / "tests")
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    output_of(*pip, "--wheel-dir", out, ".", cwd=tree)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    expected = {
        f"{package.replace('.', '/')}/{file.name}"
        for package in PACKAGES
        for pattern in ("*.py", "*.toml", "*.css", "*.h", "*.cpp", "*.mplstyle", "py.typed")
        for file in folder_of(package).glob(pattern)
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        licences = {Path(name).name: archive.read(name).decode() for name in names if ".dist-info/licenses/" in name}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "tempme_export/profiles/vit-b-32-12f.toml" in expected
    assert sorted(licences) == sorted(PROJECT["license-files"])
    assert "Apache License" in licences["LICENSE"]
    assert "tempme-export contributors" in licences["NOTICE"]


def test_the_wheel_works_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile")
    output_of(*pip, "--target", target, wheel, cwd=tmp_path)
    program = (
        "import json, tempme_export.kernels as kernels\n"
        "from tempme_export.encoder.profile import load_profile, shipped_profiles\n"
        "print(json.dumps([kernels.__file__, load_profile('vit-b-32-12f').frames, [*shipped_profiles()]]))\n"
    )
    printed = output_of(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(target), PYTHONSAFEPATH="1")
    file, frames, shipped = json.loads(printed)
    assert Path(file).is_relative_to(target)
    assert frames == 12
    assert sorted(shipped) == sorted(path.stem for path in folder_of("tempme_export.profiles").glob("*.toml"))


def installed() -> Distribution:
    """The editable install of this checkout; metadata that a build left in the tree is not an install."""
    for found in distributions(name=PROJECT["name"]):
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable") and origin["url"] == ROOT.as_uri():
            return found
    pytest.skip("this checkout is not installed editable (make setup does that)")


def test_the_editable_install_exposes_every_module_and_no_bare_name(tmp_path: Path) -> None:
    installed()
    program = (
        "import json, sys\n"
        "from importlib.util import find_spec\n"
        "specs = {name: find_spec(name) for name in sys.argv[1:]}\n"
        "print(json.dumps({name: spec and spec.origin for name, spec in specs.items()}))\n"
    )
    expected = {name: str(path) for name, path in modules_on_disk().items()}
    bare = [*BARE, "tests"]
    origins: dict[str, str | None] = json.loads(
        output_of(sys.executable, "-c", program, *expected, *bare, cwd=tmp_path)
    )
    leaked = [name for name in bare if (origin := origins.pop(name)) and Path(origin).is_relative_to(ROOT)]
    assert leaked == []
    assert origins == expected


def test_the_installed_commands_are_those_of_pyproject() -> None:
    entry_points = installed().entry_points.select(group="console_scripts")
    assert {point.name: point.value for point in entry_points} == PROJECT["scripts"]


@pytest.mark.parametrize("command", sorted(PROJECT["scripts"]))
def test_help_answers_without_loading_what_is_slow(command: str, tmp_path: Path) -> None:
    module, function = PROJECT["scripts"][command].split(":")
    program = (
        "import sys\n"
        f"from {module} import {function} as main\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        f"print('loaded:', *sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = run(sys.executable, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout and command in done.stdout
    assert done.stderr.strip() == "loaded:"


def pins() -> dict[str, str]:
    """constraints.txt as canonical name -> version."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.+!]*)", line)
            assert match is not None, f"constraints.txt: {line!r} is not NAME==VERSION"
            found[canonicalize_name(match[1])] = match[2]
    return found


def requirements(of: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What `of[extras]` requires here, as installed. An absent distribution requires nothing."""
    try:
        lines = distribution(of).requires or []
    except PackageNotFoundError:
        return
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield requirement


def direct_requirements() -> list[Requirement]:
    """What `.[dev]` asks for, with the extras that `dev` names resolved from pyproject.toml."""
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    direct, waiting, done = [], [*PROJECT["dependencies"], *extras["dev"]], set()
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name == PROJECT["name"]:
            waiting += [line for extra in requirement.extras - done for line in extras[extra]]
            done |= requirement.extras
        else:
            direct.append(requirement)
    return direct


def test_the_tested_set_pins_every_direct_dependency() -> None:
    pinned = pins()
    build = [Requirement(line) for line in PYPROJECT["build-system"]["requires"]]
    for requirement in [*direct_requirements(), *build]:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} against {version}"


def test_the_tested_set_is_sorted() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("==")[0].lower() for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))


def test_the_tested_set_is_what_is_installed() -> None:
    """The pins are all that `.[dev]` and the build need, with what that brings in, and nothing more."""
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("not running in the .venv of this checkout, the pinned environment")
    if (sys.platform, platform.machine(), sys.version_info[:2]) != ("linux", "x86_64", (3, 11)):
        pytest.skip("constraints.txt is the set of Python 3.11 on Linux x86-64")
    waiting = [(requirement.name, frozenset(requirement.extras)) for requirement in direct_requirements()]
    waiting += [("setuptools", frozenset()), ("wheel", frozenset())]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) not in seen:
            seen.add((name, extras))
            waiting += [(found.name, frozenset(found.extras)) for found in requirements(name, extras)]
    needed = sorted({canonicalize_name(name) for name, _ in seen})
    path = [folder for folder in sys.path if "_vendor" not in folder]  # importing setuptools puts its own there
    versions = {
        name: [Version(found.version).public for found in distributions(name=name, path=path)] for name in needed
    }
    assert versions == {name: [version] for name, version in pins().items()}
