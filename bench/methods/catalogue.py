"""The methods that stand side by side: each a rule from a profile to what merges, or the reason why there is none.

No schedule is written down here but the clip layers of the paper's Table 10, which come from its claims; rates and
percentages are those of the profile, so that every method of a comparison shares them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tempme_export.bench.methods.schedules import EVIT_BLOCKS, evit_schedule, within_frames
from tempme_export.bench.paper import CLAIMS, Counter
from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.profile import Profile
from tempme_export.encoder.schedule import MergePolicy, Schedule, build_schedule
from tempme_export.errors import ProfileError, UsageError

ALL = "all"
_LAYERS = 12  # blocks of the backbones that the papers' schedules are for

PolicyRule = Callable[[Profile, Backbone], MergePolicy]
MethodSchedule = Callable[[Profile, Backbone], Schedule]


@dataclass(frozen=True)
class Method:
    """One way to spend fewer operations on a video; `derive.derive` applies it to a profile.

    key     shell-friendly name
    title   for people to read
    source  where the paper prints it
    labels  of the claims in `paper.CLAIMS` that are this method's
    policy  its merge policy; raises ProfileError where the profile has no settings for it
    schedule    its token counts, where no merge policy describes it; raises ProfileError likewise
    count   schedule -> operations
    reason  why it has no schedule or, beside one, why it is counted and not run; empty where it runs
    """

    key: str
    title: str
    source: str
    labels: tuple[str, ...] = ()
    policy: PolicyRule | None = None
    schedule: MethodSchedule | None = None
    count: Counter = complexity
    reason: str = ""

    @property
    def runs(self) -> bool:
        """True where it has an encoder on the original path (`encoders.encoder`)."""
        return not self.reason

    @property
    def exports(self) -> bool:
        """True where the fast encoder and every artifact can compute it too, through `recipes.method_recipe`."""
        return self.runs and self.policy is not None


def without_clips(merge: MergePolicy, image_r: int) -> MergePolicy:
    """`image_r` tokens merged per frame in every block, frames left apart."""
    return replace(
        merge,
        image_r=image_r,
        clip_layers=(),
        clip_factors=(),
        cross_percent=0,
        intra_percent=0,
        clip_position=False,
    )


def _nothing(profile: Profile, backbone: Backbone) -> MergePolicy:
    return without_clips(profile.merge, 0)


def _image_blocks(profile: Profile, backbone: Backbone) -> MergePolicy:
    if profile.merge.image_r == 0:
        raise ProfileError(f"profile {profile.name} merges nothing within frames (image_r = 0), so there is no rate.")
    return without_clips(profile.merge, profile.merge.image_r)


def _own(profile: Profile, backbone: Backbone) -> MergePolicy:
    if all(factor == 1 for factor in profile.merge.clip_factors):
        raise ProfileError(f"profile {profile.name} joins no clips (clip_layers), so there is nothing of TempMe in it.")
    return profile.merge


def _joined(profile: Profile, backbone: Backbone) -> MergePolicy:
    return replace(_own(profile, backbone), image_r=0, cross_percent=0, intra_percent=0)


def _own_schedule(profile: Profile, backbone: Backbone) -> Schedule:
    return policy_schedule(_own(profile, backbone), profile, backbone)


def _evit_schedule(profile: Profile, backbone: Backbone) -> Schedule:
    if not EVIT_BLOCKS[0] < backbone.layers <= _LAYERS:
        raise ProfileError(
            f"EViT fuses in blocks {', '.join(str(index + 1) for index in EVIT_BLOCKS)} of {_LAYERS}; "
            f"{backbone.name} has {backbone.layers} blocks."
        )
    return evit_schedule(profile.frames, backbone)


def policy_schedule(merge: MergePolicy, profile: Profile, backbone: Backbone) -> Schedule:
    """Token counts of a merge policy on the profile's frames. Raises ProfileError where it does not fit."""
    return build_schedule(
        merge, layers=backbone.layers, frames=profile.frames, tokens_per_frame=backbone.tokens_per_frame
    )


