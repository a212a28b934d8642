"""Runs numbered cases of one kind in a process that is watched.

worker.py KIND ORIGINALS SCRATCH SEED FIRST END MINUTES

One line of JSON before each case and one after. A case is right when nothing but a `TempMeExportError` comes out and
no file is left. A case that hangs ends the process with the stack of every thread on stderr.
"""

import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random

HANGS = 120  # seconds of one case; the slowest needs five
MEMORY = 12 * 2**30  # bytes of address space: what asks for more fails here instead of filling the machine


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def run_case(kind, rng: Random, scratch: Path) -> tuple[str, str]:
    """("accepted" or "refused" or "broken", what happened)."""
    from tempme_export.errors import TempMeExportError

    here, temporary = scratch / "case", scratch / "tmp"
    for folder in (here, temporary):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    tempfile.tempdir = str(temporary)
    kind.make(rng, here)
    before = _files(here)
    try:
        kind.use(here)
        outcome = ("accepted", "")
    except TempMeExportError as error:
        fine = 2 <= error.exit_code <= 6 and str(error).strip()
        outcome = ("refused" if fine else "broken", f"{type(error).__name__}: {error}")
    except Exception:
        outcome = ("broken", traceback.format_exc())
    left = sorted(_files(here) - before | _files(temporary))
    return ("broken", f"left behind: {left}; {outcome[1]}") if left else outcome


def main() -> None:
    name, originals, scratch, seed, first, count, minutes = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not mix with the replies
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(scratch) / "inductor")  # made wherever torch is imported
    faulthandler.enable()
    from kinds import KINDS

    kind = KINDS[name](Path(originals))
    ends = time.monotonic() + 60 * float(minutes) if minutes else None
    number = int(first)
    while number < int(count) if ends is None else time.monotonic() < ends:
        case = f"{name}:{seed}:{number}"
        print(json.dumps({"begins": number}), file=replies, flush=True)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        verdict, said = run_case(kind, Random(case), Path(scratch))
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({"case": case, "verdict": verdict, "said": said}), file=replies, flush=True)
        if verdict == "broken":
            shutil.copytree(Path(scratch) / "case", Path(scratch) / f"broken-{number}", symlinks=True)
        number += 1


if __name__ == "__main__":
    main()
