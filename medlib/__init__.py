"""Shared code of the notebooks that fine-tune MedGemma to audit clinical decisions.

Modules point one way: data -> models -> training -> evaluation -> reporting.
"""

__version__ = "0.1.0"
