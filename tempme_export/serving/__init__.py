"""A bundle for servers that are not this package: what they need to be told, and where the files go."""
