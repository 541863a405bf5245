"""The two stand-in models, which know no medicine."""
