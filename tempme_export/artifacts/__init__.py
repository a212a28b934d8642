"""The bundle: its folder and manifest."""
