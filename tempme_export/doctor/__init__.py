"""The abilities of this machine: probes, rules, the next command."""
