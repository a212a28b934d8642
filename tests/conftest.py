"""Shared fixtures: reference outputs, a tiny checkpoint, poisoned memory."""

import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from tempme_export.artifacts import registry
from tempme_export.encoder.checkpoint import Checkpoint, from_state_dict
from tempme_export.encoder.conventions import Statement
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import Recipe, prepare
from tempme_export.encoder.reference import ReferenceVideo
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.kernels.reference import merge_tokens_ref
from tempme_export.progress import Progress
from tempme_export.runtime.base import Runner

HERE = Path(__file__).parent / "golden"
SHARED_GOLDEN = Path(__file__).parents[2] / "shared" / "golden"

# Shared cores stand still for longer than Hypothesis's deadline; speed is no test's concern.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# The models here are tiny: on shared cores, threads that wait for each other made these tests five times slower.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def _load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recording(Progress):
    """Keeps what a work tells.

    facts    as they were told
    counts   (step's name, done, total) at the beginning of every step and whenever more of it is done
    ended    (step's name, whether it failed)
    on_fact  called with every fact, on_step with every step that begins or advances: what these raise ends the work
    """

    def __init__(self, on_fact=lambda fact: None, on_step=lambda step: None):
        self.facts, self.counts, self.ended = [], [], []
        self.on_fact, self.on_step = on_fact, on_step

    def begin(self, step):
        self.advance(step)

    def advance(self, step):
        self.counts.append((step.name, step.done, step.total))
        self.on_step(step)

    def end(self, step):
        self.ended.append((step.name, step.failed))

    def tell(self, fact):
        self.facts.append(fact)
        self.on_fact(fact)

    def of(self, kind):
        """The facts of one type."""
        return [fact for fact in self.facts if isinstance(fact, kind)]

    def amounts(self, name):
        """(done, total) of the steps of one name."""
        return [(done, total) for step, done, total in self.counts if step == name]

    @property
    def kinds(self):
        """Names of the facts' types."""
        return [type(fact).__name__ for fact in self.facts]


@pytest.fixture(scope="session")
def recording():
    """A listener that keeps what it hears."""
    return Recording


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """One case of the reference outputs: what goes in, and in `arrays` and `document` what came out."""

    name: str
    document: dict
    arrays: dict[str, np.ndarray]
    digests: dict[str, str]
    recipe: Recipe
    video: torch.Tensor
    video_mask: torch.Tensor
    text_ids: torch.Tensor

    def array(self, name):
        return torch.from_numpy(self.arrays[name])

    def with_merge(self, **changes):
        """The recipe with another merge policy, past every check; the schedule stays."""
        merge = dataclasses.replace(self.recipe.profile.merge, **changes)
        profile = dataclasses.replace(self.recipe.profile, merge=merge)
        return dataclasses.replace(self.recipe, profile=profile)


def _profile_of(document, text_length):
    settings = document["settings"]

    def numbers(key):
        return tuple(int(part) for part in settings[key].split("-"))

    cross, intra = numbers("merge_token_proportion")
    return Profile(
        name=document["name"],
        backbone=FROM_CHECKPOINT,
        frames=settings["max_frames"],
        text_length=text_length,
        merge=MergePolicy(
            image_r=settings["tome_r"],
            clip_layers=numbers("merge_layer"),
            clip_factors=numbers("merge_frame_num"),
            cross_percent=cross,
            intra_percent=intra,
            size_bias=bool(settings["prop_attn"]),
            clip_position=bool(settings["frame_pos"]),
        ),
        batch=BatchRange(1, 2, 8),
    )


def _golden_folder(name):
    folder = next((f for f in (HERE, SHARED_GOLDEN) if (f / f"{name}.json").is_file()), None)
    if folder is None:
        pytest.skip(f"{name} is not in tests/golden, and ../shared/golden is not beside this repository")
    return folder


