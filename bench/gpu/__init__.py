"""Checks that only a GPU can make, in one command and one file."""
