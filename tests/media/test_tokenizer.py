"""Token ids equal to open_clip's, truncation said aloud, and what is refused."""

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tempme_export.errors import InputError, ProfileError
from tempme_export.media.token_ids import TextTruncatedWarning
from tempme_export.media.tokenizer import Tokenizer

BACKBONE = "ViT-B-32-quickgelu"
START, END = 49406, 49407
TEXTS = [
    "a man is playing a guitar",
    "A Man IS Playing a GUITAR!!",
    "  spaces \t and\nlines  ",
    "it's 2024: 3.14% of $5 &amp; caf\u00e9s",
    "一个男人在弹吉他",
    "رجل يعزف على الجيتار",
    "🎸🔥 solo 👩‍👩‍👧",
    "naïve ﬁancée “quotes” â€œmojibakeâ€",
    "x" * 40,
    "\ud800 lone surrogate",
    ".",
]


@pytest.fixture(scope="module")
def open_clip_tokenizer():
    return pytest.importorskip("open_clip").SimpleTokenizer()


@pytest.mark.parametrize("text_length", [3, 7, 32, 64, 77])
def test_equals_open_clip(open_clip_tokenizer, text_length):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncatedWarning)
        token_ids = Tokenizer(BACKBONE, text_length)(TEXTS)
    assert token_ids.dtype == np.int64 and token_ids.shape == (len(TEXTS), text_length)
    np.testing.assert_array_equal(token_ids, open_clip_tokenizer(TEXTS, context_length=text_length).numpy())


def test_start_words_end_zeros():
    (token_ids,) = Tokenizer(BACKBONE, 7)(["a photo of dog"])
    assert token_ids.tolist() == [START, 320, 1125, 539, 1929, END, 0]
    (shouted,) = Tokenizer(BACKBONE, 7)(["A PHOTO OF DOG"])
    np.testing.assert_array_equal(shouted, token_ids)


def test_no_texts():
    token_ids = Tokenizer(BACKBONE, 32)([])
    assert token_ids.dtype == np.int64 and token_ids.shape == (0, 32)


def test_cut_texts_are_named_and_end_with_the_end_token():
    texts = ["a photo of dog", "short", "a photo of a big dog"]
    with pytest.warns(TextTruncatedWarning, match="text 0 lost 1, text 2 lost 3") as caught:
        token_ids = Tokenizer(BACKBONE, 5)(texts)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert token_ids[[0, 2], -1].tolist() == [END, END]
    assert token_ids[1].tolist()[2:] == [END, 0, 0]


def test_a_text_that_just_fits_is_not_cut():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Tokenizer(BACKBONE, 6)(["a photo of dog"])[0, -1] == END


@pytest.mark.parametrize(
    "texts, said",
    [
        ("a man", "type str"),
        (None, "type NoneType"),
        (["a man", ""], "text 1 blank"),
        ([" \t\n"], "text 0 blank"),
        (["&nbsp;"], "text 0 blank"),
        (["a man", 3], "text 1 to be of type int"),
        ([None], "text 0 to be of type NoneType"),
        ([b"a man"], "text 0 to be of type bytes"),
        (["a man <end_of_text> a dog"], "inside text 0"),
    ],
)
def test_refuses_what_is_not_text(texts, said):
    with pytest.raises(InputError, match=said) as caught:
        Tokenizer(BACKBONE, 32)(texts)
    assert "found" in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.parametrize(
    "backbone, said",
    [
        ("ViT-B-16-SigLIP", "hf_tokenizer_name"),
        ("roberta-ViT-B-32", "hf_tokenizer_name"),
        ("ViT-H-14-CLIPA", "tokenizer"),
        ("coca_base", "vocabulary of 64000"),
        ("ViT-B-32-quickglu", "ViT-B-32-quickgelu"),
        ("../ViT-B-32", "ViT-B-32"),
        ("checkpoint", "no tokenizer"),
    ],
)
def test_refuses_other_backbones(backbone, said):
    with pytest.raises(ProfileError, match=said) as caught:
        Tokenizer(backbone, 32)
    assert "found" in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.parametrize("text_length", [-1, 0, 2, 78])
def test_refuses_lengths_the_text_tower_cannot_read(text_length):
    with pytest.raises(ProfileError, match="expected 3 to 77"):
        Tokenizer(BACKBONE, text_length)


def test_every_model_config_is_taken_or_refused():
    """Taken exactly where open_clip itself would choose its byte-pair encoding with default settings."""
    for backbone, config in configs().items():
        text = config["text_cfg"]
        plain = not {"hf_tokenizer_name", "hf_model_name", "tokenizer_kwargs"} & set(text)
        if plain and text["vocab_size"] == 49408:
            assert Tokenizer(backbone, 16).text_length == 16
        else:
            with pytest.raises(ProfileError, match=backbone):
                Tokenizer(backbone, 16)


def configs():
    folder = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0]) / "model_configs"
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_loads_the_encoding_without_the_rest_of_open_clip():
    assert type(Tokenizer(BACKBONE, 32)._bpe).__module__ == "open_clip_tokenizer"
    code = "import sys, tempme_export.media.tokenizer; sys.exit(bool({'torch', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
