"""The operators: contracts, refusals, and what tracing and export make of them."""

import dataclasses

import pytest
import torch

from tempme_export import ops
from tempme_export.kernels import dense
from tempme_export.kernels.reference import match_tokens_ref, merge_tokens_ref

MATCH, MERGE = torch.ops.tempme.match_tokens.default, torch.ops.tempme.merge_tokens.default


@dataclasses.dataclass
class Inputs:
    x: torch.Tensor
    size: torch.Tensor
    n_cls: int
    r: int

    @property
    def assign(self):
        return match_tokens_ref(self.x, self.n_cls, self.r)


def inputs(dtype=torch.float32, rows=2, n_cls=2, n_tokens=21, r=5):
    torch.manual_seed(42)
    x = torch.randn(rows, n_tokens, 16).to(dtype)
    size = torch.randint(1, 9, (rows, n_tokens)).to(torch.promote_types(dtype, torch.float32))
    return Inputs(x, size, n_cls, r)


class MergeOnce(torch.nn.Module):
    def __init__(self, n_cls, r):
        super().__init__()
        self.n_cls, self.r = n_cls, r

    def forward(self, x, size):
        assign = ops.match_tokens(x, self.n_cls, self.r)
        return assign, *ops.merge_tokens(x, size, assign, self.n_cls, self.r)


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "dtype, tolerance",
    [(torch.float32, 2e-6), (torch.float64, 1e-14), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)],
)
@pytest.mark.parametrize("n_cls", [1, 2])
def test_they_are_what_the_oracle_is(dtype, tolerance, n_cls):
    given = inputs(dtype, n_cls=n_cls)
    assign = ops.match_tokens(given.x, n_cls, 5)
    equal(assign, given.assign)
    merged, total = ops.merge_tokens(given.x, given.size, assign, n_cls, 5)
    expected, sizes = merge_tokens_ref(given.x, given.size, assign, 16)
    assert merged.dtype == dtype
    equal(total, sizes)
    torch.testing.assert_close(merged, expected, rtol=tolerance, atol=tolerance)