@functools.cache
def _load_golden(name):
    folder = _golden_folder(name)
    maker = _load_module(HERE / "make_checkpoint.py")
    document = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as stored:
        arrays = {key: stored[key] for key in stored.files if key != "meta"}
    case = document["case"]
    settings = maker.settings(case["arch"], **{k: v for k, v in case.items() if k != "arch"})
    state = maker.make_state_dict(settings, case["seed"])
    inputs = dict(zip(("video", "video_mask", "text_ids"), maker.make_inputs(case)[:3], strict=True))
    digests = {key: maker.digest({key: value}) for key, value in inputs.items()}
    digests["checkpoint"] = maker.digest(state)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    checkpoint = from_state_dict(tensors, source=name)
    recipe = prepare(checkpoint, _profile_of(document, inputs["text_ids"].shape[1]))
    return GoldenCase(
        name=name,
        document=document,
        arrays=arrays,
        digests=digests,
        recipe=recipe,
        **{key: torch.from_numpy(value) for key, value in inputs.items()},
    )


@pytest.fixture(scope="session")
def golden_settings():
    """Loader of a reference case's document and profile by name, without its arrays."""

    def load(name):
        document = json.loads((_golden_folder(name) / f"{name}.json").read_text())
        return document, _profile_of(document, text_length=32)

    return load


@pytest.fixture(scope="session")
def golden_case():
    """Loader of a reference case by name, cached; skips where the full-size case is not at hand."""
    return _load_golden


@pytest.fixture(scope="session")
def checkpoint_maker():
    """The module that draws deterministic checkpoints and inputs."""
    return _load_module(HERE / "make_checkpoint.py")


@pytest.fixture(scope="session")
def tiny_state_dict(checkpoint_maker):
    """State dict in the layout of the original: 12 frames, 12 blocks of width 128, LoRA rank 8. Copy it."""
    state = checkpoint_maker.make_state_dict(checkpoint_maker.settings("tiny"), seed=7)
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_state_dict, tmp_path_factory):
    """Path of `tiny_state_dict` as the original saves it."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(tiny_state_dict, path)
    return path


@pytest.fixture(scope="session")
def tiny_profile():
    """The profile `tiny_checkpoint` was drawn for."""
    return Profile(
        name="tiny",
        backbone=FROM_CHECKPOINT,
        frames=12,
        text_length=32,
        merge=MergePolicy(1, (8, 9, 10), (2, 2, 3), 30, 10),
        batch=BatchRange(1, 2, 8),
    )


@pytest.fixture(scope="session")
def tiny_recipe(tiny_state_dict, tiny_profile):
    """`tiny_checkpoint` and `tiny_profile` brought together."""
    return prepare(from_state_dict(tiny_state_dict, source="tiny"), tiny_profile)


@pytest.fixture
def run_command(monkeypatch, capsys):
    """`run_command(main, *arguments)`: a command in this process as a user calls it; its exit code, stdout, stderr."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return run


class Answering(Runner):
    """A runner whose answers are changed on their way out."""

    def __init__(self, real, seen, answer):
        self.real, self.seen, self.answer = real, seen, answer
        self.name, self.inputs, self.max_batch = real.name, real.inputs, real.max_batch

    def _infer(self, inputs):
        self.seen.append(inputs)
        return self.answer(self.real.infer(inputs))

    def close(self):
        self.real.close()


class Running:
    """A runtime as the real one, but for what happens before a runner is opened and what it answers.

    opened  names of the files that were opened
    seen    inputs of every run
    """

    def __init__(self, backend, before=lambda opened: None, answer=lambda found: found):
        self.real, self.before, self.answer, self.opened = backend.runtime, before, answer, []
        self.seen = []

    def __getattr__(self, name):
        return getattr(self.real, name)

    def open_runner(self, path, facts, setting):
        self.opened.append(path.name)
        self.before(self.opened)
        return Answering(self.real.open_runner(path, facts, setting), self.seen, self.answer)


@pytest.fixture
def registering():
    """`registering(*entries)`: artifacts and backends that are registered until the test ends."""
    with ExitStack() as stack:
        yield lambda *entries: stack.enter_context(registry.registered(*entries))


