"""Generated scenarios: a lexicon, a grammar, and drawn images."""
