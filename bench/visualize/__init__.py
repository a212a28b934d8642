"""Pictures of merges: patches of a video that became one token."""
