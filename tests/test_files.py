"""What is written is whole or not there, and a name is taken only where it is free at that moment."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from tempme_export import files
from tempme_export.errors import ExportError, LeftBehindWarning
from tempme_export.files import building, discard_unfinished, scratch_folder, write_file


class TestWriteFile:
    def test_new_and_replaced(self, tmp_path):
        path = tmp_path / "a.bin"
        for content in (b"one", b"two"):
            write_file(path, lambda stream, content=content: stream.write(content))
            assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter")])
    def test_a_write_that_fails_leaves_the_old_file(self, tmp_path, error):
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")

        def half(stream):
            stream.write(b"new")
            raise error

        with pytest.raises(ExportError, match=r"a\.bin could not be written.*MB are free.*of before is intact"):
            write_file(path, half)
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

    def test_an_interruption_passes_and_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")

        def interrupted(stream):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_file(path, interrupted)
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

    def test_it_is_on_the_disk_before_it_has_its_name(self, tmp_path, before_calls):
        path, synced = tmp_path / "a.bin", []
        with before_calls(os.fsync, lambda n: synced.append(path.exists())):
            write_file(path, lambda stream: stream.write(b"x"))
        assert synced == [False, True], "the file, then the folder that names it"

    def test_no_folder(self, tmp_path):
        with pytest.raises(ExportError, match="could not be written"):
            write_file(tmp_path / "none" / "a.bin", lambda stream: stream.write(b"x"))

    def test_a_full_disk(self, tmp_path):
        """A real limit on file sizes, which a write meets as it meets the end of a disk."""
        path = tmp_path / "a.pt"
        torch.save({"old": torch.ones(3)}, path)
        program = (
            "import resource, sys, torch\n"
            "from pathlib import Path\n"
            "from tempme_export.errors import ExportError\n"
            "from tempme_export.files import write_file\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "document = {'new': torch.ones(100_000)}\n"
            "try:\n"
            "    write_file(Path(sys.argv[1]), lambda stream: torch.save(document, stream))\n"
            "except ExportError as error:\n"
            "    sys.stdout.write(str(error))\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "could not be written" in done.stdout and "of before is intact" in done.stdout
        assert torch.load(path, weights_only=True)["old"].tolist() == [1.0, 1.0, 1.0]
        assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(params=["one rename", "two renames"])
def publish(request):
    """On a file system that exchanges names and refuses taken ones, and on one that cannot."""
    without = {} if request.param == "one rename" else {"system": lambda *names: False}
    return partial(files.publish, **without)


def fill(folder, text):
    folder.mkdir()
    (folder / "content").write_text(text)


class TestPublish:
    def test_a_free_name(self, publish, tmp_path):
        with building(tmp_path / "out") as work:
            (work / "content").write_text("new")
            publish(work, tmp_path / "out", replace=False)
        assert (tmp_path / "out" / "content").read_text() == "new" and len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("there", [None, "old"])
    def test_a_taken_name(self, publish, tmp_path, there):
        """An empty folder too, which a plain rename would replace."""
        out = tmp_path / "out"
        with building(out) as work:
            out.mkdir()
            if there:
                (out / "content").write_text(there)
            with pytest.raises(FileExistsError):
                publish(work, out, replace=False)
        assert [path.read_text() for path in out.iterdir()] == ([there] if there else [])
        assert list(tmp_path.iterdir()) == [out]

    def test_what_is_there_is_replaced_and_gone(self, publish, tmp_path):
        out = tmp_path / "out"
        fill(out, "old")
        with building(out) as work:
            (work / "content").write_text("new")
            publish(work, out, replace=True)
            assert (out / "content").read_text() == "new"
        assert (out / "content").read_text() == "new" and list(tmp_path.iterdir()) == [out]

    def test_many_at_once(self, publish, tmp_path):
        """Without `replace` one of them has the name; with it one of them, and each of the others was there."""
        for replace, winners in ((False, 1), (True, 8)):
            out, published = tmp_path / f"out-{replace}", []

            def run(name, start, out=out, published=published, replace=replace):
                with building(out) as work:
                    (work / "content").write_text(name)
                    start.wait()
                    with suppress(FileExistsError):
                        publish(work, out, replace=replace)
                        published.append(name)

            start = threading.Barrier(8)
            threads = [threading.Thread(target=run, args=(str(index), start)) for index in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(published) == winners
            assert (out / "content").read_text() in published
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out-False", "out-True"]

    def test_a_link_is_replaced_and_its_target_kept(self, publish, tmp_path):
        fill(tmp_path / "target", "old")
        (tmp_path / "out").symlink_to("target")
        with building(tmp_path / "out") as work:
            publish(work, tmp_path / "out", replace=True)
        assert not (tmp_path / "out").is_symlink() and (tmp_path / "target" / "content").read_text() == "old"

    def test_what_was_there_comes_back_when_the_last_rename_fails(self, tmp_path):
        """A file cannot be renamed to a folder; by then the old one was moved away."""
        fill(tmp_path / "out", "old")
        (tmp_path / "work").write_text("no folder")
        with pytest.raises(OSError, match="directory"):
            files.publish(tmp_path / "work", tmp_path / "out", replace=True, system=lambda *names: False)
        assert (tmp_path / "out" / "content").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]


NOBODY = 65534


@pytest.fixture
def users_folder():
    """A folder of a user with no rights beyond his own, who the test runs as: root may delete anything."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.geteuid() == 0
        if root:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
            for locked in Path(folder).rglob("kept"):
                locked.chmod(0o700)


class TestBuilding:
    def test_what_cannot_be_deleted_is_told_and_no_error(self, publish, users_folder):
        """The old folder holds one that its owner may not write to."""
        out = users_folder / "out"
        fill(out, "old")
        fill(out / "kept", "for ever")
        (out / "kept").chmod(0o500)
        with pytest.warns(LeftBehindWarning, match=r"\.out\..*could not be deleted"), building(out) as work:
            (work / "content").write_text("new")
            publish(work, out, replace=True)
        (left,) = (path for path in users_folder.iterdir() if path != out)
        assert (out / "content").read_text() == "new" and (left / "kept" / "content").read_text() == "for ever"

    def test_the_longest_name(self, publish, tmp_path):
        with building(tmp_path / ("n" * 255)) as work:
            publish(work, tmp_path / ("n" * 255), replace=False)
        assert [len(path.name) for path in tmp_path.iterdir()] == [255]

    def test_everything_unfinished_is_discarded(self, tmp_path):
        with building(tmp_path / "out") as work, scratch_folder("x") as scratch:
            (work / "content").write_text("half")
            discard_unfinished()
            assert not work.exists() and not scratch.exists()


def test_a_pipe_is_written_to_and_a_link_stays(tmp_path):
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"x"
    read, write = os.pipe()
    write_file(Path(f"/dev/fd/{write}"), b"y")
    assert os.read(read, 2) == b"y"
    os.close(read), os.close(write)
