"""Methods of a case as counted and measured here, beside what the paper prints for them."""

from collections.abc import Iterable, Mapping
from typing import Any

from tempme_export.bench.methods.catalogue import Method
from tempme_export.bench.methods.derive import derive
from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.profile import Profile


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
