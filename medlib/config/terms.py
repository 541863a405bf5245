"""The words of the task: modalities, verdicts, answers, severities, and the names of the main systems."""

from __future__ import annotations

MODALITIES = ("xray", "histopathology", "mri", "ultrasound")
VERDICTS = ("CORRECT", "ERROR")
ANSWERS = {
    "CORRECT": "CORRECT - Treatment matches imaging findings",
    "ERROR": "ERROR - Treatment does not match imaging",
}

BASE, ADAPTER = "medgemma", "medgemma-lora"
#: Severity of an error, an ordinal scale.
SEVERITIES = ("moderate", "high", "critical")

METHODS = {"ppo": "PPO", "grpo": "GRPO", "dpo": "DPO"}
