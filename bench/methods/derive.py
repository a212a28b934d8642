"""A method on a profile: its schedule and operations, with the paper's figures beside them."""

from dataclasses import dataclass

from tempme_export.bench.methods.catalogue import Method, policy_schedule
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

    schedule     token counts; None where none can be derived
    counted  operations per video of `schedule`
    policy   the merge policy behind `schedule`; None where no merge policy describes it
    figures  what the paper prints for this method, backbone and frame count, unless the profile's settings are
             not the paper's
    reason   one sentence: why there is no schedule or, beside one, why it does not run; empty where it runs
    """

    method: Method
    schedule: Schedule | None
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
        if self.schedule is None or self.figures is None:
            return None
        close = self.difference is None or abs(self.difference) <= TOLERANCE
        return close and self.figures.tokens in (None, (self.schedule.final_clips, self.schedule.final_tokens))


def derive(method: Method, profile: Profile, backbone: Backbone) -> Derivation:
    """Apply a method to the settings of a profile. Never raises: what does not apply says so in `reason`."""
    figures = paper_figures(method, backbone.name, profile.frames)
    policy, schedule = None, None
    try:
        if method.policy is not None:
            policy = method.policy(profile, backbone)
            schedule = policy_schedule(policy, profile, backbone)
        elif method.schedule is not None:
            schedule = method.schedule(profile, backbone)
    except ProfileError as error:
        return Derivation(method, None, None, None, figures, str(error))
    if schedule is None:
        return Derivation(method, None, None, None, figures, method.reason)
    if (
        figures is not None
        and figures.claim is not None
        and figures.claim.schedule(figures.claim, backbone) != schedule
    ):
        figures = None
    return Derivation(method, schedule, method.count(schedule, backbone), policy, figures, method.reason)
