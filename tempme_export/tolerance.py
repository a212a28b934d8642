"""The one tolerance table. Commands, tests and benchmarks read it; a new limit comes with its reason."""

from dataclasses import dataclass

UNIT_LENGTH = 1e-5  # largest | |embedding| - 1 |; the last division is in float32 in every precision
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision against the float32 reference.

    changed_decisions  largest share of tokens that may go to another row
    merged_tokens      relative RMS error of merged tokens, over items whose decisions are still equal
    cosine_distance    largest 1 - cosine of an embedding; None where it would say nothing
    fragile_distance   the same, for clips whose decisions hang on less than the self-test's safe gap: another
                       order of near ties is as valid as the oracle's
    centred_cosine     smallest cosine after the mean embedding is subtracted; None where not gated
    rank_agreement     smallest Spearman correlation of similarities, text against video; None where not gated
    """

    changed_decisions: float
    merged_tokens: float
    cosine_distance: float | None
    fragile_distance: float | None
    centred_cosine: float | None
    rank_agreement: float | None


# Different clips average a cosine of 0.96 and removing all merging still scores 0.99, so below float32 the
# raw cosine is no gate. There decisions differ wherever similarities nearly tie, which the centred cosine and
# the ranks judge by their effect. Two neighbours that change places in one of the self-test's eight queries
# cost 0.007 of rank agreement.
# Equally valid orders of tied tokens were measured up to 3.3e-3 apart on the original implementation.
TOLERANCES = {
    "fp32": Tolerance(0.0, 2e-5, 1e-6, 5e-3, None, None),
    "fp16": Tolerance(0.10, 1e-2, None, None, 0.99, 0.98),
    "bf16": Tolerance(0.40, 6e-2, None, None, 0.95, 0.90),
}
