"""Asking a trained run about cases: one, or a worklist of any length."""
