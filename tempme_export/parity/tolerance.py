"""The one tolerance table. Commands, tests and benchmarks read it; a new limit comes with its reason."""

from dataclasses import dataclass

UNIT_LENGTH = 1e-5  # largest | |embedding| - 1 |; the last division is in float32 in every precision
INT8 = "int8"  # products only, on CPUs
PRECISIONS = ("fp32", "fp16", "bf16", INT8)
_ROUNDING = 1e-12  # of a mean of correlations in float64


@dataclass(frozen=True)
class RetrievalTolerance:
    """Limits of the retrieval gate, against the original path in float32 on the same frames and captions.

    recall_drop          largest loss of R@1, R@5 or R@10 in either direction, in points
    top10_overlap        smallest share of a query's ten best candidates that are the original's, mean over queries
    gate_rank_agreement  smallest Spearman correlation of all candidates, mean over queries
    """

    recall_drop: float
    top10_overlap: float
    gate_rank_agreement: float

    def recall_limit(self, queries: int) -> float:
        """`recall_drop`, and never less than one query: among few queries one is many points, and one that nearly
        ties turns on the last bit of a score."""
        return max(self.recall_drop, 100 / queries)

    def overlap_limit(self, queries: int, best: int) -> float:
        """`top10_overlap`, and never more than leaves room for one candidate of one query's `best` to be another."""
        return min(self.top10_overlap, (best * queries - 1) / (best * queries))

    def rank_limit(self, queries: int, candidates: int) -> float:
        """`gate_rank_agreement`, and never more than leaves room for one query's two neighbours to change places."""
        one_exchange = 12 / (candidates * (candidates**2 - 1))
        return min(self.gate_rank_agreement, 1 - one_exchange / queries - _ROUNDING)


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision against the float32 reference.

    changed_decisions  largest share of tokens that may go to another row
    merged_tokens      relative RMS error of merged tokens, over items whose decisions are still equal
    cosine_distance    largest 1 - cosine of an embedding; None where it would say nothing
    fragile_distance   the same, for clips whose decisions hang on less than the self-test's safe gap: another
                       order of near ties is as valid as the reference's
    centred_cosine     smallest cosine after the mean embedding is subtracted; None where not gated
    rank_agreement     smallest Spearman correlation of similarities, text against video; None where not gated
    retrieval          limits of the retrieval gate; by default float32's, the strictest
    dependence         largest change of a number of an embedding by what else is in its batch; None where that is
                       held to the distance from the reference alone
    """

    changed_decisions: float
    merged_tokens: float
    cosine_distance: float | None
    fragile_distance: float | None
    centred_cosine: float | None
    rank_agreement: float | None
    retrieval: RetrievalTolerance = RetrievalTolerance(0.1, 0.999, 0.999)
    dependence: float | None = None


# Different clips average a cosine of 0.96 and removing all merging still scores 0.99, so below float32 the
# raw cosine is no gate. There decisions differ wherever similarities nearly tie, which the centred cosine and
# the ranks measure by their effect. Two neighbours that change places in one of the self-test's eight queries
# cost 0.007 of rank agreement.
# Equally valid orders of tied tokens were measured up to 3.3e-3 apart on the original implementation.
#
# Retrieval: float32 may lose what its few near-tied decisions cost, one query in a thousand, the last printed digit
# of the papers. Below float32 decisions change in most videos and recalls move both ways: where one query in a
# hundred turns either way (float16) or one in twenty-five (bfloat16), a set of a thousand loses 1.0 or 2.0 points by
# chance once in a thousand times. The differences between published methods start at half a point, so more than
# that would be another model. The overlaps and ranks hold what recalls of a small or an easy set cannot show. On
# rendered clips with random weights (ViT-B/32 with 40 clips, a model of four blocks with 100) float16 overlapped by
# 0.996 and correlated by 0.9998 at the least, bfloat16 by 0.964 and 0.9988: at most two fifths of what is allowed. The
# trained examples/mini.pth, 200 clips: float16 0.9985 and 0.99999, bfloat16 0.992 and 0.9998, no recall changed.
#
# int8 is held to what an index needs, half a point and nineteen of twenty candidates; the trained examples/mini.pth
# meets them without a query lost, by 0.983 and 0.9997. Its self-test limits are bfloat16's: embeddings of a ViT-B/32
# and a ViT-B/16 with random weights had a centred cosine of 0.988 and 0.982, and those of one with planted outlier
# channels 0.995, with 8 % of its decisions changed.
TOLERANCES = {
    "fp32": Tolerance(0.0, 2e-5, 1e-6, 5e-3, None, None, RetrievalTolerance(0.1, 0.999, 0.999)),
    "fp16": Tolerance(0.10, 1e-2, None, None, 0.99, 0.98, RetrievalTolerance(1.0, 0.97, 0.998)),
    "bf16": Tolerance(0.40, 6e-2, None, None, 0.95, 0.90, RetrievalTolerance(2.0, 0.90, 0.99)),
    INT8: Tolerance(0.40, 6e-2, None, None, 0.95, 0.90, RetrievalTolerance(0.5, 0.95, 0.99), dependence=0.0),
}