def test_no_sizes_are_sizes_of_one():
    given = inputs()
    merged, total = ops.merge_tokens(given.x, None, given.assign, 2, 5)
    expected, sizes = ops.merge_tokens(given.x, torch.ones_like(given.size), given.assign, 2, 5)
    equal(total, sizes)
    torch.testing.assert_close(merged, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_cls, r", [(1, 1), (2, 5), (3, 9)])
def test_opcheck(dtype, n_cls, r):
    given = inputs(dtype, n_cls=n_cls, r=r)
    torch.library.opcheck(MATCH, (given.x, n_cls, r))
    torch.library.opcheck(MERGE, (given.x, given.size, given.assign, n_cls, r))
    torch.library.opcheck(MERGE, (given.x, None, given.assign, n_cls, r))


def test_opcheck_of_strided_inputs():
    given = inputs()
    x = given.x.mT.contiguous().mT
    torch.library.opcheck(MATCH, (x, 2, 5))
    torch.library.opcheck(MERGE, (x, given.size.t().contiguous().t(), given.assign, 2, 5))


def test_an_empty_batch():
    assign = ops.match_tokens(torch.zeros(0, 21, 4), 2, 5)
    assert assign.shape == (0, 21) and assign.dtype == torch.int32
    merged, total = ops.merge_tokens(torch.zeros(0, 21, 4), None, assign, 2, 5)
    assert merged.shape == (0, 16, 4) and total.shape == (0, 16)


class TestRefusals:
    def refused(self, message, operator, *args):
        with pytest.raises(ValueError, match=message):
            operator(*args)

    @pytest.mark.parametrize("shape", [(21, 16), (1, 2, 21, 16), ()])
    def test_metric_dimensions(self, shape):
        message = rf"metric must be floating \[B, N, C\], found torch\.float32 {shape}".replace("(", r"\(")
        self.refused(message.replace(")", r"\)"), ops.match_tokens, torch.zeros(shape), 2, 5)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64], ids=str)
    def test_dtypes(self, dtype):
        given = inputs()
        x = torch.zeros(2, 21, 16, dtype=dtype)
        self.refused(f"metric must be floating .* found {dtype}", ops.match_tokens, x, 2, 5)
        self.refused(f"x must be floating .* found {dtype}", ops.merge_tokens, x, None, given.assign, 2, 5)

    # 21 tokens: with 2 class tokens |A| is 10, with 3 it is 9.
    @pytest.mark.parametrize("n_cls, r, available", [(2, 0, 10), (2, -1, 10), (2, 11, 10), (3, 10, 9)])
    def test_r(self, n_cls, r, available):
        given = inputs()
        message = rf"r = {r} of 21 tokens with {n_cls} class tokens: expected 1 <= r <= \|A\| = {available}"
        self.refused(message, ops.match_tokens, given.x, n_cls, r)
        self.refused(message, ops.merge_tokens, given.x, given.size, given.assign, n_cls, r)

    def test_the_largest_r_is_fine(self):
        given = inputs()
        assert ops.match_tokens(given.x, 2, 10).max() == 10
        assert ops.match_tokens(given.x, 3, 9).max() == 11

    @pytest.mark.parametrize("n_tokens, n_cls", [(3, 2), (2, 1), (1, 1), (12, 12)])
    def test_nothing_to_merge(self, n_tokens, n_cls):
        x = torch.zeros(1, n_tokens, 4)
        self.refused(r"\|B\| >= 1", ops.match_tokens, x, n_cls, 1)
        assign = torch.zeros(1, n_tokens, dtype=torch.int32)
        self.refused(r"\|B\| >= 1", ops.merge_tokens, x, None, assign, n_cls, 1)

    def test_shapes_that_do_not_belong_together(self):
        given = inputs()
        short = given.size[:, :20]
        self.refused(
            r"size must be \(2, 21\) like x, found \(2, 20\)",
            ops.merge_tokens,
            given.x,
            short,
            given.assign,
            2,
            5,
        )
        wrong = given.assign[:1]
        self.refused(
            r"assign must be \(2, 21\) like x, found \(1, 21\)",
            ops.merge_tokens,
            given.x,
            given.size,
            wrong,
            2,
            5,
        )
        self.refused(r"x must be floating \[B, N, D\]", ops.merge_tokens, given.x[0], None, given.assign, 2, 5)

    def test_assign_of_another_type(self):
        given = inputs()
        self.refused(
            "assign must be int32 as the match operators return it, found torch.int64",
            ops.merge_tokens,
            given.x,
            None,
            given.assign.long(),
            2,
            5,
        )

    def test_backward(self):
        given = inputs()
        x = given.x.requires_grad_()
        merged, _ = ops.merge_tokens(x, None, given.assign, 2, 5)
        with pytest.raises(RuntimeError, match="autograd"):
            merged.sum().backward()


class TestTracing:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("sized", [True, False])
    def test_compile(self, dtype, sized):
        given = inputs(dtype)
        size = given.size if sized else None
        module = MergeOnce(2, 5)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        for found, expected in zip(compiled(given.x, size), module(given.x, size), strict=True):
            equal(found, expected)

    def test_export_keeps_the_operators_and_the_batch_free(self):
        given = inputs(rows=3)
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(MergeOnce(2, 5), (given.x, given.size), dynamic_shapes=({0: batch}, {0: batch}))
        targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert targets.count(MATCH) == 1 and targets.count(MERGE) == 1
        for rows in (1, 3, 8):
            given = inputs(rows=rows)
            found = program.module()(given.x, given.size)
            for one, other in zip(found, MergeOnce(2, 5)(given.x, given.size), strict=True):
                equal(one, other)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
    def test_shapes_and_dtypes_without_data(self, dtype):
        given = inputs(dtype)
        real = MergeOnce(2, 5)(given.x, given.size)
        fake = MergeOnce(2, 5)(given.x.to("meta"), given.size.to("meta"))
        for one, other in zip(fake, real, strict=True):
            assert one.is_meta and (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


@pytest.mark.parametrize("sized", [True, False])
def test_the_cpu_runs_the_dense_form(sized):
    given = inputs()
    size = given.size if sized else None
    equal(ops.match_tokens(given.x, 2, 5), dense.match_tokens(given.x, 2, 5))
    found, expected = (module.merge_tokens(given.x, size, given.assign, 2, 5) for module in (ops, dense))
    for one, other in zip(found, expected, strict=True):
        equal(one, other)
