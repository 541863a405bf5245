"""The words of the task: modalities, verdicts, answers, severities, and the names of the main systems."""

from __future__ import annotations

MODALITIES = ("xray", "histopathology", "mri", "ultrasound")
VERDICTS = ("CORRECT", "ERROR")
ANSWERS = {
    "CORRECT": "CORRECT - Treatment matches imaging findings",
    "ERROR": "ERROR - Treatment does not match imaging",
}

BASE, ADAPTER = "medgemma", "medgemma-lora"
#: File of an adapter's weights, as PEFT names it.
ADAPTER_WEIGHTS = "adapter_model.safetensors"
#: Severity of an error, an ordinal scale.
SEVERITIES = ("moderate", "high", "critical")

#: What a reader must know about a run of a stand-in.
STANDIN_NOTICE = (
    "This run used a small stand-in model that knows no medicine. Its numbers show that the method works from "
    "data to report; they say nothing about MedGemma or about patients."
)

#: What a reader must know about every result.
NOT_A_DEVICE = (
    "Research only: this is not a medical device. Nothing here may be used to make, check or "
    "change a decision about a patient."
)

#: Ways of learning from feedback; SFT is the comparator: supervised on the same cases, labels and visits.
METHODS = {"sft": "SFT", "ppo": "PPO", "grpo": "GRPO", "dpo": "DPO"}
