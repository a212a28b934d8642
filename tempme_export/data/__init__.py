"""Videos with captions: annotation files, decoded frames, stores on disk, a rendered world."""
