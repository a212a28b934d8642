"""Methods side by side: what each one merges, what the paper prints for it, and its encoder over the same weights."""
