"""Figures, tables, pages, model cards, and the notebooks' own functions."""
