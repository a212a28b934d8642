"""Float32 encoder -> int8 graph for CPUs: calibrate, migrate outliers, decide what stays in float, write."""