def _clip_schedule(key: str, label: str) -> Method:
    """A row of Table 10: the claim's clip layers, everything else from the profile."""
    claim = next(one for one in CLAIMS if one.label == label)

    def policy(profile: Profile, backbone: Backbone) -> MergePolicy:
        if (profile.frames, backbone.layers) != (claim.frames, _LAYERS):
            raise ProfileError(
                f"{claim.source} gives it for {claim.frames} frames and {_LAYERS} blocks; profile {profile.name} has "
                f"{profile.frames} frames, {backbone.name} {backbone.layers} blocks."
            )
        own = _own(profile, backbone)
        return replace(own, clip_layers=claim.merge.clip_layers, clip_factors=claim.merge.clip_factors)

    return Method(key, label, claim.source, (label,), policy)


METHODS: tuple[Method, ...] = (
    Method(
        "none", "no merging (LoRA, CLIP4Clip)", "Tables 1, 2, 4, 9", ("no merging B/32", "no merging B/16"), _nothing
    ),
    Method("tome", "ToMe", "Tables 1, 2, 4", ("ToMe B/32", "ToMe B/16"), _image_blocks),
    Method("tempme", "TempMe", "Tables 1, 2, 4, 9, 10", ("TempMe B/32", "TempMe B/16"), _own),
    Method(
        "temporal", "temporal modelling only: joined, nothing merged", "Table 9", ("joined, nothing merged",), _joined
    ),
    Method(
        "reduction",
        "token reduction only: TempMe's tokens, attention within each frame",
        "Table 9",
        ("token reduction only",),
        schedule=_own_schedule,
        count=within_frames,
        reason="the paper does not say within which frame a token attends that was merged across frames, so it is "
        "counted and not run.",
    ),
    _clip_schedule("clips-4-1", "12-9->4-10->1"),
    _clip_schedule("clips-1", "12-9->1"),
    _clip_schedule("clips-6-3", "12-9->6-10->3"),
    _clip_schedule("clips-4", "12-9->4"),
    _clip_schedule("layers-7-9-11", "clip layers 7, 9, 11"),
    _clip_schedule("layers-4-7-10", "clip layers 4, 7, 10"),
    _clip_schedule("layers-1-5-9", "clip layers 1, 5, 9"),
    Method("evit", "EViT", "Table 2", ("EViT B/32",), schedule=_evit_schedule),
    Method(
        "diffrate",
        "DiffRate",
        "Tables 1, 2, 4",
        reason="DiffRate learns how many tokens each block prunes and merges, and the paper prints none of the rates.",
    ),
    Method(
        "sta",
        "STA",
        "Table 2",
        reason="STA was made for encoders in which the tokens of all frames attend to each other, and the paper prints "
        "neither the blocks in which its re-implementation on CLIP prunes nor how many tokens each of them keeps.",
    ),
    Method(
        "testa",
        "TESTA",
        "Table 2",
        reason="TESTA merges frames and patches in the divided space-time blocks of its own encoder, which CLIP does "
        "not have, and the paper prints neither what its re-implementation does instead nor how many each block "
        "merges.",
    ),
)
"""In the order of the paper's tables."""


def chosen(names: Iterable[str] | str | None) -> tuple[Method, ...]:
    """The methods called `names`, in that order and each once; every one for None or "all".

    Raises UsageError for unknown names, and for none at all.
    """
    asked = [ALL] if names is None else [names] if isinstance(names, str) else list(names)
    known = {method.key: method for method in METHODS}
    unknown = [name for name in asked if name not in known and name != ALL]
    if unknown or not asked:
        raise UsageError(
            f"found {', '.join(map(repr, unknown)) or 'no name'} for a method, expected some of: "
            f"{', '.join(known)}, or {ALL}."
        )
    keys = dict.fromkeys(key for name in asked for key in (known if name == ALL else (name,)))
    return tuple(known[key] for key in keys)
