"""The five kinds of case. Each makes a damaged input in a folder from whole originals, and uses it as a user would."""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import tomllib
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import torch
from damage import (
    ODD_VALUES,
    damage_bytes,
    damage_document,
    damage_safetensors,
    damage_text,
    damage_zip,
    to_json,
    to_toml,
)

import tempme_export
from tempme_export.errors import ExportError

_MAKER = Path(__file__).parents[2] / "golden" / "make_checkpoint.py"
PROFILE = """
name = "small"
backbone = "checkpoint"
frames = 4
text_length = 8

[merge]
image_r = 1
clip_layers = [1, 2]
clip_factors = [2, 2]
cross_percent = 30
intra_percent = 10
size_bias = true
clip_position = true

[shapes]
batch = [1, 2, 3]
"""
# Container, codec: what users have, and what hides a mistake behind another demuxer.
CLIPS = (
    ("mp4", "libx264"), ("mp4", "libx265"), ("mov", "mpeg4"), ("mkv", "libx264"), ("mkv", "libvpx-vp9"),
    ("webm", "libvpx"), ("avi", "mpeg4"), ("flv", "flv"), ("flv", "libx264"), ("ts", "mpeg2video"), ("ts", "libx264"),
    ("mpg", "mpeg1video"), ("wmv", "wmv2"), ("avi", "mjpeg"),
)  # fmt: skip
_FORMATS = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg", "wmv": "asf"}


