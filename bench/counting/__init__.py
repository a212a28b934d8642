"""Operations and tokens counted on what runs: eager, in the exported graph, and held against the formula."""
