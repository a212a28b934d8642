"""One page from results: tables, charts, and where every number comes from."""
