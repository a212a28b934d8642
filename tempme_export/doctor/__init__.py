"""What this machine can do: rules and probes."""