@pytest.fixture
def runs(registering):
    """`runs(name, before=, answer=)`: a backend is run by a Running until the test ends, which is returned."""

    def run(name, **changes):
        (backend,) = (one for one in registry.BACKENDS if one.name == name)
        runtime = Running(backend, **changes)
        registering(dataclasses.replace(backend, runner=runtime))
        return runtime

    return run


@contextmanager
def _largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def largest_file():
    """`with largest_file(size)`: the system refuses whatever would make a file larger, as a full disk does."""
    return _largest_file


@pytest.fixture
def run_python(tmp_path):
    """`run_python(code, packages, distributions, bare)`: stdout of a process of its own, which must end well.

    packages       name -> source of a package that is found before all others
    distributions  names of what is installed beside
    bare           without anything else that is installed here, this package apart
    """
    folder = tmp_path / "stand-ins"

    def run(code, packages=None, distributions=(), bare=False):
        for name, source in (packages or {}).items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "__init__.py").write_text(source)
        for k, name in enumerate(distributions):
            (folder / f"installed{k}.dist-info").mkdir(parents=True, exist_ok=True)
            (folder / f"installed{k}.dist-info" / "METADATA").write_text("" if name is None else f"Name: {name}\n")
        paths = [str(folder), *([str(HERE.parents[1])] if bare else [])]
        done = subprocess.run(
            [sys.executable, *(["-S"] if bare else []), "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def not_installed():
    """`not_installed(name)`: source of a package that answers as one that is not there."""
    return lambda name: f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"


@pytest.fixture
def other_file_system(tmp_path):
    """A folder on another file system than `tmp_path`, gone after the test."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second file system in /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def checkpoint_of():
    """Checkpoint with the right facts and no tensors, for tests that look at shapes alone."""

    def make(facts, activation=None):
        said = () if activation is None else (Statement("activation", activation, "the checkpoint's file"),)
        return Checkpoint("ckpt.pth", "0" * 64, {}, facts, said)

    return make


_WRONG_INT = -(2**30)


def _poison(make):
    @functools.wraps(make)
    def poisoned(*args, **kwargs):
        out = make(*args, **kwargs)
        if out.is_meta or type(out) is not torch.Tensor:
            return out
        if out.is_floating_point():
            return out.fill_(torch.nan)
        return out.fill_(_WRONG_INT) if out.dtype in (torch.int32, torch.int64) else out

    return poisoned


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fresh memory holds NaN, or a number far out of range, so that an output not fully written shows."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poison(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _poison(getattr(torch.Tensor, name)))


@pytest.fixture(autouse=True)
def _poison_kernel_tests(request):
    if request.path.parent.name == "kernels":
        request.getfixturevalue("poisoned_memory")


@dataclasses.dataclass(frozen=True)
class TiedCase:
    """A metric [B, N, C] full of exact ties, and its similarities as exact multiples of 1/4."""

    metric: torch.Tensor
    n_cls: int
    r: int
    quarters: np.ndarray

    @property
    def n_tokens(self):
        return self.metric.shape[1]


@st.composite
def _tied_cases(draw, dtypes=(torch.float32,)):
    """Tokens are copies of a few vectors with four entries of one magnitude, or zero, scaled at random.

    Their cosines are multiples of 1/4 whatever the order of the additions, so that ties are exact and
    the rule of the spec decides every time.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, width = draw(st.integers(1, 3)), draw(st.sampled_from([4, 5, 16, 63, 64]))
    n_cls, patches = draw(st.integers(1, 13)), draw(st.integers(2, 40))
    n_tokens = n_cls + patches
    available = len(range(n_cls + n_cls % 2, n_tokens, 2))
    r = draw(st.integers(1, available))
    words = np.zeros((draw(st.integers(1, 6)), width), np.int64)
    for word in words[int(rng.integers(2)) :]:  # the first may stay zero
        word[rng.choice(width, 4, replace=False)] = rng.choice([-1, 1], 4)
    signs = words[rng.integers(len(words), size=(rows, n_tokens))]
    scale = rng.choice([1.0, 3.0, 0.1, 1e-3, 700.0], size=(rows, n_tokens, 1))
    metric = torch.from_numpy(signs * scale).to(draw(st.sampled_from(dtypes)))
    return TiedCase(metric, n_cls, r, signs @ signs.transpose(0, 2, 1))


@pytest.fixture(scope="session")
def tied_cases():
    """Hypothesis strategy of TiedCase, by the dtypes of the metric."""
    return _tied_cases


def _match_by_definition(scores, n_cls, r):
    """Spec section 4 for one item, as a list; scores [N, N] of anything that compares exactly."""
    n_tokens = len(scores)
    set_a = [i for i in range(n_cls, n_tokens) if i % 2 == 0]
    set_b = [i for i in range(n_cls, n_tokens) if i % 2 == 1]
    best = {a: min(set_b, key=lambda b: (-scores[a][b], b)) for a in set_a}
    merged = sorted(set_a, key=lambda a: (-scores[a][best[a]], a))[:r]
    order = list(range(n_cls)) + [a for a in set_a if a not in merged] + set_b
    row = {token: place for place, token in enumerate(order)}
    return [row[best[token]] if token in merged else row[token] for token in range(n_tokens)]


@pytest.fixture(scope="session")
def match_by_definition():
    """A TiedCase's assignment [B, N] int32, by the words of the spec and in whole numbers."""

    def match(case):
        rows = [_match_by_definition(scores.tolist(), case.n_cls, case.r) for scores in case.quarters]
        return torch.tensor(rows, dtype=torch.int32)

    return match


def _check_assign(assign, n_tokens, n_cls, r):
    n_out = n_tokens - r
    assert assign.dtype == torch.int32 and assign.shape[1] == n_tokens
    set_a, set_b = (torch.arange(n_cls, n_tokens)[k::2] for k in (n_cls % 2, 1 - n_cls % 2))
    first_b = n_out - len(set_b)
    for row in assign:
        assert sorted(set(row.tolist())) == list(range(n_out)), "every output row gets something"
        assert row[:n_cls].tolist() == list(range(n_cls)), "class tokens stay"
        assert row[set_b].tolist() == list(range(first_b, n_out)), "B comes last, in order"
        kept = [place for place in row[set_a].tolist() if place < first_b]
        assert kept == list(range(n_cls, first_b)), "kept A in rising order"
        assert len(set_a) - len(kept) == r, "r tokens merge"


@pytest.fixture(scope="session")
def check_assign():
    """Asserts that an assignment [B, N] is a function onto the output rows, in the order of the spec."""
    return _check_assign


def _check_optimal(metric, assign, n_cls, r, within=1e-5):
    n_tokens = metric.shape[1]
    wide = metric.double()
    unit = wide / wide.norm(dim=-1, keepdim=True)
    set_a, set_b = (torch.arange(n_cls, n_tokens)[k::2] for k in (n_cls % 2, 1 - n_cls % 2))
    first_b = n_tokens - r - len(set_b)
    scores = unit[:, set_a] @ unit[:, set_b].transpose(1, 2)
    best = scores.amax(dim=-1)
    place = assign[:, set_a].long() - first_b
    merged = place >= 0
    chosen = scores.gather(2, place.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    assert (chosen >= best - within)[merged].all(), "each joins its nearest"
    lowest_merged = best.masked_fill(~merged, torch.inf).amin(dim=-1)
    highest_kept = best.masked_fill(merged, -torch.inf).amax(dim=-1)
    assert (lowest_merged >= highest_kept - within).all(), "the nearest pairs merge"


@pytest.fixture(scope="session")
def check_optimal():
    """Asserts that an assignment is the best by float64 scores up to 1e-5: near ties cannot flake."""
    return _check_optimal


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How far arithmetic in `dtype` may move what a tower of `layers` blocks computes, whatever a processor's order.

    A number meets sixteen roundings in a block (two LayerNorms, six products and six operands that were rounded when
    the weights were converted, the activation, two sums) and as many around the blocks. Each error is uniform within
    half the format's epsilon either way and independent of the others: a variance of a third of its square. Products
    add up in float32, so that their order moves a result's last bit and no more. A softmax passes an error of its
    logits on multiplied by their size, hence the factor two. Emulated processors reach 5 % of these distances in the
    video tower and 40 % in the text tower, whose end token stands alone.

    In float32 and float64 the products' sums round in the type itself: give the tower's `width` in channels. A block
    sums over seven times its width, beside the channels of a head and the tokens; added up one term after another, a
    sum meets half as many roundings as it has terms, weighed by what it had reached: four times the width.
    """

    dtype: torch.dtype
    layers: int
    width: int = 0

    @property
    def error(self):
        """Relative error of a token or an embedding, root mean square; of a score, too, which it bounds."""
        roundings = (16 + 4 * self.width) * (self.layers + 1)
        return torch.finfo(self.dtype).eps * math.sqrt(roundings / 3)

    @property
    def distance(self):
        """1 - cosine of an embedding, given equal decisions: half the squared error."""
        return self.error**2 / 2

    @property
    def difference(self):
        """Between what two orders of the same operations give, given equal decisions: of a token's length, and of any
        number of an embedding, which has length 1 and so no part that differs by more."""
        return math.sqrt(2) * self.error


@pytest.fixture(scope="session")
def rounding():
    """`rounding(dtype, layers, width)` -> Rounding."""
    return Rounding


def _step_error(dtype):
    eps, wide = (torch.finfo(one).eps for one in (dtype, torch.promote_types(dtype, torch.float32)))
    return 2 * eps + 14 * wide + 16 * torch.finfo(torch.float64).eps


@pytest.fixture(scope="session")
def step_error():
    """`step_error(dtype)`: how far a row may lie from float64's after one fused step, relative to its length.

    At most four numbers on a row's way are rounded to its dtype: with what a block adds, with its position, merged,
    normed. Half an epsilon each, they are 2. Sums run in float32 or wider over at most 784 terms, in any order; their
    errors of half an epsilon are independent, so that they grow with the root: 14. What float64 expects errs as well.
    """
    return _step_error


class _Watched(ReferenceVideo):
    def __init__(self, recipe, video, assigns, dtype=torch.float32):
        super().__init__(recipe, dtype)
        self.given, self.metrics = iter(assigns), []
        self.feature = self.video_feature(video)

    def _merge(self, x, size, metric, block, kind, log):
        r = block.r_cross if kind == "cross" else block.r_intra
        if r == 0:
            return x, size
        self.metrics.append((metric, block.n_cls, r))
        return merge_tokens_ref(x, size, next(self.given), x.shape[1] - r)


@pytest.fixture(scope="session")
def watched():
    """`watched(recipe, video, assigns, dtype)`: the reference that merged by `assigns`, its `feature`, and the
    `metrics` it would have decided on, each with n_cls and r."""
    return _Watched


def _decided(encoder, assigns):
    given = itertools.cycle(assigns)
    for block in encoder.blocks:
        block._merge = lambda stream, assign, *rest, merge=block._merge: merge(stream, next(given), *rest)
    return encoder


@pytest.fixture(scope="session")
def decided():
    """`decided(encoder, assigns)`: a VideoEncoder whose merges follow `assigns`; those it returns are still its own."""
    return _decided


def _merge_by_definition(x, size, assign, n_out):
    x, size, assign = x.double().numpy(), size.double().numpy(), assign.numpy()
    total = np.zeros((len(x), n_out))
    sums, magnitude = np.zeros((2, len(x), n_out, x.shape[-1]))
    for item in range(len(x)):
        for token, row in enumerate(assign[item]):
            total[item, row] += size[item, token]
            sums[item, row] += size[item, token] * x[item, token]
            magnitude[item, row] += size[item, token] * np.abs(x[item, token])
    means = (torch.from_numpy(part / total[..., None]) for part in (sums, magnitude))
    return *means, torch.from_numpy(total)


@pytest.fixture(scope="session")
def merge_by_definition():
    """float64 (weighted mean, weighted mean of magnitudes, sizes) of tokens that share an output row."""
    return _merge_by_definition
