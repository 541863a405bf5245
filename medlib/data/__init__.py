"""Everything a run reads: cases, images, suites, and checks of all three."""
