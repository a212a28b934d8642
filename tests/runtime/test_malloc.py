"""Freed memory goes back where the C library can do that, and nothing happens where it cannot."""

import pytest

from tempme_export.runtime import malloc


class Library:
    """A C library that counts."""

    def __init__(self):
        self.trimmed = []

    def malloc_trim(self, left):
        self.trimmed.append(left)
        return 1


def test_the_whole_heap_is_trimmed():
    library = Library()
    malloc.trim_malloc(lambda name: library)
    assert library.trimmed == [0]


@pytest.mark.parametrize("found", [object(), OSError("no library")], ids=["no such function", "no library"])
def test_another_c_library(found):
    asked = []

    def load(name):
        asked.append(name)
        if isinstance(found, OSError):
            raise found
        return found

    malloc.trim_malloc(load)
    assert asked == [None]
