"""How captions are dealt: whole batches, nobody twice, nothing lost without need, the same every time."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempme_export.errors import InputError
from tempme_export.training.batches import Deck, deal, equal_rows, share


def ints(*values):
    return np.array(values, np.int64)


@st.composite
def decks(draw):
    """Captions of a few videos, some equal, in some order, and a batch size."""
    n = draw(st.integers(1, 40))
    owner = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    text = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    order = draw(st.permutations(range(n)))
    return ints(*order), ints(*owner), ints(*text), draw(st.integers(2, 6))


@given(decks())
def test_batches_are_whole_and_hold_no_false_negative(drawn):
    order, owner, text, size = drawn
    batches = deal(order, owner, text, size)
    for batch in batches:
        assert batch.dtype == np.int64 and len(batch) == size
        assert len(set(owner[batch])) == size, "no video twice"
        assert len(set(text[batch])) == size, "no caption twice"
    dealt = Counter(int(caption) for batch in batches for caption in batch)
    assert all(count == 1 for count in dealt.values()), "no caption in two batches"
    left = [caption for caption in order if caption not in dealt]
    videos, texts = set(), set()
    fitting = 0
    for caption in left:  # the rest, taken in order, fills no batch
        if owner[caption] not in videos and text[caption] not in texts:
            videos.add(owner[caption]), texts.add(text[caption])
            fitting += 1
    assert fitting < size


def test_without_conflicts_it_is_the_order_cut_into_pieces():
    order = np.random.default_rng(3).permutation(11)
    batches = deal(order, np.arange(11), np.arange(11), 3)
    assert np.concatenate(batches).tolist() == order[:9].tolist()


def test_who_waits_comes_first_in_the_next_batch():
    owner, text = ints(0, 0, 0, 1, 2, 3), ints(0, 1, 2, 3, 4, 5)
    batches = deal(np.arange(6), owner, text, 2)
    assert [batch.tolist() for batch in batches] == [[0, 3], [1, 4], [2, 5]]


def test_equal_texts_of_two_videos_wait_too():
    batches = deal(np.arange(4), np.arange(4), ints(7, 7, 8, 9), 2)
    assert [batch.tolist() for batch in batches] == [[0, 2], [1, 3]]


class TestDeck:
    def deck(self, videos=30, each=4, size=8, seed=5):
        owner = np.repeat(np.arange(videos), each)
        return Deck(owner, np.arange(len(owner)), size, seed)

    def test_the_same_seed_and_epoch_the_same_batches(self):
        for epoch in (0, 3):
            first, second = (self.deck().epoch(epoch) for _ in range(2))
            assert [a.tolist() for a in first] == [b.tolist() for b in second]

    def test_seed_and_epoch_shuffle(self):
        firsts = {tuple(self.deck(seed=seed).epoch(epoch)[0].tolist()) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
        assert len(firsts) == 9

    @pytest.mark.parametrize("each", [1, 4])
    def test_an_epoch_sees_nearly_all_captions(self, each):
        """One caption a video: all but what makes no batch. More: at the end some sit with their own videos only."""
        deck = self.deck(videos=300, each=each)
        seen = np.concatenate(deck.epoch(0))
        assert len(set(seen.tolist())) == len(seen) > 300 * each - (8 if each == 1 else 16)

    def test_over_some_epochs_every_caption_is_seen(self):
        deck = self.deck(videos=11, each=1)
        assert {int(i) for epoch in range(12) for batch in deck.epoch(epoch) for i in batch} == set(range(11))

    def test_lengths(self):
        deck = self.deck()
        lengths = deck.lengths(3)
        assert lengths == tuple(len(deck.epoch(epoch)) for epoch in range(3))
        assert set(lengths) <= {13, 14, 15}

    def test_too_few_videos(self):
        with pytest.raises(InputError, match=r"found 7 videos.*at least 8.*--batch 7"):
            self.deck(videos=7)

    def test_too_few_texts(self):
        with pytest.raises(InputError, match=r"found 3 different captions.*--batch 3"):
            Deck(np.arange(9), np.arange(9) % 3, 4, 0)

    def test_one_video(self):
        with pytest.raises(InputError, match=r"found 1 videos.*--batch 2"):
            Deck(np.zeros(9, np.int64), np.arange(9), 4, 0)

    def test_enough_of_each_and_yet_no_batch(self):
        """Three videos and three texts, but only two of them ever stand together."""
        owner, text = ints(0, 1, 2, 0, 0), ints(0, 0, 0, 1, 2)
        with pytest.raises(InputError, match="no batch of 3"):
            Deck(owner, text, 3, 0)


@given(st.integers(1, 30), st.integers(1, 7))
def test_shares_make_up_the_batch(size, ranks):
    batch = np.arange(size) * 10 + 3
    shares = [share(batch, rank, ranks) for rank in range(ranks)]
    assert len({len(captions) for captions, _ in shares}) == 1, "equally many"
    assert np.concatenate([captions[present] for captions, present in shares]).tolist() == batch.tolist()
    assert all(captions[~present].tolist() == [3] * int((~present).sum()) for captions, present in shares)


def test_equal_rows():
    rows = ints(4, 5, 0, 4, 5, 0, 4, 0, 5).reshape(3, 3)
    numbers = equal_rows(rows)
    assert numbers.dtype == np.int64 and numbers.shape == (3,)
    assert numbers[0] == numbers[1] != numbers[2]
