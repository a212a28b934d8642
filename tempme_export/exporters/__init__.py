"""Recipe to file: one module per kind of artifact."""
