"""Shared code of the notebooks that fine-tune MedGemma to audit clinical decisions.

Packages import in one direction: config, stats, data, models, training, systems, feedback, evaluation,
reporting, cli (`tests/test_layers.py` holds them to it).
"""

import logging

__version__ = "0.1.0"

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises optional kernels at every import
