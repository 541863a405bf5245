"""Systems compared: the benchmark, its tables, and the choice among methods."""
