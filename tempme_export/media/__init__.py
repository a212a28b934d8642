"""Video files to frames to pixels, texts to token ids, and clips to files."""
