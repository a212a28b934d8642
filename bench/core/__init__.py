"""The harness: what is measured (candidate), how (protocol, clocks, intervals), and what comes of it (row)."""
