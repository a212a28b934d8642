"""A bundle's own tokenizer: ids equal open_clip's in every script, refusals, and what a damaged one comes to."""

import dataclasses
import html
import pickle
import random
import warnings

import ftfy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempme_export.errors import BundleError, InputError
from tempme_export.exporters.tokenizer import export_tokenizer
from tempme_export.media.stored_tokenizer import StoredTokenizer
from tempme_export.media.token_ids import END, START, TextTruncatedWarning
from tempme_export.media.tokenizer import Tokenizer
from tempme_export.parity.checks import check_tokenizer
from tempme_export.parity.selftest import CAPTIONS, SelfTest

LENGTH = 77
# Latin, Greek, Cyrillic, Semitic, Indic, South-East Asian, Han and kana, Yi, Hangul, historic and private ones, signs.
SCRIPTS = (
    *((0x20, 0x7F), (0xA0, 0x24F), (0x250, 0x52F), (0x530, 0x7FF), (0x900, 0xDFF), (0xE00, 0x109F), (0x10A0, 0x139F)),
    *((0x13A0, 0x1CFF), (0x1D00, 0x20FF), (0x2100, 0x2BFF), (0x2C00, 0x2FDF), (0x3000, 0x33FF), (0x4E00, 0x9FFF)),
    *((0xA000, 0xABFF), (0xAC00, 0xD7A3), (0xF900, 0xFFEF), (0x10000, 0x10FFF), (0x11000, 0x12FFF)),
    *((0x1D100, 0x1D7FF), (0x1F000, 0x1FAFF), (0x20000, 0x2FFFF)),
)
WORDS = (
    *(
        "it's",
        "I'M",
        "it'\u017f",
        "we'll &amp;amp; they've",
        "\u0130stanbul \u03a3\u0391\u03a3 stra\u00dfe",
        "1\u00bd2",
    ),
    *(
        "sch\u00c3\u00b6n",
        "\u201cquoted\u201d \ufb01ne \uff26\uff35\uff2c\uff2c",
        "a\u2028b\u3000c\x85d",
        "\ud800 lone",
    ),
    *("\x00a\x1bb", "!!<start_of_text> hi", "<\u017ftart_of_text>", "<start_of text>"),
)


def drawn():
    rng = random.Random(0)
    for i in range(4000):
        low, high = SCRIPTS[i % len(SCRIPTS)]
        characters = (chr(rng.randint(low, high)) for _ in range(rng.randint(1, 40)))
        text = "".join(c if rng.random() < 0.8 else rng.choice(" '\"&;<>ab12") for c in characters)
        if text.split():
            yield text


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    export_tokenizer(path)
    return path.read_bytes()


def ids_or_refusal(tokenizer, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncatedWarning)
        try:
            return tokenizer([text]).tolist()
        except InputError as error:
            return str(error)


def test_ids_are_those_of_open_clip_in_every_script(stored):
    ours, theirs = StoredTokenizer(stored, LENGTH), Tokenizer("ViT-B-32-quickgelu", LENGTH)
    texts = [*drawn(), *WORDS, *CAPTIONS]
    assert len(texts) > 4000
    assert [text for text in texts if ids_or_refusal(ours, text) != ids_or_refusal(theirs, text)] == []


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="&")))
def test_plain_texts_are_as_ftfy_leaves_them(text):
    """So it need not be asked."""
    assert html.unescape(ftfy.fix_text(text)) == text


def test_the_file_alone_gives_the_ids_of_ordinary_captions(stored):
    """As a program in another language reads it: with start and end, neither cut nor padded."""
    from tokenizers import Tokenizer as Library

    library, theirs = Library.from_buffer(stored), Tokenizer("ViT-B-32-quickgelu", LENGTH)
    for text in (
        "A man IS playing\tthe  guitar!",
        " it's 2024: 3.14% caf\u00e9 ",
        "\u4e00\u4e2a\u7537\u4eba \U0001f3b8",
    ):
        ids = library.encode(text).ids
        assert [ids[0], ids[-1]] == [START, END]
        assert theirs([text])[0].tolist() == ids + [0] * (LENGTH - len(ids))


@pytest.mark.parametrize(
    "texts", ["a man", [""], ["a", " \n"], ["&nbsp;"], [3], ["x <END_OF_TEXT>"], ["<start_of_text> a"]], ids=repr
)
def test_refusals_are_those_of_open_clip(stored, texts):
    said = []
    for tokenizer in (StoredTokenizer(stored, LENGTH), Tokenizer("ViT-B-32-quickgelu", LENGTH)):
        with pytest.raises(InputError) as caught:
            tokenizer(texts)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_long_text_is_cut_and_said(stored):
    tokenizer = pickle.loads(pickle.dumps(StoredTokenizer(stored, 5)))
    with pytest.warns(TextTruncatedWarning, match="text 0 lost 1") as caught:
        token_ids = tokenizer(["a photo of dog"])
    assert caught[0].filename == __file__ and token_ids.tolist() == [[START, 320, 1125, 539, END]]


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[1", b"\xff\xfe"])
def test_damaged_bytes(damaged):
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        StoredTokenizer(damaged, LENGTH)(["a dog"])


def test_another_encoding_is_found_out(stored):
    """By the self-test's captions, whatever the file says of itself."""
    nothing = np.zeros((0, LENGTH), np.float32)
    ids = Tokenizer("ViT-B-32-quickgelu", LENGTH)(CAPTIONS)
    selftest = SelfTest(nothing, nothing, nothing, nothing, (), nothing, captions=CAPTIONS, caption_ids=ids)
    assert check_tokenizer(selftest, StoredTokenizer(stored, LENGTH)).passed
    without_words = stored.replace(b'"end_of_word_suffix":"</w>"', b'"end_of_word_suffix":"</v>"', 1)
    assert without_words != stored
    found = check_tokenizer(selftest, StoredTokenizer(without_words, LENGTH))
    assert not found.passed and found.value > 0
    assert not check_tokenizer(
        dataclasses.replace(selftest, captions=(), caption_ids=ids[:0]), StoredTokenizer(stored, LENGTH)
    ).passed
