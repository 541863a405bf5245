"""Shared code of the notebooks that fine-tune MedGemma to audit clinical decisions.

Modules point one way: data -> models -> training -> evaluation -> reporting.
"""

import logging

__version__ = "0.1.0"

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises optional kernels at every import
