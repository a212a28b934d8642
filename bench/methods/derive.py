"""A method on a profile: its schedule and operations, with the paper's figures beside them."""

from dataclasses import dataclass

from tempme_export.bench.methods.catalogue import Method, policy_plan
from tempme_export.bench.methods.figures import PaperFigures, paper_figures
from tempme_export.bench.paper import TOLERANCE
from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.complexity import Complexity
from tempme_export.encoder.profile import Profile
from tempme_export.encoder.schedule import MergePolicy, Schedule
from tempme_export.errors import ProfileError


@dataclass(frozen=True)
class Derivation:
    """A method on one profile and backbone, in figures.

    plan     token counts; None where none can be derived
    counted  operations per video of `plan`
    policy   the merge policy behind `plan`; None where no merge policy describes it
    figures  what the paper prints for this method, backbone and frame count, unless the profile's settings are
             not the paper's
    reason   one sentence: why there is no plan or, beside one, why it does not run; empty where it runs
    """

    method: Method
    plan: Schedule | None
    counted: Complexity | None
    policy: MergePolicy | None
    figures: PaperFigures | None
    reason: str

    @property
    def runs(self) -> bool:
        """True where there is an encoder for it."""
        return not self.reason

    @property
    def difference(self) -> float | None:
        """Our GMACs minus the printed figure; None where one of them is missing."""
        if self.counted is None or self.figures is None or self.figures.gflops is None:
            return None
        return self.counted.gmacs - self.figures.gflops

    @property
    def holds(self) -> bool | None:
        """True where count and tokens agree with the paper; None where there is nothing to compare."""
        if self.plan is None or self.figures is None:
            return None
        close = self.difference is None or abs(self.difference) <= TOLERANCE
        return close and self.figures.tokens in (None, (self.plan.final_clips, self.plan.final_tokens))


def derive(method: Method, profile: Profile, backbone: Backbone) -> Derivation:
    """Apply a method to the settings of a profile. Never raises: what does not apply says so in `reason`."""
    figures = paper_figures(method, backbone.name, profile.frames)
    policy, plan = None, None
    try:
        if method.policy is not None:
            policy = method.policy(profile, backbone)
            plan = policy_plan(policy, profile, backbone)
        elif method.plan is not None:
            plan = method.plan(profile, backbone)
    except ProfileError as error:
        return Derivation(method, None, None, None, figures, str(error))
    if plan is None:
        return Derivation(method, None, None, None, figures, method.reason)
    if figures is not None and figures.claim is not None and figures.claim.plan(figures.claim, backbone) != plan:
        figures = None
    return Derivation(method, plan, method.count(plan, backbone), policy, figures, method.reason)
