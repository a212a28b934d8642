"""Export, verification and rebuilding: the order in which the parts are used."""