def _small_state() -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("make_checkpoint", _MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    sizes = {"image": 48, "layers": 3, "width": 64, "embed": 16, "text_width": 64, "text_layers": 1, "context": 12}
    settings = maker.settings(
        "tiny", **sizes, vocab=50, merge_layer="1-2", merge_frame_num="2-2", max_frames=4, lora_dim=2
    )
    return {name: torch.from_numpy(np.array(value)) for name, value in maker.make_state_dict(settings, 7).items()}


def _saved(content: Any, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def accepts(checkpoint: Path, profile: Path | None) -> bool:
    """Whether an export would begin: only its destination is refused, which is checked after the inputs."""
    try:
        tempme_export.export(checkpoint, profile, checkpoint.parent / "absent" / "x.tempme")
    except ExportError as error:
        if "absent" not in str(error):
            raise
        return True
    raise AssertionError("an export into a folder that is not there was done")


class Kind:
    """One kind. `originals` holds `mini.pth`, its bundle `mini.tempme`, and what the kind itself has added."""

    def __init__(self, originals: Path) -> None:
        self.originals = originals
        self.prepare()

    def prepare(self) -> None:
        """Make the whole originals."""

    def make(self, rng: Random, folder: Path) -> None:
        """Write a damaged input into an empty folder."""
        raise NotImplementedError

    def use(self, folder: Path) -> None:
        """Use it."""
        raise NotImplementedError


class Checkpoints(Kind):
    """Files of checkpoints, damaged as bytes, as archives and in their headers."""

    def prepare(self) -> None:
        from safetensors.torch import save

        self.state = _small_state()
        self.profile = tomllib.loads(PROFILE)
        self.files = [
            (".pth", _saved(self.state)),
            (".pt", _saved(self.state, zipped=False)),
            (".safetensors", save(self.state)),
            (".pth", _saved({"state_dict": self.state, "profile": self.profile})),
            (".bin", _saved({"model": {f"module.{name}": tensor for name, tensor in self.state.items()}})),
        ]

    def make(self, rng: Random, folder: Path) -> None:
        suffix, data = rng.choice(self.files)
        other = rng.choice(self.files)[1]
        if suffix == ".safetensors" and rng.random() < 0.5:
            data = damage_safetensors(rng, data)
        elif data[:2] == b"PK" and rng.random() < 0.5:
            data = damage_zip(rng, data)
        else:
            data = damage_bytes(rng, data, other)
        if rng.random() < 0.1:
            suffix = rng.choice((".pth", ".safetensors", ".bin", ""))
        (folder / f"damaged{suffix}").write_bytes(data)
        (folder / "small.toml").write_text(PROFILE)

    def use(self, folder: Path) -> None:
        file = next(path for path in folder.iterdir() if path.stem == "damaged")
        accepts(file, folder / "small.toml")


_DTYPES = (
    torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64,
    torch.float8_e4m3fn,
)  # fmt: skip
_NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e-42, 1e6, 0.0)


def _other_tensor(rng: Random, tensor: torch.Tensor) -> Any:
    """A tensor, or what is none, in the place of a good one."""
    match rng.randrange(10):
        case 0 | 1:
            return tensor.to(rng.choice(_DTYPES))
        case 2 | 3 | 4:
            changed = tensor.clone()
            flat = changed.view(-1)
            start = rng.randrange(flat.numel())
            flat[start : start + rng.choice((1, 50, flat.numel()))] = rng.choice(_NUMBERS)
            return changed
        case 5:
            return tensor * rng.choice((1e-30, 1e4, 1e30, -1.0))
        case 6:
            return rng.choice(
                (tensor[..., None], tensor[:1] if tensor.ndim else tensor[None], tensor.flatten(), tensor.T.clone())
            )
        case 7:
            return rng.choice((tensor.new_empty(0), tensor.new_zeros(()), tensor.new_zeros(()).expand(tensor.shape)))
        case 8:
            return rng.choice((tensor.to_sparse(), torch.nn.Parameter(tensor), tensor.to("meta"), tensor.tolist()))
        case _:
            odd = rng.choice(ODD_VALUES)
            return odd if odd is not None else {"deeper": tensor}


def _other_state(rng: Random, state: dict[str, torch.Tensor]) -> Any:
    state = dict(state)
    for _ in range(rng.choice((1, 1, 2, 5))):
        name, second = rng.sample(sorted(state, key=str), 2)
        match rng.randrange(8):
            case 0:
                del state[name]
            case 1:
                state[rng.choice((f"{name}.x", "clip." + str(name), "é\0", "", 7, None, ("a", "b")))] = state.pop(name)
            case 2:
                state[name], state[second] = state[second], state[name]
            case 3:
                state[f"visual.transformer.resblocks.{rng.choice((3, 9, 10**20))}.ln_1.bias"] = state[name]
            case _:
                if isinstance(state[name], torch.Tensor) and state[name].numel():
                    state[name] = _other_tensor(rng, state[name].detach())
    return rng.choice((state, state, {"state_dict": state}, {"state_dict": state, "model": 3}, {"model": {"x": state}}))


class Tensors(Kind):
    """State dicts with other tensors inside; an accepted one is exported."""

    def prepare(self) -> None:
        self.state = _small_state()

    def make(self, rng: Random, folder: Path) -> None:
        torch.save(_other_state(rng, self.state), folder / "damaged.pth")
        (folder / "small.toml").write_text(PROFILE)
        if rng.random() < 0.2:  # an export takes seconds
            (folder / "whole").touch()

    def use(self, folder: Path) -> None:
        checkpoint, profile = folder / "damaged.pth", folder / "small.toml"
        if accepts(checkpoint, profile) and (folder / "whole").exists():
            out = folder / "damaged.tempme"
            try:
                tempme_export.export(checkpoint, profile, out)
            finally:
                for built in (out, out.with_name(out.name + ".failed")):
                    shutil.rmtree(built, ignore_errors=True)


class Profiles(Kind):
    """Profiles as files, and beside the tensors of a checkpoint."""

    def prepare(self) -> None:
        self.state = _small_state()
        torch.save(self.state, self.originals / "small.pth")
        shipped = Path(tempme_export.__file__).parents[1] / "profiles"
        self.texts = [PROFILE] * 20 + [path.read_text() for path in sorted(shipped.glob("*.toml"))]

    def make(self, rng: Random, folder: Path) -> None:
        text = rng.choice(self.texts)
        if rng.random() < 0.4:
            (folder / "damaged.toml").write_bytes(damage_text(rng, text))
            return
        document = damage_document(rng, tomllib.loads(text))
        if rng.random() < 0.2:
            torch.save({"state_dict": self.state, "profile": document}, folder / "damaged.pth")
        else:
            (folder / "damaged.toml").write_bytes(to_toml(document))

    def use(self, folder: Path) -> None:
        if (folder / "damaged.pth").exists():
            accepts(folder / "damaged.pth", None)
            return
        checkpoint = folder / "small.pth"
        os.link(self.originals / "small.pth", checkpoint)
        try:
            accepts(checkpoint, folder / "damaged.toml")
        finally:
            checkpoint.unlink()


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest with the hash of itself that its reader expects."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return to_json({**rest, "sha256": hashlib.sha256(to_json(rest)).hexdigest()})


class Bundles(Kind):
    """Bundles with one file damaged, added or missing; often under a manifest whose hashes fit the damage."""

    def prepare(self) -> None:
        self.bundle = self.originals / "mini.tempme"
        self.manifest = json.loads((self.bundle / "manifest.json").read_bytes())
        self.names = sorted(self.manifest["files"])

    def make(self, rng: Random, folder: Path) -> None:
        bundle = folder / "damaged.tempme"
        bundle.mkdir()
        for path in self.bundle.iterdir():
            os.link(path, bundle / path.name)
        manifest, file = json.loads(to_json(self.manifest)), rng.choice(self.names)
        match rng.randrange(10):
            case 0:
                self._write(bundle / "manifest.json", damage_text(rng, to_json(manifest).decode()))
            case 1 | 2 | 3 | 4:
                self._write(bundle / "manifest.json", self._damaged_manifest(rng, manifest))
            case 5:
                self._disturb(rng, bundle, file)
            case _:
                data = (self.bundle / file).read_bytes()
                is_archive = file.endswith(".npz") and rng.random() < 0.7
                data = damage_zip(rng, data) if is_archive else damage_bytes(rng, data)
                self._write(bundle / file, data)
                if rng.random() < 0.7:
                    manifest["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                    self._write(bundle / "manifest.json", sealed(manifest))

    def _damaged_manifest(self, rng: Random, manifest: dict[str, Any]) -> bytes:
        if rng.random() < 0.5:
            part = rng.choice(sorted(manifest))
            manifest[part] = damage_document(rng, manifest[part])
        else:
            manifest = damage_document(rng, manifest)
        return sealed(manifest) if isinstance(manifest, dict) and rng.random() < 0.9 else to_json(manifest)

    def _write(self, path: Path, data: bytes) -> None:
        path.unlink()  # a link to the original
        path.write_bytes(data)

    def _disturb(self, rng: Random, bundle: Path, file: str) -> None:
        path, other = bundle / rng.choice((file, "manifest.json")), bundle / rng.choice(self.names)
        match rng.randrange(6):
            case 0:
                path.unlink()
            case 1:
                path.unlink()
                path.mkdir()
            case 2:
                path.unlink()
                path.symlink_to(rng.choice((path, bundle / "absent", "/dev/null")))
            case 3:
                self._write(path, b"")
            case 4:
                self._write(path, other.read_bytes())
            case _:
                (bundle / rng.choice(("é", ".hidden", "video.pt2", "video.plan"))).write_bytes(b"x")

    def use(self, folder: Path) -> None:
        bundle = folder / "damaged.tempme"
        refusal = None
        try:
            with tempme_export.load(bundle) as model:
                frames = np.zeros((8, 40, 60, 3), np.uint8)
                model.similarity(["a red square"], frames[None].repeat(2, axis=0)[0])
        except tempme_export.errors.TempMeExportError as error:
            refusal = error
        tempme_export.verify(bundle)
        if refusal is not None:
            raise refusal


class Videos(Kind):
    """Clips in many containers, damaged as bytes and as packets."""

    def prepare(self) -> None:
        self.model = tempme_export.load(self.originals / "mini.tempme")
        self.clips = []
        for container, codec in CLIPS:
            if codec in av.codecs_available:
                path = self.originals / f"{codec}.{container}"
                _write_clip(path, codec)
                self.model.encode_video(path)
                self.clips.append(path)

    def make(self, rng: Random, folder: Path) -> None:
        clip = rng.choice(self.clips)
        damaged = folder / f"damaged{clip.suffix}"
        if rng.random() < 0.35:
            _remux(rng, clip, damaged)
        else:
            damaged.write_bytes(damage_bytes(rng, clip.read_bytes(), rng.choice(self.clips).read_bytes()))

    def use(self, folder: Path) -> None:
        self.model.encode_video(next(folder.iterdir()))


def _write_clip(path: Path, codec: str) -> None:
    """Three seconds of 96 x 64 pixels at 10 frames per second, with a key frame every ten."""
    rng = np.random.default_rng(3)
    texture = rng.integers(0, 255, (64, 96, 3), np.uint8)
    suffix = path.suffix[1:]
    rate = 25 if codec.startswith("mpeg") and suffix in ("ts", "mpg") else 10
    with av.open(str(path), "w", format=_FORMATS.get(suffix, suffix)) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.gop_size = 96, 64, 10
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none:pools=none:frame-threads=1:ctu=16"}
        for shift in range(3 * rate):
            picture = np.roll(texture, 2 * shift, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _remux(rng: Random, clip: Path, damaged: Path) -> None:
    """The same container with packets damaged, dropped, doubled, exchanged or at other times."""
    suffix = clip.suffix[1:]
    share = rng.choice((0.05, 0.3, 1.0))
    with av.open(str(clip)) as source, av.open(str(damaged), "w", format=_FORMATS.get(suffix, suffix)) as target:
        old = source.streams.video[0]
        stream = target.add_stream_from_template(old)
        packets = [packet for packet in source.demux(old) if packet.size]
        if rng.random() < 0.2:
            rng.shuffle(packets)
        step = 1 / Fraction(old.average_rate or 10)
        for place, packet in enumerate(packets):
            data = bytes(packet)
            dts = int(place * step / packet.time_base) if packet.time_base else place
            if rng.random() < share:
                match rng.randrange(5):
                    case 0:
                        continue
                    case 1:
                        dts += rng.choice((1, 1000, 10**7))
                    case 2:
                        data = rng.choice((b"\0", bytes(rng.choice(packets)), data * 2))
                    case _:
                        data = damage_bytes(rng, data)
            if not data:
                continue
            new = av.Packet(data)
            new.stream, new.time_base, new.pts, new.dts = stream, packet.time_base, dts, dts
            new.is_keyframe = packet.is_keyframe
            try:
                target.mux(new)
            except av.error.FFmpegError:
                continue  # the muxer itself refuses this packet


KINDS = {
    "checkpoints": Checkpoints,
    "tensors": Tensors,
    "profiles": Profiles,
    "bundles": Bundles,
    "videos": Videos,
}
