"""One file for each notebook, named like it: the functions behind its cells."""
