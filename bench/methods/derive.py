"""A method on a profile: its schedule and operations as counted here, beside what the paper prints."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tempme_export.bench.methods.catalogue import Method, policy_schedule
from tempme_export.bench.methods.figures import PaperFigures, paper_figures
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


def paper_comparison(
    methods: Iterable[Method],
    profile: Profile,
    backbone: Backbone,
    videos_per_s: Mapping[str, float],
    missing: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One row for each method, as plain values; None where there is no figure, and `reason` says why there is none
    of ours.

    videos_per_s  as measured, by method key
    missing       why others were not
    """
    rows = []
    for method in methods:
        found = derive(method, profile, backbone)
        schedule, figures = found.schedule, found.figures
        rows.append(
            {
                "profile": profile.name,
                "backbone": backbone.name,
                "frames": profile.frames,
                "key": method.key,
                "title": method.title,
                "gmacs": None if found.counted is None else found.counted.gmacs,
                "tokens": None if schedule is None else (schedule.final_clips, schedule.final_tokens),
                "videos_per_s": videos_per_s.get(method.key),
                "paper_gflops": None if figures is None else figures.gflops,
                "paper_tokens": None if figures is None else figures.tokens,
                "paper_videos_per_s": None if figures is None else figures.videos_per_s,
                "source": method.source,
                "reason": found.reason or missing.get(method.key, ""),
            }
        )
    return rows
