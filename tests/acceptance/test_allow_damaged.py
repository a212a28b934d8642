"""Every command that decodes videos leaves out damaged ones and says so, or with --allow-damaged takes them."""

import contextlib
import importlib.metadata
import io
from unittest import mock

import numpy as np
import pytest

import tempme_export
from tempme_export.errors import VideoError

av = pytest.importorskip("av")


def write(path, colour, damaged=False):
    """A square that moves, as MPEG-4; where damaged, with noise in the first picture, which the rest is made from."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 60
        stream.codec_context.thread_count = 3  # the same bytes, however many cores there are
        for number in range(60):
            picture = np.add.outer(np.arange(48) * 3, np.arange(64) * 2)[..., None].repeat(3, 2).astype(np.uint8)
            picture[8:30, number % 44 : number % 44 + 18] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    if damaged:
        with av.open(str(path)) as container:
            first = bytes(next(container.demux(video=0)))
        content = bytearray(path.read_bytes())
        begin, count = content.find(first) + len(first) // 3, len(first) // 4
        content[begin : begin + count] = np.random.default_rng(0).bytes(count)
        path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """`films(COUNT)`: a folder of so many videos, the first of them damaged, and `set.csv` that captions them."""

    def films(count):
        folder = tmp_path_factory.mktemp("films")
        for number in range(count):
            write(folder / f"{number}.avi", (250 - 30 * number, 30 * number, 60), damaged=number == 0)
        rows = [f"{number}.avi,a square of colour {number}" for number in range(count)]
        (folder / "set.csv").write_text("\n".join(["video,caption", *rows]) + "\n")
        return folder

    return films


def call(name, *words):
    """A command in this process, since the libraries take longest: exit code, stdout and stderr."""
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    main, out, err = entry.load(), io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch("sys.argv", [name, *map(str, words)]),
        pytest.raises(SystemExit) as end,
    ):
        main()
    return end.value.code or 0, out.getvalue(), err.getvalue()


def test_evaluation(films, mini):
    folder = films(3)
    command = ("tempme-eval", mini, "--data", folder / "set.csv", "--videos", folder, "--workers", "0", "--json")
    (code, _, said), (patient_code, _, patient) = call(*command), call(*command, "--allow-damaged")
    assert code == 0 and "0.avi: found the frame at" in said
    assert patient_code == 0 and "damaged" not in patient


def test_training(films, mini, tmp_path):
    data = ("--data", films(3) / "set.csv", "--init", mini, "--epochs", "1", "--batch", "3", "--workers", "0")
    command = ("tempme-train", *data, "--device", "cpu")
    left_out = []
    for options in ((), ("--allow-damaged",)):
        out = tmp_path / f"with{len(options)}"
        code, _, said = call(*command, "--out", out, *options)
        assert code == 0, said
        left_out.append((out / "skipped.jsonl").read_text())
    assert left_out[0].count("\n") == 1 and "0.avi: found the frame at" in left_out[0] and not left_out[1]


def test_calibration(films, mini):
    folder = films(2)
    command = ("tempme-export", mini, "--precision", "int8", "--calibrate", folder, "--dry-run")
    (code, _, said), (patient_code, _, patient) = call(*command), call(*command, "--allow-damaged")
    assert code == 3 and "found 1 calibration clips" in said and "0.avi: found the frame at" in said
    assert patient_code == 0, patient


def test_gate(films, mini, tmp_path):
    """Eight videos are the fewest it judges."""
    asked = (
        "--gate",
        films(8) / "set.csv",
        "--allow-damaged",
        "--out",
        tmp_path / "mini.tempme",
        "--batch-range",
        "1:2:3",
    )
    code, _, said = call("tempme-export", mini, *asked)
    assert code == 0 and "damaged" not in said, said


def test_measurement_of_the_whole_way(tmp_path):
    path = write(tmp_path / "a.avi", (230, 60, 60), damaged=True)
    options = ("--profile", "mini-8f", "--mode", "end-to-end", "--backends", "torch")
    command = ("tempme-bench", *options, "--seconds", "0.05", "--samples", "5", "--budget", "0.2", "--video", path)
    (code, _, said), (patient_code, _, patient) = call(*command), call(*command, "--allow-damaged")
    assert code == 3 and "a.avi: found the frame at" in said
    assert patient_code == 0, patient


def test_picture_of_merges(mini_bundle, tmp_path):
    path = write(tmp_path / "a.avi", (230, 60, 60), damaged=True)
    command = ("tempme-bench", "visualize", path, mini_bundle, "--out", tmp_path / "pictures")
    (code, _, said), (patient_code, _, patient) = call(*command), call(*command, "--allow-damaged")
    assert code == 3 and "a.avi: found the frame at" in said
    assert patient_code == 0, patient


def test_a_bundle_in_use(mini_bundle, unit_error, tmp_path):
    path = write(tmp_path / "a.avi", (230, 60, 60), damaged=True)
    with tempme_export.load(mini_bundle) as model:
        with pytest.raises(VideoError, match="damaged"):
            model.encode_video(path)
        shown = model.encode_video([path, path], allow_damaged=True)
    length = np.linalg.norm(shown.astype(np.float64), axis=1)
    np.testing.assert_allclose(length, 1, rtol=0, atol=unit_error(shown.shape[1]))
